"""The page on what comes before a training: every command in its table runs."""

import re
import shlex

import pytest
from transformers import AutoModelForImageTextToText, LlavaOnevisionConfig, Qwen2Config, Qwen2ForCausalLM

from lit_wsl.cli.main import run
from lit_wsl.models.alternating import LlavaOnevisionAlternatingConfig
from lit_wsl.models.backbone import DEFAULT_GROUPS
from lit_wsl.state.reader import open_state
from lit_wsl.training.figures import figure_model, write_figures
from tests.docs.examples import DOCS

PAGE = "inspecting.md"
TEXT = (DOCS / PAGE).read_text()
IN_TABLE = re.findall(r"\| `(lit-wsl [^`]*)` \|", TEXT)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with everything that the page names."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "configs").symlink_to(DOCS.parent / "configs")
    write_figures(folder / "artifacts/figures", rows=8, evaluation_rows=4)
    (folder / "data").symlink_to(folder / "artifacts/figures")
    (folder / "artifacts/figures/rows.jsonl").write_text((folder / "artifacts/figures/train.jsonl").read_text())
    for name in ("alternating", "alternating_cross"):
        model = AutoModelForImageTextToText.from_config(LlavaOnevisionAlternatingConfig(**figure_model(name)))
        model.save_pretrained(folder / "models" / name)
    values = figure_model("alternating")
    text = {name: value for name, value in values["text_config"].items() if not name.startswith("a")}
    values |= {"model_type": "llava_onevision", "text_config": text | {"model_type": "qwen2"}}
    plain = LlavaOnevisionConfig.from_dict(values)
    AutoModelForImageTextToText.from_config(plain).save_pretrained(folder / "models/llava")
    text.pop("model_type")
    Qwen2ForCausalLM(Qwen2Config(**text)).save_pretrained(folder / "models/qwen2")
    return folder


@pytest.mark.parametrize("command", IN_TABLE)
def test_every_command_runs(project, monkeypatch, capsys, caplog, command):
    monkeypatch.chdir(project)
    words = shlex.split(command)[1:]
    quick = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"] if words[0] == "fit" else []
    assert run([*words, *quick]) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    if "BackboneInit" in command:
        tensors = len(open_state(project / "models/qwen2").keys())
        assert f"BackboneInit: {tensors} tensors of ImageTextModule copied from models/qwen2" in shown.err
    if "ThroughputLogger" in command:
        assert "samples/s" in shown.err + shown.out + caplog.text  # which of them depends on who set up the log first


def test_the_table_has_every_former_flag():
    flags = {"--dry_run", "--variant", "--force", "--inspect_data", "--inspect_weights", "--init_from_backbone"}
    assert flags | {"--backbone_model", "--throughput_log_steps", "--force_class"} <= set(re.findall(r"--\w+", TEXT))
    assert len(IN_TABLE) == 11


def test_the_groups_are_those_of_the_code():
    assert all(f"`{group}`" in TEXT for group in DEFAULT_GROUPS)
