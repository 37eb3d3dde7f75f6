"""G9, A11.6, A11.17: a study outlives its processes, and any number of them share it."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.sweep.storage import place_of
from tests.sweep.toys import Counted, Noted, Together, Unpicklable, bayes, config, grid, hill, points, swept

SQLITE = {"storage": None}


def in_a_process(one, objective, **options):
    process = multiprocessing.get_context("fork").Process(target=swept, args=(one, objective), kwargs=options)
    process.start()
    return process


@pytest.mark.parametrize("storage", [None, "journal"])
@pytest.mark.parametrize("kind", ["tpe", "cmaes", "bayes"])
def test_g9_a_killed_search_continues_with_the_points_that_it_would_have_measured(tmp_path, kind, storage):
    space = {"lambda": {"min": 0.0, "max": 2.0}, "k": {"type": "int", "min": 5, "max": 80}}
    killed, whole = (bayes(tmp_path / name, 8, space, type=kind, storage=storage) for name in ("killed", "whole"))
    process = in_a_process(killed, Counted(kill_at=6))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    summary = json.loads(next((tmp_path / "killed").rglob("sweep_*.json")).read_text())
    assert (summary["status"], len(summary["runs"])) == ("running", 5)
    objective = Counted()
    result = swept(killed, objective)
    assert len(objective.calls) == 3
    assert [one.state for one in result.records].count("interrupted") == 1
    assert points(result) == points(swept(whole))
    assert (tmp_path / "killed" / "sweeps" / f"study.{'db' if storage is None else 'journal'}").exists()
    assert len([*(tmp_path / "killed" / "sweeps").glob("sweep_*.json")]) == 1


def test_g9_a_killed_grid_measures_the_point_again(tmp_path):
    one = grid(tmp_path, (0.1, 0.2, 0.3), **SQLITE)
    process = in_a_process(one, Counted(kill_at=2))
    process.join()
    objective = Counted()
    result = swept(one, objective)
    assert [call["lambda"] for call in objective.calls] == [0.2, 0.3]
    assert result.summary["finished"] == 3
    assert len(result.summary["runs"]) == 3


def test_a11_17_a_complete_sweep_is_not_measured_again_but_a_larger_budget_continues_it(tmp_path):
    objective = Counted()
    first = swept(bayes(tmp_path, 4), objective)
    again = swept(bayes(tmp_path, 4), objective)
    assert points(first) == points(again)
    assert len(objective.calls) == 4
    more = swept(bayes(tmp_path, 6), objective)
    assert points(more)[:4] == points(first)
    assert len(objective.calls) == 6
    assert more.path == first.path


def test_a11_17_another_question_is_another_study(tmp_path):
    results = [
        swept(bayes(tmp_path, 3)),
        swept(bayes(tmp_path, 3, seed=9)),
        swept(bayes(tmp_path, 3, fields={"method_params": {"k": 50}})),
        swept(bayes(tmp_path, 3, fields={"split": "test"})),
        swept(bayes(tmp_path, 3, type="tpe")),
    ]
    assert len({one.summary["study"] for one in results}) == len({one.path for one in results}) == 5


def test_a11_17_the_content_of_sources_is_part_of_the_question(tmp_path):
    objective = Counted()
    objective.identity = "one"
    first = swept(bayes(tmp_path, 3), objective)
    objective.identity = "two"
    assert swept(bayes(tmp_path, 3), objective).path != first.path
    assert len(objective.calls) == 6


@pytest.mark.parametrize("storage", [None, "journal"])
def test_a11_6_ctrl_c_keeps_what_was_measured(tmp_path, storage):
    one = bayes(tmp_path, 6, storage=storage)
    result = swept(one, Counted(interrupt_at=4))
    assert result.status == "interrupted"
    assert len(points(result)) == 3
    summary = json.loads(result.path.read_text())
    assert (summary["status"], len(summary["runs"])) == ("interrupted", 3)
    assert summary["best_score"] == result.best.score
    objective = Counted()
    assert swept(one, objective).status == "complete"
    assert len(objective.calls) == 3


@pytest.mark.parametrize("storage", [None, "journal"])
def test_workers_share_one_study_and_its_budget(tmp_path, storage):
    one = bayes(tmp_path / "out", 10, type="random", storage=storage)
    result = swept(one, Together(tmp_path / "notes", 3), workers=3)
    notes = [*(tmp_path / "notes").iterdir()]
    assert len(notes) == len(points(result)) == 10
    assert len({note.name.split("-")[0] for note in notes}) == 3
    assert len({str(params) for params, _ in points(result)}) == 10
    assert result.status == "complete"
    assert sorted({one.worker for one in result.records}) != [None]


def test_workers_share_a_grid_without_repetition(tmp_path):
    values = [0.1 * at for at in range(12)]
    one = grid(tmp_path / "out", values, **SQLITE)
    result = swept(one, Together(tmp_path / "notes", 2), workers=2)
    assert len([*(tmp_path / "notes").iterdir()]) == 12
    assert sorted(one.params["lambda"] for one in result.records) == pytest.approx(values)


def test_the_same_command_elsewhere_joins(tmp_path):
    one = bayes(tmp_path / "out", 8, type="tpe", storage=None)
    other = in_a_process(one, Together(tmp_path / "notes", 2))
    result = swept(one, Together(tmp_path / "notes", 2))
    other.join()
    assert other.exitcode == 0
    notes = [*(tmp_path / "notes").iterdir()]
    assert len(notes) == 8
    assert len({note.name.split("-")[0] for note in notes}) == 2
    final = swept(one)
    assert (final.status, len(points(final))) == ("complete", 8)
    assert result.status in ("complete", "running")
    assert json.loads(final.path.read_text())["status"] == "complete"


def test_a_worker_that_dies_leaves_its_point_to_the_others(tmp_path):
    one = bayes(tmp_path / "out", 6, type="random")
    dying = in_a_process(one, Counted(kill_at=2))
    result = swept(one, Noted(tmp_path / "notes", 0.1))
    dying.join()
    final = swept(one)
    assert len(points(final)) == 6
    assert result.summary["study"] == final.summary["study"]


def test_several_workers_need_an_objective_that_can_be_pickled(tmp_path):
    with pytest.raises(ConfigError, match="pickled"):
        swept(bayes(tmp_path, 4), lambda params: hill(params), workers=2)
    with pytest.raises(ConfigError, match="pickled"):
        swept(bayes(tmp_path, 4), Unpicklable(), workers=2)


def test_ctrl_c_ends_every_worker(tmp_path):
    code = (
        "from tests.sweep.toys import *\n"
        f"one = bayes({str(tmp_path / 'out')!r}, 400, type='random')\n"
        "if __name__ == '__main__':\n"
        f"    result = swept(one, Noted({str(tmp_path / 'notes')!r}, 0.1), workers=2)\n"
        "    print(result.status, len(points(result)))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and len(_processes(tmp_path)) < 2:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert out.startswith("interrupted")
    assert len(_processes(tmp_path)) == 2
    before = len([*(tmp_path / "notes").iterdir()])
    time.sleep(0.5)
    assert len([*(tmp_path / "notes").iterdir()]) == before


def _processes(tmp_path):
    folder = tmp_path / "notes"
    return {note.name.split("-")[0] for note in folder.iterdir()} if folder.exists() else set()


def test_where_a_study_lives(tmp_path):
    assert place_of(None, tmp_path).url == f"sqlite:///{tmp_path}/study.db"
    assert place_of("journal", tmp_path).url == str(tmp_path / "study.journal")
    assert place_of(str(tmp_path / "x" / "shared.log"), tmp_path).is_journal
    assert place_of(f"sqlite:///{tmp_path}/other.db", tmp_path).beside == tmp_path / "other.db"
    server = place_of("mysql://me:secret@host/db", tmp_path)
    assert "secret" not in str(server)
    assert "secret" not in str(server.beside)
    with pytest.raises(ConfigError, match="is the directory"):
        place_of(str(tmp_path), tmp_path)


def test_a_damaged_study_is_one_line(tmp_path):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "study.db").write_text("no database at all, but text that is long enough to be read")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        swept(config(tmp_path, {"type": "grid", "grid": {"lambda": [0.5]}, **SQLITE}))


def test_points_of_another_machine_are_given_up_after_a_day(tmp_path, monkeypatch):
    from lit_wsl.sweep import study as room
    from lit_wsl.sweep.settings import read_search
    from lit_wsl.sweep.storage import Place

    place = Place(f"sqlite:///{tmp_path}/server.db", tmp_path / "study-1", is_journal=False, is_shared=False)
    settings = read_search({"type": "random", "budget": 2, "seed": 0, "space": {"x": {"min": 0, "max": 1}}})
    study = room.SweepStudy("sweep-1", place, settings, ["a"], constrained=True)
    assert study.ask("elsewhere.12.abcdef") is not None
    assert study.ask("elsewhere.12.abcdef") is not None
    assert study.ask("elsewhere.13.abcdef") is None
    monkeypatch.setattr(room, "LONGEST_SECONDS", 0)
    assert study.ask("elsewhere.13.abcdef") is not None
    assert [one.state for one in study.records()] == ["interrupted", "interrupted", "running"]
