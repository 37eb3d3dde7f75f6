import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lit_wsl.callbacks.universal_checkpoint import UniversalCheckpointCallback
from lit_wsl.cli.main import run
from lit_wsl.cli.resources import shipped_config
from lit_wsl.cli.trainer import TrainerCLI, run_trainer
from lit_wsl.errors import ConfigError, LitWslError, WrongUsage
from lit_wsl.models.universal.sidecar import SIDECAR_KEY
from lit_wsl.training.classification import SequenceClassificationModule
from lit_wsl.training.parallel import UniversalModelParallelStrategy
from tests.tiny_bert import write_opinions, write_tiny_bert

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "train" / "lora_text.yaml"
CHAIN = ("standard", "lora_rank_16", "lora_rank_32", "deploy_standard")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Run in an empty directory and leave the interpreter as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return write_tiny_bert(root / "bert"), write_opinions(root / "opinions")


def _arguments(tiny, *more, command="fit"):
    bert, opinions = tiny
    return [
        command,
        f"--config={CONFIG}",
        f"--model.init_args.model={bert}",
        f"--data.init_args.task={opinions}",
        "--trainer.enable_progress_bar=false",
        *more,
    ]


def test_the_shipped_configuration_trains_and_writes_an_adapter(tiny, place):
    """A12.4: `train` is `fit`"""
    assert run_trainer(_arguments(tiny, "--trainer.callbacks.init_args.directory=out", "--threads=1")) == 0
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in (place / "out").iterdir()}
    assert torch.get_num_threads() == 1


def test_defaults_need_no_class_paths(tiny, place):
    bert, opinions = tiny
    arguments = ["fit", f"--model.model={bert}", f"--data.task={opinions}", "--trainer.max_epochs=1"]
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    assert run_trainer([*arguments, *quiet, "--trainer.enable_checkpointing=false"]) == 0


def test_links_and_threads_reach_the_objects(tiny, monkeypatch):
    built = {}
    monkeypatch.setattr(TrainerCLI, "_run_subcommand", lambda self, _: built.update(vars(self)))
    assert run_trainer(_arguments(tiny)) == 0
    assert built["datamodule"].tokenizer == built["model"].base_model == str(tiny[0])
    assert built["model"].labels == ["negative", "positive"]
    assert built["model"].prompts == ["bad poor film", "good fine film"]
    assert built["model"].lora.rank == 8


def test_the_hyperparameters_of_a_checkpoint_override_nothing(tiny, place, monkeypatch):
    """LightningCLI parses them over the typed options: rank 8 and `linear` would come back as 2 and `prompt`."""
    save = ["--trainer.enable_checkpointing=true", "--trainer.max_epochs=1", "--trainer.default_root_dir=run"]
    assert run_trainer(_arguments(tiny, "--model.init_args.lora.rank=2", *save)) == 0
    [checkpoint] = place.rglob("*.ckpt")
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    built = {}
    monkeypatch.setattr(TrainerCLI, "_run_subcommand", lambda self, _: built.update(vars(self)))
    typed = ["--model.init_args.lora.rank=8", "--model.init_args.head=linear", f"--ckpt_path={checkpoint}"]
    assert run_trainer(_arguments(tiny, *typed, command="test")) == 0
    assert built["model"].lora.rank == 8
    assert built["model"].head_kind == "linear"
    monkeypatch.undo()
    monkeypatch.chdir(place)
    typed = [
        "--model.init_args.lora.rank=8",
        f"--ckpt_path={checkpoint}",
        "--trainer.max_epochs=2",
        "--trainer.default_root_dir=next",
        "--trainer.callbacks=null",  # `SaveAdapter` refuses another rank, whose base is not on disk
    ]
    assert run_trainer(_arguments(tiny, *save[:1], *typed)) == 0
    [resumed] = (place / "next").rglob("*.ckpt")
    adapted = json.loads(torch.load(resumed, weights_only=True)[SIDECAR_KEY]["configuration"])["adapted"]
    assert {rank for parts in adapted.values() for rank, _ in parts} == {8}


def test_a_checkpoint_of_the_command_line_is_tested_and_loaded(tiny, place):
    save = ["--trainer.enable_checkpointing=true", "--trainer.max_epochs=1", "--trainer.default_root_dir=run"]
    assert run_trainer(_arguments(tiny, *save)) == 0
    [checkpoint] = place.rglob("*.ckpt")
    for command in ("validate", "test", "predict"):
        assert run_trainer(_arguments(tiny, f"--ckpt_path={checkpoint}", command=command)) == 0
    assert SequenceClassificationModule.load_from_checkpoint(checkpoint).lora.rank == 8


def test_the_configuration_is_saved_and_may_be_overwritten(tiny, place):
    logged = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", "--trainer.logger.version=one"]
    for _ in range(2):
        assert run_trainer(_arguments(tiny, "--trainer.max_epochs=1", *logged)) == 0
    [saved] = place.rglob("config.yaml")
    assert yaml.safe_load(saved.read_text())["model"]["init_args"]["lora"]["lora_alpha"] == 16


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.init_args.lora.rank=-1", "rank >= 0"),
        ("--data.init_args.task=sentimant", "Did you mean 'sentiment'"),
        ("--model.init_args.model=/no/such/model", "does not exist"),
        ("--threads=0", "threads >= 1"),
    ],
)
def test_errors_of_ours_pass_through_for_the_shell_to_print(tiny, option, message):
    with pytest.raises(LitWslError, match=message):
        run_trainer(_arguments(tiny, option))


@pytest.mark.parametrize(
    "arguments",
    [["fit", "--no_such_option=1"], ["fit", "--data.init_args.batch_size=many"], ["fit", "--config=missing.yaml"]],
)
def test_wrong_usage_is_two(arguments, capsys):
    assert run_trainer(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "typo", "message"),
    [
        ("trainer", {"max_epoch": 1}, "there is no option 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?"),
        ("model", {"class_path": "CausalLModule"}, "no class 'CausalLModule'. Did you mean 'CausalLMModule'?"),
        (
            "model",
            {"init_args": {"hed": "prompt"}},
            "SequenceClassificationModule has no argument 'hed'. Did you mean 'head'?",
        ),
        ("model", {"init_args": {"head": "prompts"}}, "SequenceClassificationModule: `head`: Expected"),
        ("model", {"class_path": "no_such.Module"}, "there is no class 'no_such.Module'. Give `class_path`"),
    ],
)
def test_a_misspelt_name_in_a_file_shows_the_nearest(place, capsys, key, typo, message):
    (place / "train.yaml").write_text(yaml.safe_dump({key: typo}))
    assert run_trainer(["fit", f"--config={CONFIG}", "--config=train.yaml"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_help_shows_the_meaning_of_fields(capsys):
    assert run_trainer(["fit", "--help"]) == 0
    assert "--threads" in capsys.readouterr().out
    assert run_trainer(["fit", "--model.help=SequenceClassificationModule"]) == 0
    assert "--model.head" in capsys.readouterr().out
    assert run_trainer(["fit", "--model.help=SequenceClassificationModule", "--model.lora.help"]) == 0
    assert "Rank of every adapter" in capsys.readouterr().out


def test_a_module_beside_the_user_is_found(tiny, place, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(place))])
    (place / "my_models.py").write_text(
        "from lit_wsl.training.classification import SequenceClassificationModule\n"
        "class Mine(SequenceClassificationModule):\n"
        "    pass\n"
    )
    built = {}
    monkeypatch.setattr(TrainerCLI, "_run_subcommand", lambda self, _: built.update(vars(self)))
    assert run_trainer(_arguments(tiny, "--model.class_path=my_models.Mine")) == 0
    assert type(built["model"]).__name__ == "Mine"


def test_an_interrupt_is_130(tiny, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("signal.signal", lambda *_: None)  # Lightning would ignore Ctrl-C from then on
    monkeypatch.setattr(SequenceClassificationModule, "training_step", interrupt)
    assert run_trainer(_arguments(tiny)) == 130


def test_arguments_of_the_process_are_left_alone(tiny, monkeypatch, recwarn):
    monkeypatch.setattr(sys, "argv", ["lit-wsl", "demo", "--quick"])
    monkeypatch.setattr(TrainerCLI, "_run_subcommand", lambda self, _: None)
    assert run_trainer(_arguments(tiny)) == 0
    assert sys.argv == ["lit-wsl", "demo", "--quick"]
    assert not [warning for warning in recwarn if "args parameter" in str(warning.message)]


def test_threads_error_is_a_config_error(tiny):
    with pytest.raises(ConfigError):
        run_trainer(_arguments(tiny, "--threads=-1"))


def _chain(name):
    return yaml.safe_load((ROOT / "configs" / "train" / f"{name}.yaml").read_text())


def _given(name):
    """Rank 32 holds what differs from rank 16."""
    return [f"--config={one}" for one in (["lora_rank_16", name] if name == "lora_rank_32" else [name])]


def test_the_chain_of_configurations_runs_as_written(place, recwarn):
    """Standard, rank 16, rank 32 and standard again, each from the checkpoint of the one before; only shorter."""
    for name in ("docs", "README.md"):
        (place / name).symlink_to(ROOT / name)
    ranks = {"standard": 0, "lora_rank_16": 16, "lora_rank_32": 32, "deploy_standard": 0}
    steps = 0
    for name in CHAIN:
        short = ["--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false"]
        assert run_trainer(["fit", *_given(name), *short]) == 0
        folder = place / "artifacts" / "train" / name
        assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "last.ckpt"]
        assert not (place / "config.yaml").exists()
        content = torch.load(folder / "last.ckpt", weights_only=True)
        adapted = json.loads(content[SIDECAR_KEY]["configuration"])["adapted"]
        assert {rank for parts in adapted.values() for rank, _ in parts} == ({ranks[name]} if ranks[name] else set())
        assert any("embed_tokens" in layer for layer in adapted) == bool(adapted)
        assert not any("lora_" in key for key in content["state_dict"])
        assert content["global_step"] > steps
        steps = content["global_step"]
    assert len([w for w in recwarn if "Could not load all optimizer state" in str(w.message)]) == 3


def test_each_configuration_of_the_chain_goes_on_from_the_one_before():
    configs = [_chain(name) for name in CHAIN]
    folders = [config["trainer"]["callbacks"][0]["init_args"]["dirpath"] for config in configs]
    assert folders == [f"artifacts/train/{name}" for name in CHAIN]
    assert [config.get("ckpt_path") for config in configs] == [
        None,
        *(f"{folder}/last.ckpt" for folder in folders[:-1]),
    ]
    assert [config["trainer"]["default_root_dir"] for config in configs] == folders
    epochs = [config["trainer"]["max_epochs"] for config in configs]
    assert epochs == sorted(set(epochs))
    whole = [config for config in configs if "data" in config]
    assert len({(config["model"]["init_args"]["model"], config["data"]) for config in whole}) == 1
    first, second = (configs[at]["model"]["init_args"]["lora"] for at in (1, 2))
    assert set(first) - set(second) == {"embedding_mode"}


def test_a_file_comes_before_what_ships_under_its_name(place):
    (place / "standard").mkdir()
    assert shipped_config("standard", "train") == ROOT / "configs/train/standard.yaml"
    (place / "standard.yaml").write_text("seed_everything: 1\n")
    assert shipped_config("standard.yaml", "train") is None
    assert shipped_config("adamerging", "train", "learn") == ROOT / "configs/learn/adamerging.yaml"
    with pytest.raises(WrongUsage, match="Did you mean 'standard'"):
        shipped_config("standart", "train")


def test_a_training_that_keeps_nothing_leaves_the_working_directory_as_it_is(blocks, place):
    before = sorted(path.name for path in place.iterdir())
    assert run_trainer([*blocks, "--trainer.enable_checkpointing=false"]) == 0
    assert sorted(path.name for path in place.iterdir()) == before


def test_options_are_kept_beside_the_checkpoints_and_by_fit_alone(blocks, place):
    assert run_trainer([*blocks, "--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.dirpath=run"]) == 0
    kept = place / "run" / "config.yaml"
    assert not (place / "config.yaml").exists()
    before = kept.read_bytes()
    root = ["--trainer.default_root_dir=run"]
    assert run_trainer(["validate", *blocks[1:], *root]) == 0
    assert kept.read_bytes() == before


def test_blocks_of_text_keep_their_own_tokenizer(tiny, place, monkeypatch):
    built = {}
    monkeypatch.setattr(TrainerCLI, "_run_subcommand", lambda self, _: built.update(vars(self)))
    (place / "text.txt").write_text("text " * 100)
    mapping = "{model_type: llama, vocab_size: 256, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2}"
    model = ["--model=CausalLMModule", f"--model.init_args.model={mapping}", "--model.init_args.untie_embeddings=true"]
    data = ["--data=TokenBlockData", "--data.init_args.files=[text.txt]"]
    assert run_trainer(["fit", *model, *data]) == 0
    assert built["datamodule"].tokenizer == "bytes"
    assert built["model"].hparams["model"]["hidden_size"] == 8
    assert run_trainer(["fit", *model, *data, f"--data.init_args.tokenizer={tiny[0]}"]) == 0
    assert built["datamodule"].tokenizer == str(tiny[0])


def test_texts_of_a_class_beside_the_user_take_the_tokenizer_of_the_model(tiny, place, monkeypatch):
    (place / "my_data.py").write_text(
        "from lit_wsl.training.text import TextClassificationData\nclass Mine(TextClassificationData):\n    pass\n"
    )
    built = {}
    monkeypatch.setattr(TrainerCLI, "_run_subcommand", lambda self, _: built.update(vars(self)))
    assert run_trainer(_arguments(tiny, "--data.class_path=my_data.Mine")) == 0
    assert type(built["datamodule"]).__name__ == "Mine"
    assert built["datamodule"].tokenizer == str(tiny[0])


def test_short_names_of_callback_and_strategy(tiny, monkeypatch):
    built = {}
    monkeypatch.setattr(TrainerCLI, "_run_subcommand", lambda self, _: built.update(vars(self)))
    named = ["--trainer.callbacks=UniversalCheckpointCallback", "--trainer.callbacks.sidecar=factors"]
    sharded = ["--trainer.strategy=UniversalModelParallelStrategy", "--trainer.strategy.data_parallel_size=2"]
    shape = ["--trainer.strategy.tensor_parallel_size=1", "--trainer.devices=2"]
    assert run_trainer(_arguments(tiny, *named, *sharded, *shape)) == 0
    [callback] = [c for c in built["trainer"].callbacks if isinstance(c, UniversalCheckpointCallback)]
    assert callback.sidecar == "factors"
    assert isinstance(built["trainer"].strategy, UniversalModelParallelStrategy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ckpt_path=best", "--trainer.enable_checkpointing=false"], "^ckpt_path: .*give the path of a checkpoint"),
        (["--ckpt_path=hpc"], "^ckpt_path: .*give the path of a checkpoint"),
        (["--trainer.strategy=no_such"], "^Trainer refuses its options: .*no_such.*--debug"),
        (["--trainer.val_check_interval=100"], "val_check_interval.*less than or equal"),
        (["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=-1"], "^AdamW refuses its options: .*-1.0"),
        (["--model=my_refusals.Mine", "--model.fault=value"], "^Mine refuses its options: one two; `--debug`"),
        (["--model=my_refusals.Mine", "--model.fault=type"], "^Mine refuses its options: unsupported operand"),
    ],
)
def test_a_refused_option_is_one_line(blocks, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run_trainer([*blocks, *options])
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("fault", ["setup", "optimizer", "step", "log"])
def test_an_error_in_the_users_code_keeps_its_traceback(blocks, fault):
    with pytest.raises(ValueError, match="own|cannot be logged|learning rate") as caught:
        run_trainer([*blocks, "--model=my_refusals.Mine", f"--model.fault={fault}"])
    assert not isinstance(caught.value, LitWslError)
    assert "my_refusals.py" in {entry.path.name for entry in caught.traceback}


def test_a_refused_option_leaves_one_line_and_code_1(blocks, capsys):
    assert run([*blocks, "--ckpt_path=best"]) == 1
    assert [line for line in capsys.readouterr().err.splitlines() if "ckpt_path" in line][-1].startswith("lit-wsl: ")
    with pytest.raises(ConfigError):
        run([*blocks, "--ckpt_path=best", "--debug"])


@pytest.fixture
def blocks(place):
    """Arguments of a short run of a language model, and a class of the user's own that fails where it is told."""
    (place / "text.txt").write_text("text " * 100)
    (place / "my_refusals.py").write_text(FAULTS)
    mapping = "{model_type: llama, vocab_size: 256, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2}"
    quiet = ["enable_progress_bar=false", "logger=false", "accelerator=cpu", "max_steps=1"]
    yield [
        "fit",
        "--model=CausalLMModule",
        f"--model.model={mapping}",
        "--data=TokenBlockData",
        "--data.files=[text.txt]",
        "--data.block_size=16",
        *(f"--trainer.{option}" for option in quiet),
    ]
    sys.modules.pop("my_refusals", None)


FAULTS = """
import torch
from lit_wsl.training.causal_lm import CausalLMModule

class Mine(CausalLMModule):
    def __init__(self, model: dict, fault: str = ""):
        super().__init__(model)
        self.fault = fault
        if fault == "value":
            raise ValueError("one\\ntwo")
        if fault == "type":
            None + 1

    def setup(self, stage):
        super().setup(stage)
        if self.fault == "setup":
            raise ValueError("own")

    def configure_optimizers(self):
        if self.fault == "optimizer":
            return torch.optim.AdamW(self.parameters(), lr=-1)
        return super().configure_optimizers()

    def training_step(self, batch, batch_idx):
        if self.fault == "step":
            raise ValueError("own")
        if self.fault == "log":
            self.log("a", "text")
        return super().training_step(batch, batch_idx)
"""
