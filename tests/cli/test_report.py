"""`lit-wsl report`: which runs it takes, what it writes, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from lit_wsl.cli.main import run
from lit_wsl.runs import RunLayout, record_run
from tests.cli.test_main import one_line
from tests.reporting.build import recorded
from tests.reporting.reading import Page
from tests.runs.build import bundle


@pytest.fixture
def layout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return RunLayout()


@pytest.fixture
def runs(layout):
    return [
        recorded(layout, (0.5, 0.7), params={"k": 20}),
        recorded(layout, (0.6, 0.8), params={"k": 30}, minutes=1),
        recorded(layout, (0.9, "no memory"), method="dare", params={}, minutes=2),
    ]


def written(path="report.html"):
    return Page(Path(path).read_text())


def shown(page):
    return [row[0].text for row in page.table("Runs and their scores").rows]


def test_runs_by_every_name(capsys, runs):
    assert run(["report", "best", runs[0].name, str(runs[0]), "latest"]) == 0
    told = capsys.readouterr().out
    assert told == "Best on test: run 1 ties k=30, lowest interference delta 0.6000, mean 0.7000.\nreport.html\n"
    assert shown(written()) == ["1 ties k=30", "2 ties k=20", f"3 dare {runs[2].name}"]


def test_without_a_name_the_newest(capsys, runs, layout):
    assert run(["report", "--output", "pages/new.html"]) == 0
    assert shown(written("pages/new.html")) == [f"1 dare {runs[2].name}", "2 ties k=30", "3 ties k=20"]
    assert run(["report", "--limit", "1", "--method", "ties"]) == 0
    page = written()
    assert shown(page) == [f"1 ties {runs[1].name}"]
    assert "the newest of 2" in page.text


def test_what_has_no_results_is_left_out_or_refused(capsys, runs, layout):
    empty = record_run(layout, bundle(results={}, minutes=5))
    damaged = recorded(layout, (0.1, 0.1), minutes=6)
    (damaged / "summary.json").write_text("{")
    assert run(["report"]) == 0
    page = written()
    assert len(shown(page)) == 3
    assert f"{empty.name} has no results" in page.text
    assert f"{damaged.name} is damaged" in page.text
    one_line(capsys, 1, ["report", str(empty)], "has no results", "evaluate-merged --config", "config.yaml")
    one_line(capsys, 1, ["report", str(damaged)], "is damaged")
    one_line(
        capsys, 1, ["report", runs[0].name, "--split", "validation"], "was not measured on 'validation' but on test"
    )


def test_no_such_run_names_the_nearest(capsys, runs, layout):
    typed = f"{runs[1].name[:-1]}9"
    one_line(capsys, 1, ["report", typed], f"There is no run {typed!r}", "Candidates:", "Did you mean 'run_")
    one_line(
        capsys,
        1,
        ["report", "--artifacts-dir", "elsewhere"],
        "There is no run in elsewhere/merged",
        "`--artifacts_dir` looks",
    )
    assert not (layout.root.parent / "report.html").exists()


def test_only_a_page_of_its_own_is_replaced(capsys, runs, tmp_path):
    assert run(["report"]) == 0
    assert run(["report", "latest"]) == 0
    (tmp_path / "notes.html").write_text("mine")
    one_line(capsys, 1, ["report", "--output", "notes.html"], "notes.html was not written by `lit-wsl report`")
    one_line(capsys, 1, ["report", "--output", str(tmp_path)], "is a directory")
    assert (tmp_path / "notes.html").read_text() == "mine"


def test_a_wrong_split_is_told(capsys, runs):
    assert run(["report", "--split", "tset"]) == 2
    assert "split" in capsys.readouterr().err


def test_it_needs_no_torch(runs):
    code = (
        "import sys; from lit_wsl.cli.main import run; "
        "assert run(['report']) == 0; sys.exit(any(m in sys.modules for m in ('torch', 'optuna', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
