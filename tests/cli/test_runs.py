"""`lit-wsl runs`: what it lists, shows, compares and chooses."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from lit_wsl.cli.main import run
from lit_wsl.runs import RunLayout, hash_inputs
from tests.cli.test_main import one_line
from tests.runs.build import record

ROOT = ("--artifacts_dir", "artifacts")


@pytest.fixture
def layout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return RunLayout()


@pytest.fixture
def runs(layout):
    """Two runs of TIES, the first better; a failed one of DARE."""
    first = record(layout, (0.5, 0.7), params={"k": 20, "lambda": 1.0}, metadata={"merge_mode": "common"})
    second = record(layout, (0.4, 0.9), params={"k": 30, "lambda": 1.0}, minutes=1, metadata={"merge_mode": "strict"})
    return [first, second, record(layout, (0.9, "no memory left"), method="dare", params={}, minutes=2)]


def printed(capsys, *argv):
    capsys.readouterr()
    assert run(["runs", *argv]) == 0
    return capsys.readouterr().out


def test_list(capsys, runs):
    out = printed(capsys, "list")
    rows = [line for line in out.splitlines() if "run_2025" in line]
    assert [line.split()[1] for line in rows] == [path.name for path in runs[::-1]], "newest first"
    assert "k=20, lambda=1" in rows[2]
    assert "0.5000" in rows[2]
    assert "best" in rows[2]
    assert "failed" in rows[0]
    assert "best" not in rows[1]
    found = json.loads(printed(capsys, "list", "--json", "--method", "ties", "--limit", "1"))
    assert [one["run_id"] for one in found] == [runs[1].name]
    assert found[0]["scores"][0]["lowest"] == 0.4
    assert len(json.loads(printed(capsys, "list", "--json", "--tasks", "tweets", "intent"))) == 3
    assert json.loads(printed(capsys, "list", "--json", "--tasks", "tweets")) == []
    assert printed(capsys, "list", "--artifacts-dir", "elsewhere") == "No runs in elsewhere/merged.\n"


def test_show(capsys, runs, tmp_path):
    out = printed(capsys, "show", "best")
    for word in (
        runs[0].name,
        "ties",
        "k=20, lambda=1",
        "intent, tweets",
        "accuracy",
        "0.5000",
        "common",
        "no weights",
    ):
        assert word in out
    assert "Interference delta on test: lowest 0.5000, mean 0.6000 over intent, tweets." in out
    assert f"Repeat it: lit-wsl evaluate-merged --config {runs[0]}/config.yaml" in out
    out = printed(capsys, "show", runs[2].name)
    assert "no memory left" in out
    assert "No score on test: tweets failed." in out
    found = json.loads(printed(capsys, "show", str(runs[0]), "--json"))
    assert found["results"]["test"]["intent"]["interference_delta"] == 0.5
    assert found["metadata"]["merge_mode"] == "common"
    assert found["repeat"].endswith("config.yaml")


def test_show_says_whether_the_sources_are_what_was_merged(capsys, layout, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        save_file({"w": torch.ones(1)}, tmp_path / name / "model.safetensors")
    path = record(layout, inputs=hash_inputs(["a", "b", "c"]))
    save_file({"w": torch.zeros(1)}, tmp_path / "b/model.safetensors")
    (tmp_path / "c/model.safetensors").unlink()
    found = json.loads(printed(capsys, "show", str(path), "--check", "--json"))
    assert found["inputs_now"] == {"a": "same", "b": "changed", "c": "missing"}
    out = printed(capsys, "show", str(path), "--check")
    assert [state in out for state in ("same now", "changed now", "missing now")] == [True] * 3


def test_compare(capsys, runs):
    out = printed(capsys, "compare", *(path.name for path in runs[:2]))
    lines = out.splitlines()
    (intent,) = [line for line in lines if "intent " in line and "interference_delta" in line]
    assert "0.5000" in intent
    assert "0.4000 (-0.1000)" in intent
    (mean,) = [line for line in lines if "mean interference_delta" in line]
    assert "0.6500 (+0.0500)" in mean
    settings = out[out.index("Settings that differ") :]
    assert all(word in settings for word in ("params.k", "20", "30", "merge_mode", "strict"))
    assert "lambda" not in settings
    found = json.loads(printed(capsys, "compare", "best", runs[2].name, "--json"))
    assert found["split"] == "test"
    rows = {(row["task"], row["metric"]): row for row in found["rows"]}
    assert rows["intent", "interference_delta"]["deltas"][1] == pytest.approx(0.4)
    assert rows["tweets", "interference_delta"]["values"] == [0.7, None]
    assert rows["tweets", "accuracy"]["notes"] == ["", "failed: no memory left"]
    assert found["differing"]["method"] == ["ties", "dare"]
    assert found["differing"]["params.k"] == [20, None]


def test_compare_the_same_run_and_runs_without_common_rows(capsys, layout, runs):
    out = printed(capsys, "compare", runs[0].name, str(runs[0]))
    assert "All settings are the same." in out
    other = record(layout, (0.1, 0.1), key="validation", minutes=9)
    assert "not measured on the same rows" in printed(capsys, "compare", runs[0].name, other.name)
    one_line(
        capsys, 1, ["runs", "compare", runs[0].name, other.name, "--split", "test"], "not measured on 'test'", "none"
    )
    one_line(capsys, 1, ["runs", "compare", runs[0].name], "at least two runs")


def test_best(capsys, layout, runs):
    """A9.7"""
    assert printed(capsys, "best").splitlines()[0] == str(runs[0])
    some = record(layout, (0.99, 0.99), key="test__subset_1", minutes=5)
    assert printed(capsys, "best").splitlines()[0] == str(runs[0]), "not of a subset"
    assert printed(capsys, "best", "--split", "test", "--subset", "subset_1").splitlines()[0] == str(some)
    found = json.loads(printed(capsys, "best", "--json", "--split", "test"))
    assert (found["path"], found["score"]["lowest"]) == (str(runs[0]), 0.5)
    one_line(capsys, 1, ["runs", "best", "--method", "dare"], "has a score to compare", "lit-wsl runs list")


def test_wrong_usage_is_one_line(capsys, runs):
    one_line(capsys, 1, ["runs", "show", "run_1999"], "no run 'run_1999'", "Candidates", runs[0].name)
    one_line(capsys, 2, ["runs", "best", "--split", "tset"], "tset", "'test'")
    one_line(capsys, 2, ["runs", "shwo"], "no command 'runs shwo'", "runs show")
    (runs[0] / "summary.json").write_text("{")
    one_line(capsys, 1, ["runs", "show", str(runs[0])], "summary.json is damaged")
    assert "damaged" in printed(capsys, "list")


def test_runs_are_plain_files(runs):
    """Neither the room nor its commands import torch."""
    code = "import sys; from lit_wsl.cli.runs import run_list; import lit_wsl.cli.run_tables, lit_wsl.runs.record; "
    code += "from lit_wsl.runs import *; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"
