"""`lit-wsl export`: end to end from a Trainer's checkpoint, spelling, exit codes, one-line errors."""

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lit_wsl.callbacks.universal_checkpoint import UniversalCheckpointCallback
from lit_wsl.cli.main import run
from lit_wsl.models.lora import LoraSpec
from lit_wsl.state.writer import ShardedWriter
from lit_wsl.training.causal_lm import CausalLMModule
from tests.cli.test_main import one_line
from tests.models.checkpoints import Module, adapt, output, save
from tests.training.build import train


@pytest.fixture(scope="module")
def trained(untied, tmp_path_factory):
    """A checkpoint of a Trainer, and its module."""
    folder = tmp_path_factory.mktemp("trained")

    class Rows(CausalLMModule):
        """Takes bare rows of tokens."""

        def training_step(self, batch, batch_idx):
            return super().training_step({"input_ids": batch, "labels": batch}, batch_idx)

    module = Rows(str(untied), LoraSpec(rank=4))
    train(folder, module, epochs=1, callbacks=[UniversalCheckpointCallback()])
    return folder / "last.ckpt", module


def test_from_a_trainer_to_transformers_and_peft(capsys, trained, untied, tmp_path):
    path, module = trained
    assert run(["export", str(path), "--output", str(tmp_path / "hf")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{tmp_path / 'hf'}: hf, 21 tensors, ")
    assert shown.endswith(" KB, 3 files, verified\n")
    expected = output(module.model)
    torch.testing.assert_close(
        output(AutoModelForCausalLM.from_pretrained(tmp_path / "hf")), expected, rtol=0, atol=2e-5
    )
    assert run(["export", str(path), "--output", str(tmp_path / "adapter"), "--format", "adapter"]) == 0
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(untied), tmp_path / "adapter")
    torch.testing.assert_close(output(model), expected, rtol=0, atol=2e-5)


def test_underscore_and_hyphen_are_alike(trained, tmp_path):
    for option in ("--shard-size", "--shard_size"):
        argv = ["export", str(trained[0]), "--output", str(tmp_path / option), option, "20KB", "--dtype=bfloat16"]
        assert run(argv) == 0
        assert (tmp_path / option / "model.safetensors.index.json").exists()


def test_verification_can_be_left_out(capsys, trained, tmp_path):
    assert run(["export", str(trained[0]), "--output", str(tmp_path / "out"), "--verify", "false"]) == 0
    assert capsys.readouterr().out.endswith("not verified\n")


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--format", "adaptor"], 2, "format"),
        (["--dtype", "float"], 2, "dtype"),
        (["--outptu", "x"], 2, "Did you mean 'output'?"),
        (["--shard-sise=3GB"], 2, "Did you mean 'shard_size'?"),
        (["--shard_size", "much"], 1, "write for instance 5GB"),
        (["--backbone", "modle"], 1, "Did you mean 'model'?"),
        (["--base", "/nowhere"], 1, "does not exist"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(capsys, trained, tmp_path, more, code, words):
    one_line(capsys, code, ["export", str(trained[0]), "--output", str(tmp_path / "out"), *more], words)
    assert not (tmp_path / "out").exists()


def test_wrong_usage_and_sources_are_one_line(capsys, trained, tmp_path):
    out = ["--output", str(tmp_path / "out")]
    one_line(capsys, 2, ["exprot"], "Did you mean 'export'?")
    one_line(capsys, 2, ["export", str(trained[0])], "output")
    one_line(capsys, 2, ["export", *out], "checkpoint")
    one_line(capsys, 1, ["export", str(tmp_path / "none.ckpt"), *out], "none.ckpt", "does not exist")
    broken = tmp_path / "broken.ckpt"
    content = trained[0].read_bytes()
    for damaged in (content[: len(content) // 2], b"no checkpoint", b""):
        broken.write_bytes(damaged)
        one_line(capsys, 1, ["export", str(broken), *out], "broken.ckpt", "cannot be read")
    torch.save({"state_dict": Trap()}, broken)
    one_line(capsys, 1, ["export", str(broken), *out], "would run code")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("x")
    taken = ["export", str(trained[0]), "--output", str(tmp_path / "taken")]
    one_line(capsys, 1, taken, "not empty")
    one_line(capsys, 1, [*taken, "--overwrite"], "was not written by lit-wsl")
    assert not (tmp_path / "out").exists()


class Trap:
    """Runs code when a careless reader opens it."""

    def __reduce__(self):
        return (print, ("executed",))


def test_another_base_is_one_line_with_the_remedy(capsys, untied, tmp_path):
    module = Module(untied)
    adapt(module.model, r=4, target_modules=["q_proj"], init_lora_weights="pissa")
    argv = ["export", str(save(module, tmp_path / "a.ckpt")), "--output", str(tmp_path / "out"), "--format", "adapter"]
    one_line(capsys, 1, argv, "2 of 21 base tensors differ", "model.layers.0.self_attn.q_proj.weight", "--format hf")


def test_an_interrupted_export_leaves_nothing_and_goes_on(trained, tmp_path, monkeypatch):
    code = (
        "import os, signal, sys; from lit_wsl.state import writer; count = 0; real = writer.ShardedWriter.finish\n"
        "def finish(self, name):\n    global count; real(self, name); count += 1\n"
        "    if count == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "writer.ShardedWriter.finish = finish\nfrom lit_wsl.cli.main import run; run(sys.argv[1:])"
    )
    argv = ["export", str(trained[0]), "--output", str(tmp_path / "out")]
    assert subprocess.run([sys.executable, "-c", code, *argv], check=False).returncode == -9
    assert not (tmp_path / "out").exists()
    assert len((tmp_path / "out.partial" / ".journal").read_text().splitlines()) == 6
    written, write = [], ShardedWriter.write
    monkeypatch.setattr(ShardedWriter, "write", lambda self, *a: (written.append(a[0]), write(self, *a))[1])
    assert run(argv) == 0
    assert len(written) == 21 - 5
    assert run([*argv[:-1], str(tmp_path / "whole")]) == 0
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole"))
    assert one == other


@pytest.mark.parametrize("command", ["export", "inspect checkpoint"])
def test_help_loads_nothing_heavy(command):
    words = ("torch", "transformers", "peft", "lightning")
    code = (
        f"import sys; from lit_wsl.cli.main import run; assert run({command.split()!r} + ['--help']) == 0; "
        f"print([m for m in {words!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "checkpoint" in done.stdout


def test_a_configuration_file_equals_flags(trained, tmp_path):
    settings = {"checkpoint": str(trained[0]), "output": str(tmp_path / "out"), "format": "safetensors"}
    (tmp_path / "export.json").write_text(json.dumps(settings))
    assert run(["export", "--config", str(tmp_path / "export.json")]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
