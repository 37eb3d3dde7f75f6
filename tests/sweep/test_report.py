"""The page and the pictures of a sweep."""

import re

import pytest

from lit_wsl.sweep import Outcome
from lit_wsl.sweep.page import page_of
from lit_wsl.sweep.plots import plots_of
from lit_wsl.sweep.records import Record, ordinals, pareto_front
from lit_wsl.sweep.report import LiveReport
from lit_wsl.sweep.space import read_space
from tests.sweep.toys import BOTH, bayes, broken_above_one, config, grid, swept

SPACE = read_space({"x": {"min": 1e-3, "max": 1.0, "log": True}, "mode": {"values": ["a", "a longer <name>"]}})


def record(number, score, **fields):
    values = {"params": {"x": 0.1, "mode": "a longer <name>"}, "source": "search", "state": "complete", "mean": score}
    deltas = {} if score is None else {"a": score, "b": score + 0.1}
    return Record(number, **{**values, "score": score, "feasible": score is not None, "deltas": deltas, **fields})


def test_every_picture_is_drawn_and_the_page_holds_them_all(tmp_path):
    result = swept(bayes(tmp_path, 12, BOTH, type="random"), broken_above_one, report=True)
    folder = result.report.parent
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures == {"score_over_trials", "slices", "tasks"} | ({"importance"} if len(pictures) == 4 else set())
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in folder.glob("*.png"))
    page = result.report.read_text()
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)
    assert "b: no rows" in page
    assert page.count("<tr ") == 12


def test_no_password_of_a_database_is_written(tmp_path):
    from lit_wsl.sweep.export import summary_of
    from lit_wsl.sweep.settings import read_search
    from lit_wsl.sweep.storage import place_of
    from lit_wsl.sweep.study import SweepStudy

    one = grid(tmp_path)
    study = SweepStudy("sweep-a", place_of("journal", tmp_path), read_search(one.search), ["a"], constrained=False)
    search = {**one.search, "storage": "mysql://user:secret@host/studies"}
    summary = summary_of(study, {"method": "ties", "adapters": ["a"]}, search, status="running")
    assert summary["search"]["storage"] == "mysql://host/studies"
    assert "secret" not in page_of([], summary, {})


def test_importances_need_some_points_and_sum_to_one(tmp_path):
    from lit_wsl.sweep.settings import read_search
    from lit_wsl.sweep.storage import place_of
    from lit_wsl.sweep.study import SweepStudy

    one = bayes(tmp_path, 40, BOTH, type="random", fields={"constraint_nonnegative": False})

    def only_lambda(params):
        return Outcome({"a": 1 - abs(params["lambda"] - 0.5)})

    result = swept(one, only_lambda)
    settings = read_search(one.search)
    study = SweepStudy(
        result.summary["study"], place_of("journal", result.path.parent), settings, ["a"], constrained=False
    )
    shares = study.importances()
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["lambda"] > 0.6


def test_what_a_user_wrote_is_escaped():
    records = [record(0, 0.5), record(1, None, state="failed", error="<script>alert(1)</script>")]
    summary = {"method": "<b>", "tasks": ["a"], "adapters": [], "status": "complete", "finished": 2, "search": {}}
    page = page_of(records, summary, {})
    assert "<script>" not in page
    assert "<b>&" not in page
    assert "&lt;name&gt;" in page


@pytest.mark.parametrize(
    "records",
    [
        [record(0, 0.5)],
        [record(0, -7.0, feasible=False), record(1, -0.2, feasible=False)],
        [record(0, 0.5, deltas={})],
        [record(number, 0.1 * number) for number in range(9)],
        [record(0, None, state="failed", error="no"), record(1, 0.3)],
    ],
    ids=["one", "none feasible", "no deltas", "some", "failed first"],
)
def test_pictures_of_few_and_of_odd_points(records):
    pictures = plots_of(records, SPACE, {"x": 0.7, "mode": 0.3}, constrained=True)
    assert {"score_over_trials", "slices", "importance"} <= pictures.keys()
    assert ("tasks" in pictures) == bool(records[-1].deltas)


def test_nothing_is_drawn_of_nothing(tmp_path):
    assert plots_of([record(0, None, state="failed")], SPACE, {}, constrained=True) == {}
    result = swept(config(tmp_path, {"type": "grid", "grid": {"lambda": [1.5]}}), broken_above_one, report=True)
    assert "No point may be chosen" in result.report.read_text()


def test_drawing_waits_while_it_would_hold_the_sweep_up(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(LiveReport, "write", lambda self, *_: drawn.append(1))
    live = LiveReport(tmp_path)
    live.refresh(None, {})
    assert drawn == [1]
    live._took = 1e6
    live.refresh(None, {})
    assert drawn == [1]


def test_the_front_holds_what_nothing_dominates():
    def at(number, a, b):
        return record(number, min(a, b), deltas={"a": a, "b": b})

    records = [at(0, 0.1, 0.9), at(1, 0.5, 0.5), at(2, 0.4, 0.5), at(3, 0.9, 0.1), at(4, 0.5, 0.5)]
    assert [one.number for one in pareto_front(records)] == [0, 1, 3, 4]


def test_a_front_is_shown_on_the_page(tmp_path):
    result = swept(bayes(tmp_path, 12, type="nsga2", fields={"eval_tasks": ["a", "b"]}), report=True)
    assert "Pareto front" in result.report.read_text()
    assert "Pareto front" not in swept(grid(tmp_path / "2"), report=True).report.read_text()


def test_points_are_counted_from_one_without_what_was_interrupted():
    records = [record(0, 0.5), record(1, None, state="interrupted"), record(2, 0.6)]
    assert ordinals(records) == {0: 1, 2: 2}
