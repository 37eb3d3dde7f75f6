"""Image-text training from the command line: the shipped configurations, and exit codes."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from lit_wsl.cli.main import run
from lit_wsl.errors import CheckpointError, LitWslError, VariantError
from lit_wsl.training.figures import figure_model, write_figures

ROOT = Path(__file__).parents[2]
NAMES = ("alternating", "alternating_cross")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A project with few figures; the shipped configurations are found by name."""
    monkeypatch.chdir(tmp_path)
    write_figures(tmp_path / "artifacts/figures", rows=16, evaluation_rows=8)
    return tmp_path


def lit_wsl(command, *arguments, name="alternating"):
    quick = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"] if command == "fit" else []
    return run([command, *given(name), *quick, *arguments])


def given(name):
    """A variant's own file holds what differs from the first."""
    return [word for one in dict.fromkeys((NAMES[0], name)) for word in ("--config", one)]


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_configuration_trains_and_is_tested(name, place, capsys):
    assert lit_wsl("fit", name=name) == 0
    checkpoint = f"artifacts/train/{name}/last.ckpt"
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["hyper_parameters"]["model"] == figure_model(name)
    assert lit_wsl("test", "--ckpt_path", checkpoint, name=name) == 0
    assert "test/exact_match" in capsys.readouterr().out
    assert run(["export", checkpoint, "--output", "out"]) == 0
    text = json.loads((place / "out/config.json").read_text())["text_config"]
    assert text.get("attention_variant", "alternating") == name


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_models_are_those_for_the_figures(name):
    assert json.loads((ROOT / f"configs/models/tiny_{name}.json").read_text()) == figure_model(name)
    config = yaml.safe_load((ROOT / f"configs/train/{name}.yaml").read_text())
    assert config["model"]["init_args"]["variant"] == name


def test_the_data_take_model_and_tokenizer_from_the_module(place):
    assert lit_wsl("fit") == 0
    assert run(["export", "artifacts/train/alternating/last.ckpt", "--output", "out"]) == 0
    for file in (place / "artifacts/figures/tokenizer").iterdir():
        (place / "out" / file.name).write_bytes(file.read_bytes())
    own = ["--model.init_args.model", "out", "--data.init_args.tokenizer", "null"]
    assert lit_wsl("validate", *own) == 0


def bad_rows(kind):
    human, gpt = {"from": "human", "value": "<image> what ?"}, {"from": "gpt", "value": "red"}
    good = {"image": "train/0000.png", "conversations": [human, gpt]}
    return {
        "missing": [good, good | {"image": "train/gone.png"}],
        "role": [good, good | {"conversations": [human, gpt | {"from": "bot"}]}],
        "empty": [],
        "conversation": [good, good | {"conversations": []}],
        "places": [good, {"conversations": [human, gpt]}],
        "video": [good, {"video": "a.mp4", "conversations": [human, gpt]}],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "bad.jsonl, line 2: image artifacts/figures/train/gone.png does not exist; mend it, or set"),
        ("role", "bad.jsonl, line 2: turn 2 has the unknown role 'bot'"),
        ("empty", "bad.jsonl has no rows."),
        ("conversation", "bad.jsonl, line 2: `conversations` is empty"),
        ("places", "bad.jsonl, line 2: 1 <image> in the text for 0 images"),
        ("video", "bad.jsonl, line 2: `video` is not read; list frames of it as `image`"),
    ],
)
def test_bad_data_leaves_one_line_and_code_1(kind, message, place, capsys):
    file = "artifacts/figures/bad.jsonl"
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in bad_rows(kind)))
    assert lit_wsl("fit", "--data.init_args.train_file", file) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-wsl: ")]
    assert f"artifacts/figures/{message}" in line
    skipped = lit_wsl("fit", "--data.init_args.train_file", file, "--data.init_args.on_bad_row", "skip")
    assert skipped == (1 if kind == "empty" else 0)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--model.init_args.variant", "base"],
            3,
            "of variant 'alternating' (model_type 'llava_onevision_alternating')",
        ),
        (["--model.init_args.variant", "alternatin"], 2, "alternatin"),
        (["--model.init_args.model", "gone.json"], 1, "gone.json does not exist"),
        (["--model.init_args.model", "artifacts/figures/train.jsonl"], 1, "is a file, not a directory"),
        (["--model.init_args.model", "broken.json"], 1, "broken.json cannot be read"),
        (["--model.init_args.attn_implementation", "flash_attention_2"], 1, "cannot express the masks"),
        (["--model.init_args.freeze", "[vision_towr]"], 1, "Did you mean 'vision_tower'?"),
        (["--data.init_args.tokenizer", "null"], 1, "give the data a `tokenizer`"),
        (["--data.init_args.tokenizer", "artifacts/figures"], 1, "artifacts/figures has no tokenizer"),
        (["--data.init_args.template", "chatml"], 1, "use `plain`"),
        (["--data.init_args.train_file", "gone.jsonl"], 1, "gone.jsonl does not exist"),
        (["--data.init_args.batch_size", "0"], 1, "`batch_size >= 1`"),
    ],
)
def test_each_mistake_has_its_code_and_one_line(arguments, code, message, place, capsys):
    (place / "broken.json").write_text("{")
    assert lit_wsl("fit", *arguments) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if message in line]
    assert len(lines) == 1
    assert code == 2 or lines[0].startswith("lit-wsl: ")


def test_force_trains_another_variant_with_a_warning(place, capsys):
    assert lit_wsl("fit", "--model.init_args.variant", "base", "--model.init_args.force", "true") == 0
    assert "not 'base'; it is trained as it is" in capsys.readouterr().err


def test_only_a_wrong_variant_has_a_code_of_its_own():
    assert (LitWslError.exit_code, CheckpointError.exit_code, VariantError.exit_code) == (1, 1, 3)
