"""Configurations of training of any content: refused in one line, and no code runs but that of the classes they name.

A `class_path` imports a module and makes an object of a class in it: which one is a user's own choice, as it is in a
script of Python. What may not happen is that a name in another place is imported or called, that a function stands in
for a class and runs, or that a class that does not belong there is made. So the names here are of installed modules
that would leave a trace: they start a process, write a file, or remove one.
"""

import pytest
import torch
import yaml
from hypothesis import strategies as st

from lit_wsl.cli import trainer  # noqa: F401 - far too large to be imported within the memory of a case
from tests.faults.cases import try_cases
from tests.faults.strategies import altered, as_text, one_field, values
from tests.faults.test_corrupt_settings import odd_yaml
from tests.tiny_bert import write_opinions, write_tiny_bert

PATHS = (
    "os.system",
    "os.mkdir",
    "posix.system",
    "subprocess.Popen",
    "subprocess.run",
    "builtins.exec",
    "builtins.open",
    "pathlib.Path.touch",
    "shutil.rmtree",
    "shutil.copytree",
    "torch.save",
    "torch.nn.Linear",
    "torch.optim.SGD",
    "torch.optim.lr_scheduler.StepLR",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.LightningModule",
    "lightning.pytorch.callbacks.EarlyStopping",
    "lit_wsl.training.text.TextClassificationData.setup",
    "lit_wsl.errors.ConfigError",
    "lit_wsl.no_such_module.Class",
    "no.such.module.Class",
    "SequenceClassificationModul",
    "AdaMerging",
    "MergeTaskData",
    "SaveAdapter",
    "CSVLogger",
    "..",
    ".x",
    "x.",
    "a b",
    "1.2",
    "",
)
ARGUMENTS = ({}, {"command": "touch canary"}, {"args": ["touch", "canary"]}, {"path": "canary"}, [], None, {"lr": "x"})
SAFE = ("--trainer.devices=1", "--trainer.accelerator=cpu", "--trainer.strategy=auto", "--trainer.num_nodes=1")
"""The number of processes is nobody's to draw."""
LESS_KNOWN = {
    "trainer": ("precision", "logger", "plugins", "profiler", "limit_train_batches", "accumulate_grad_batches"),
    "model": ("head", "lora", "optimizer", "lr_scheduler", "labels", "prompts", "encoder_dropout", "init_adapter"),
    "data": ("train_file", "labels", "prompts", "limit_train", "seed", "max_length"),
}


@pytest.fixture
def config(watch):
    """What trains on a few sentences."""
    write_tiny_bert(watch.root / "inputs" / "bert")
    write_opinions(watch.root / "inputs" / "opinions")
    model = {
        "model": "../inputs/bert",
        "lora": {"rank": 2, "lora_alpha": 4, "target_modules": ["query"]},
        "head": "linear",
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
    }
    return {
        "seed_everything": 0,
        "model": {"class_path": "SequenceClassificationModule", "init_args": model},
        "data": {"class_path": "TextClassificationData", "init_args": {"task": "../inputs/opinions", "batch_size": 8}},
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": "out",
            "callbacks": [{"class_path": "SaveAdapter", "init_args": {"directory": "out/adapter"}}],
        },
        "threads": 1,
    }


@pytest.fixture(autouse=True)
def _switches():
    """Switches of torch that a trainer sets for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)


def wrong_classes(config):
    """One class named that does not belong there, or no class."""
    places = [("model",), ("data",), ("trainer", "callbacks", 0), ("model", "init_args", "optimizer"), ("trainer",)]
    more = [("trainer", key) for key in ("logger", "profiler", "strategy", "plugins")]
    named = [("model", "init_args", key) for key in ("lora", "lr_scheduler", "head")]

    def put(place, path, arguments):
        return _with(config, place, {"class_path": path, "init_args": arguments})

    return st.builds(put, st.sampled_from([*places, *more, *named]), st.sampled_from(PATHS), st.sampled_from(ARGUMENTS))


def _with(config, place, value):
    """The configuration with a value in a place."""
    if not place:
        return value
    if isinstance(config, list):
        return [_with(one, place[1:], value) if at == place[0] else one for at, one in enumerate(config)]
    return {**config, place[0]: _with(config.get(place[0], {}), place[1:], value)}


def sections(config):
    """One option of one class of any value, known or less known."""

    def of(name):
        place = (name,) if name == "trainer" else (name, "init_args")
        options = config[name] if name == "trainer" else config[name]["init_args"]
        known = {**dict.fromkeys(LESS_KNOWN[name], 0), **options}
        known.pop("default_root_dir", None)
        return st.builds(lambda key, value: _with(config, (*place, key), value), st.sampled_from(sorted(known)), values)

    return st.sampled_from(sorted(LESS_KNOWN)).flatmap(of)


def test_training_settings(watch, config):
    path = watch.root / "inputs" / "case.yaml"
    given = ["--config", path, *SAFE]
    brief = ["--trainer.fast_dev_run=true"]
    quick = (
        lambda: watch.command(["fit", *given, *brief]),
        lambda: watch.command(["fit", *given, *brief]),
        lambda: watch.command(["fit", "--config", path, "--print_config"]),
        lambda: watch.command(["validate", *given, *brief]),
        lambda: watch.command(["gather", *given, "--kind=fisher", "--batches=1", "--output=out.safetensors"]),
    )
    path.write_bytes(as_yaml(config))
    for one in quick:
        assert one() == 0
    strategy = st.one_of(
        wrong_classes(config).map(as_yaml),
        sections(config).map(as_yaml),
        altered(config).map(as_yaml),
        one_field(config, as_yaml),
        odd_yaml(config),
    )
    try_cases("training settings", strategy, path.write_bytes, quick)


def as_yaml(document):
    return as_text(yaml.safe_dump(document, allow_unicode=True))
