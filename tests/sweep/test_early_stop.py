"""H5: a search ends when neither its score grows nor its points move."""

import json

import pytest

from lit_wsl.errors import ConfigError
from lit_wsl.sweep.early_stop import EarlyStop, read_early_stop
from lit_wsl.sweep.records import Record
from tests.sweep.toys import Counted, bayes, grid, swept


def records(scores, places=None):
    places = places or [0.1 * at for at in range(len(scores))]
    return [
        Record(at, {"x": place, "mode": "a"}, "search", "complete", score, score, feasible=True)
        for at, (score, place) in enumerate(zip(scores, places, strict=True))
    ]


def test_h5_it_stops_where_the_score_no_longer_grows():
    stop = EarlyStop(min_evals=4, patience=3, min_score_delta=0.01)
    assert stop.reason(records([0.1, 0.5, 0.2, 0.505])) is None  # in the latest three, it has grown from 0.1
    assert "best score grew by 0.005" in stop.reason(records([0.5, 0.2, 0.505, 0.3]))


def test_h5_not_before_so_many_points():
    assert EarlyStop(min_evals=6, patience=2).reason(records([0.5] * 5)) is None
    assert EarlyStop(min_evals=5, patience=2).reason(records([0.5] * 5)) is not None
    assert EarlyStop(min_evals=1, patience=5).reason(records([0.5] * 5)) is None  # nothing before to compare with


def test_h5_it_stops_where_the_points_no_longer_move():
    scores, near = [0.1, 0.5, 0.6, 0.7], [0.0, 0.5, 0.501, 0.502]
    stop = EarlyStop(min_evals=4, patience=2, min_score_delta=0.0, param_resolution=0.01)
    assert "no longer moved" in stop.reason(records(scores, near))
    assert stop.reason(records(scores, [0.0, 0.2, 0.4, 0.6])) is None
    by_name = EarlyStop(min_evals=4, patience=2, min_score_delta=0.0, param_resolution={"x": 1e-4})
    assert by_name.reason(records(scores, near)) is None


def test_h5_both_may_be_required():
    stop = EarlyStop(min_evals=4, patience=2, min_score_delta=0.01, param_resolution=0.01, require_both=True)
    assert stop.reason(records([0.1, 0.5, 0.5, 0.5], [0.0, 0.2, 0.4, 0.6])) is None
    assert stop.reason(records([0.1, 0.5, 0.6, 0.7], [0.0, 0.5, 0.501, 0.502])) is None
    assert stop.reason(records([0.1, 0.5, 0.5, 0.5], [0.0, 0.5, 0.501, 0.502])) is not None


def test_h5_it_can_be_off():
    assert EarlyStop(enabled=False, min_evals=1, patience=1).reason(records([0.5] * 9)) is None
    assert read_early_stop(None) is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"patience": 0}, "patience >= 1"),
        ({"patience": 2.5}, "`patience` must be a whole number"),
        ({"enabled": "no"}, "`enabled` must be true or false"),
        ({"min_score_delta": float("nan")}, "min_score_delta"),
        ({"min_evals": 0}, "min_evals >= 1"),
        ({"min_score_delta": -1}, "min_score_delta"),
        ({"param_resolution": -0.1}, "param_resolution"),
        ({"require_both": True}, "needs `param_resolution`"),
        ({"patiance": 3}, "Did you mean 'patience'"),
        (5, "must be a mapping"),
    ],
)
def test_h5_what_is_refused(given, told):
    with pytest.raises(ConfigError, match=told):
        read_early_stop(given)


@pytest.mark.parametrize("key", ["early_stop", "early_stopping"])
def test_h5_a_search_that_stopped_early_says_so_and_stays_stopped(tmp_path, key):
    stop = {"min_evals": 6, "patience": 3, "min_score_delta": 0.5}
    objective = Counted()
    one = bayes(tmp_path, 30, **{key: stop})
    result = swept(one, objective)
    assert result.status == "early_stopped"
    assert "best score grew" in result.reason
    assert 6 <= len(objective.calls) < 15
    summary = json.loads(result.path.read_text())
    assert (summary["status"], summary["reason"]) == ("early_stopped", result.reason)
    assert swept(one, objective).status == "early_stopped"
    assert len(objective.calls) == len(result.records)


def test_h5_a_grid_is_measured_to_its_end(tmp_path):
    stop = {"min_evals": 1, "patience": 1, "min_score_delta": 9.0}
    assert len(swept(grid(tmp_path, (0.1, 0.2, 0.3, 0.4), early_stop=stop)).records) == 4


def test_h5_pictures_are_drawn_while_the_search_runs(tmp_path):
    seen = []

    def objective(params):
        seen.append(sorted(path.name for path in tmp_path.rglob("*.png")))
        return Counted()(params)

    swept(grid(tmp_path), objective, report=True)
    assert seen[0] == []
    assert "score_over_trials.png" in seen[1]
