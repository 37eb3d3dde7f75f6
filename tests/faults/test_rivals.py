"""Processes that write one output at the same time: one wins, the others wait or refuse, and the output is whole."""

import os
import sys
from pathlib import Path

import pytest

from lit_wsl.cli.main import run
from tests.faults.test_interrupted import inputs as inputs
from tests.faults.test_interrupted import snapshot, words

COMMANDS = {
    "merge": "merge --models {tuned0} {tuned1} --base {base} --output out --overwrite --method ties",
    "merge to an adapter": "merge --adapters {a1} {a2} --output out --overwrite --output_format adapter --base {bert}",
    "export": "export {tuned0} --output out --overwrite --format safetensors",
    "map": "map {bert} {bert} --apply out --overwrite",
    "rename": "rename {base} --add_prefix x. --output out.safetensors --overwrite",
    "rename a directory": "rename {bert} --add_prefix x. --output out --overwrite",
    "migrate-config": "migrate-config {former} --output out.yaml --overwrite",
    "compare": "compare {base} {tuned0} --output_dir out --overwrite --threads 1",
    "report": "report --artifacts_dir {artifacts} --output out.html",
}
PROCESSES = 3
TIMES = 2


def start(argv, folder, said):
    """Run a command in a fork once the parent lets all of them go; returns the child and the way to let it go."""
    gate, opener = os.pipe()
    child = os.fork()
    if child:
        os.close(gate)
        return child, opener
    code = 99
    try:
        os.close(opener)
        os.chdir(folder)
        for stream, path in ((1, os.devnull), (2, said)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.read(gate, 1)
        code = run(argv)
        sys.stderr.flush()
    finally:
        os._exit(code)


@pytest.mark.parametrize("name", COMMANDS)
def test_one_wins_and_the_output_is_whole(tmp_path, monkeypatch, inputs, name):
    argv = words(COMMANDS[name], inputs)
    alone, work = tmp_path / "alone", tmp_path / "work"
    for folder in (alone, work):
        folder.mkdir()
    monkeypatch.chdir(alone)
    assert run(argv) == 0
    expected = snapshot(alone)
    for _ in range(TIMES):
        said = [tmp_path / f"said{number}" for number in range(PROCESSES)]
        started = [start(argv, work, path) for path in said]
        for _, opener in started:
            os.close(opener)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in started]
        told = [Path(path).read_text() for path in said]
        assert 0 in codes, told
        for code, text in zip(codes, told, strict=True):
            assert code in (0, 1), (codes, told)
            assert code == 0 or "Another process is writing" in text or "was not written by lit-wsl" in text, told
            assert text.count("lit-wsl:") == code, told
            assert "Traceback" not in text
        found = snapshot(work)
        assert found.keys() == expected.keys()
        assert all(found[one] == data for one, data in expected.items() if one.endswith(("safetensors", "yaml")))
