"""The benchmark of start-up itself, one command."""

import json
import sys

import pytest

from benchmarks.history import entries
from benchmarks.startup import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def test_a_command_has_figures(tmp_path, capsys):
    options = ["--commands", "merge", "--runs", "1", "--no-peer", "--work", str(tmp_path)]
    assert main([*options, "--json", str(tmp_path / "figures.json")]) == 0
    (one,) = entries(json.loads((tmp_path / "figures.json").read_text()))
    assert one["subject"] == "`lit-wsl merge --help`"
    assert 0 < one["floor"] < one["wall"]
    assert one["command"] == "python -m benchmarks.startup --commands merge --runs 1 --no-peer"
    assert "| lit-wsl merge --help |" in capsys.readouterr().out
