"""Outputs that cannot be written: one line and exit code 1, before any work is done."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.test_main import one_line

OUTPUTS = {"--apply": "made.safetensors", "--save": "map.json", "--report": "report.html"}


@pytest.fixture
def argv(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = {"a.weight": torch.zeros(4, 3), "b.weight": torch.zeros(5, 4)}
    save_file(state, "one.safetensors")
    save_file({f"x.{name}": tensor for name, tensor in state.items()}, "two.safetensors")
    return ["map", "one.safetensors", "two.safetensors"]


@pytest.mark.parametrize("option", OUTPUTS)
@pytest.mark.parametrize("inside", ["", "new/folder/"])
@pytest.mark.parametrize("mode", [0o500, 0o600])
def test_a_directory_that_may_not_be_written(capsys, argv, option, inside, mode):
    locked = Path("locked")
    locked.mkdir()
    locked.chmod(mode)
    if os.access(locked, os.W_OK | os.X_OK):
        pytest.skip("root may write everywhere")
    try:
        one_line(capsys, 1, [*argv, option, f"locked/{inside}{OUTPUTS[option]}"], "locked", "cannot be")
    finally:
        locked.chmod(0o700)
    assert not list(locked.iterdir())


@pytest.mark.parametrize("option", OUTPUTS)
@pytest.mark.parametrize("inside", ["", "deeper/"])
def test_a_parent_that_is_a_file(capsys, argv, option, inside):
    Path("file").write_text("precious")
    path = f"file/{inside}{OUTPUTS[option]}"
    one_line(capsys, 1, [*argv, option, path], "cannot be used", "file is a file", "choose another")
    assert Path("file").read_text() == "precious"


def test_rename_says_the_same(capsys, argv):
    Path("file").touch()
    argv = ["rename", "one.safetensors", "--add_prefix", "x.", "--output", "file/out.safetensors"]
    one_line(capsys, 1, argv, "cannot be used", "file is a file")
