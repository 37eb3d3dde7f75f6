"""Two processes that train, gather or sweep into one place: each ends well or refuses, and no file is broken."""

import json
import os
from pathlib import Path

import pytest

from lit_wsl.training.checkpoint_io import read_checkpoint
from tests.faults.test_interrupted import snapshot
from tests.faults.test_interrupted_training import COMMANDS
from tests.faults.test_interrupted_training import inputs as inputs
from tests.faults.test_rivals import start


@pytest.mark.parametrize("name", ["fit", "merge-sweep"])
def test_no_file_is_broken(tmp_path, monkeypatch, inputs, name):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("LIT_WSL_CACHE", str(tmp_path / "cache"))
    said = [tmp_path / f"said{number}" for number in range(2)]
    started = [start([word.format(**inputs) for word in COMMANDS[name].split()], work, path) for path in said]
    for _, opener in started:
        os.close(opener)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in started]
    told = [Path(path).read_text() for path in said]
    assert 0 in codes, told
    assert set(codes) <= {0, 1}, told
    assert not any("Traceback" in text for text in told), told
    for path in snapshot(work):
        assert ".partial" not in path
        if path.endswith(".json"):
            json.loads((work / path).read_text())
        elif path.endswith(".ckpt"):
            assert read_checkpoint(work / path)["state_dict"]
