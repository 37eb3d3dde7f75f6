"""Runs that came from a sweep show it: the history, the best so far, what moved the score."""

import json
import re
from itertools import pairwise

import pytest

from lit_wsl.reporting.chosen import recent_runs
from lit_wsl.reporting.history import history
from lit_wsl.reporting.report import gather
from lit_wsl.reporting.sweeps import points_of, sweeps_of
from lit_wsl.runs import RunLayout, list_runs, read_run
from lit_wsl.sweep.importance import importances_of
from lit_wsl.sweep.settings import read_search
from lit_wsl.sweep.storage import place_of
from lit_wsl.sweep.study import SweepStudy
from tests.reporting.build import page_of, recorded, sweep_file
from tests.sweep.toys import BOTH, bayes, swept

POINTS = [(20, 1.0, 0.5), (30, 0.5, -0.2), (40, 0.7, None), (30, 1.0, 0.6), (50, 0.3, 0.4)]


@pytest.fixture
def layout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return RunLayout()


def test_points_and_the_best_so_far(layout):
    points = points_of(json.loads(sweep_file(layout, POINTS).read_text()))
    assert [one.score for one in points] == [0.5, -0.2, None, 0.6, 0.4]
    assert [one.is_feasible for one in points] == [True, False, False, True, True]
    assert [one.best_so_far for one in points] == [0.5, 0.5, 0.5, 0.6, 0.6]


def test_a_run_is_the_point_with_its_parameters(layout):
    recorded(layout, (0.5, 0.5), params={"k": 30, "lambda": 1.0})
    recorded(layout, (0.5, 0.5), params={"k": 31, "lambda": 1.0}, minutes=1)
    recorded(layout, (0.5, 0.5), method="dare", params={"k": 30, "lambda": 1.0}, minutes=2)
    path = sweep_file(layout, POINTS)
    (sweep,) = sweeps_of(list_runs(layout), layout)
    assert (sweep.path, dict(sweep.runs)) == (path.resolve(), {0: 3})
    page = page_of(layout)
    table = page.table("Points of the sweep")
    assert [row[3].value for row in table.rows] == [0.5, -0.2, None, 0.6, 0.4]
    assert [row[5].value for row in table.rows] == [0.5, 0.5, 0.5, 0.6, 0.6]
    assert table.rows[3][6].text == "run 3"
    assert table.rows[2][6].text == "out of memory"
    assert "is point 4, its best" in page.text


@pytest.mark.parametrize("fixed", [{"method_params": {"k": 7}}, {"merge_mode": "strict"}, {"method": "dare"}])
def test_a_sweep_of_other_settings_is_another(layout, fixed):
    recorded(layout, (0.5, 0.5), params={"k": 30, "lambda": 1.0}, metadata={"merge_mode": "common"})
    points = [(30, 1.0, 0.6)]
    path = sweep_file(layout, points, **fixed)
    if "method_params" in fixed:
        summary = json.loads(path.read_text())
        del summary["runs"][0]["params"]["k"]
        path.write_text(json.dumps(summary))
    assert sweeps_of(list_runs(layout), layout) == []


def test_a_searched_path_is_looked_up_in_the_configuration(layout):
    config = {"method": "ties", "transforms": [{"type": "drop", "params": {"density": 0.3}}]}
    recorded(layout, (0.5, 0.5), params={"lambda": 1.0}, config=config)
    path = sweep_file(layout, [(20, 1.0, 0.5), (30, 1.0, 0.6)], transforms=[{"type": "drop", "params": {}}])
    summary = json.loads(path.read_text())
    for run, density in zip(summary["runs"], (0.2, 0.3), strict=True):
        run["params"] = {"transforms[0].params.density": density, "lambda": 1}
    path.write_text(json.dumps(summary))
    (sweep,) = sweeps_of(list_runs(layout), layout)
    assert dict(sweep.runs) == {0: 1}


def test_what_a_sweep_merged_came_from_it(layout):
    path = sweep_file(layout, POINTS)
    merged = path.with_suffix("") / "merged"
    recorded(layout, (0.5, 0.5), directory=merged)
    (sweep,) = sweeps_of([read_run(merged)], layout)
    assert dict(sweep.runs) == {0: 3}


def test_a_damaged_sweep_is_left_out(layout, caplog):
    recorded(layout, (0.5, 0.5), params={"k": 30, "lambda": 1.0})
    sweep_file(layout, POINTS).write_text("{")
    assert gather(recent_runs(layout), layout).sweeps == []
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("kind", ["random", "nsga2"])
def test_importance_is_that_of_the_sweeps_own_page(tmp_path, kind):
    one = bayes(tmp_path, 16, BOTH, {"eval_tasks": ["a", "b"]}, type=kind)
    result = swept(one)
    settings = read_search(one.search)
    place = place_of("journal", result.path.parent)
    study = SweepStudy(result.summary["study"], place, settings, ["a", "b"], constrained=True)
    shares = importances_of(json.loads(result.path.read_text()))
    assert shares == pytest.approx(study.importances())
    assert sum(shares.values()) == pytest.approx(1.0)


def test_importance_needs_points_and_dimensions(layout):
    summary = json.loads(sweep_file(layout, POINTS).read_text())
    assert importances_of(summary) == {}
    assert importances_of({}) == {}
    assert importances_of({**summary, "search": {"type": "nonsense"}}) == {}


def test_importance_is_on_the_page(layout):
    recorded(layout, (0.5, 0.5), params={"k": 1, "lambda": 0.0})
    points = [(1 + at * 7 % 90, (at * 13 % 20) / 10, 0.9 - at * 7 % 90 / 100) for at in range(20)]
    path = sweep_file(layout, points)
    shares = importances_of(json.loads(path.read_text()))
    assert shares["k"] > shares["lambda"]
    text = "".join(page_of(layout).text.split())
    assert f"k{shares['k']:.4f}lambda{shares['lambda']:.4f}" in text


def test_history_has_every_point(layout):
    points = points_of(json.loads(sweep_file(layout, [*POINTS, (9, 0.1, -7.0)]).read_text()))
    svg = history(points, {3: "run 1"})
    assert svg.count('<circle class="point"') == 3
    assert svg.count('<circle class="refused"') == 1
    assert svg.count('<path class="refused"') == 1, "far below: a triangle"
    assert svg.count('<path class="failed"') == 1
    assert ">run 1</text>" in svg
    assert "rises from 0.5000 to 0.6000" in svg
    assert history([one for one in points if one.score is None], {}) == ""
    assert history(points[:1], {}).count("<circle") == 1


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.95), (0.1, 0.12), (-1.0, 1.0), (0.2, 0.2)])
def test_the_axis_of_scores_is_labelled_with_what_stands_there(low, high):
    points = points_of({"runs": [{"params": {}, "score": score, "state": "complete"} for score in (low, high)]})
    ticks = re.findall(r'<text class="end" x="[^"]*" y="([^"]*)"[^>]*>([^<]*)<', history(points, {}))
    places, labels = [float(place) for place, _ in ticks], [float(label) for _, label in ticks]
    steps = [after - before for before, after in pairwise(labels)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    pixels = (places[-1] - places[0]) / (labels[-1] - labels[0])
    assert places == pytest.approx([places[0] + pixels * (label - labels[0]) for label in labels], abs=0.2)
