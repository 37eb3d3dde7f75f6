"""H4, G3 and what follows a sweep: the best point elsewhere, merged, and in a direct merge."""

import json
from dataclasses import replace

import pytest

from lit_wsl.errors import ConfigError, MergeError
from lit_wsl.sweep import Outcome, run_sweep
from lit_wsl.sweep.direct import optimise_merge, search_of
from lit_wsl.sweep.final import post_config
from tests.sweep.toys import Counted, config, grid, hill, swept


def test_g3_a_direct_merge_waits_for_points_that_other_processes_measure(tmp_path, monkeypatch):
    """Else it would merge at the best of those that happened to be finished."""
    seen, plain = [], run_sweep

    def joined(*args, **kwargs):
        result = plain(*args, **kwargs)
        seen.append(result.status)
        return replace(result, status="running") if len(seen) < 3 else result

    monkeypatch.setattr("lit_wsl.sweep.direct.run_sweep", joined)
    merged, result = optimise_merge(direct(tmp_path, budget=4), Counted())
    assert (len(seen), result.status) == (3, "complete")
    assert merged.optimizer is None


def elsewhere(directory, **given):
    return grid(directory, fields={"post_sweep_eval": {"split": "test", **given}})


def test_h4_the_best_point_is_measured_on_another_split(tmp_path):
    on_test = Counted(lambda params: Outcome({"a": 0.3, "b": 0.5}, {"a": {"interference_delta": 0.3}}))
    result = swept(elsewhere(tmp_path), post_objective=on_test)
    assert on_test.calls == [{"lambda": 0.4}]
    record = json.loads(result.path.read_text())["post_sweep_eval"]
    assert (record["split"], record["score"], record["mean"]) == ("test", 0.3, 0.4)
    assert record["params"] == {"lambda": 0.4}
    assert record["results"] == {"a": {"interference_delta": 0.3}}
    swept(elsewhere(tmp_path), post_objective=on_test)
    assert len(on_test.calls) == 1  # a sweep that is run again takes the result over


def test_h4_a_failure_elsewhere_is_recorded(tmp_path):
    def failing(params):
        raise RuntimeError("no such split")

    result = swept(elsewhere(tmp_path), post_objective=failing)
    assert result.summary["post_sweep_eval"]["error"] == "RuntimeError: no such split"
    assert result.status == "complete"


def test_h4_the_other_measurement_has_its_own_tasks_and_subset(tmp_path):
    one = grid(
        tmp_path,
        fields={"eval_subset": {"max_samples": 5}, "post_sweep_eval": {"split": "test", "eval_tasks": ["a"]}},
    )
    changed = post_config(one)
    assert (changed.split, changed.eval_tasks, changed.eval_subset) == ("test", ["a"], None)
    assert post_config(replace(one, post_sweep_eval={"enabled": False, "split": "test"})) is None
    assert post_config(replace(one, post_sweep_eval=None)) is None


def test_h4_without_a_measurement_of_its_own_it_merges_and_evaluates(tmp_path):
    """An objective of the caller's measures points; what is asked for elsewhere is not left out in silence."""
    with pytest.raises(ConfigError, match="A sweep measures tasks"):
        swept(elsewhere(tmp_path))


@pytest.mark.parametrize(
    ("given", "told"),
    [({"spilt": "test"}, "Did you mean 'split'"), ({"split": "validation"}, "measures what the sweep did")],
)
def test_h4_what_is_refused(tmp_path, given, told):
    with pytest.raises(ConfigError, match=told):
        swept(grid(tmp_path, fields={"post_sweep_eval": given}))


def test_nothing_follows_a_sweep_without_a_feasible_point(tmp_path):
    on_test = Counted()
    one = replace(elsewhere(tmp_path), search={"storage": "journal", "type": "grid", "grid": {"lambda": [1.5, 1.9]}})
    assert swept(one, post_objective=on_test).summary["post_sweep_eval"] is None
    assert not on_test.calls


def direct(directory, **params):
    one = config(directory, method_params={"k": 30})
    given = {"budget": 10, "seed": 7, "init_points": 4, "storage": "journal", **params}
    return replace(one, search=None, optimizer={"type": "bayes", "params": given})


def test_g3_a_direct_merge_takes_the_best_parameters(tmp_path):
    space = {"lambda": {"min": 0.0, "max": 1.5}}
    merged, result = optimise_merge(direct(tmp_path, space=space), Counted())
    assert merged.method_params == {"k": 30, "lambda": result.best_params["lambda"]}
    assert merged.method_params["lambda"] == pytest.approx(0.5, abs=0.1)
    assert (merged.optimizer, merged.search) == (None, None)
    again, _ = optimise_merge(direct(tmp_path, space=space), Counted(kill_at=1))
    assert again == merged


def test_g3_without_a_space_the_usual_parameters_are_searched_on_validation_rows(tmp_path):
    searched = search_of(direct(tmp_path))
    assert set(searched.search["space"]) == {"lambda", "k"}
    assert (searched.split, searched.search["type"]) == ("validation", "bayes")
    assert search_of(direct(tmp_path, split="test")).split == "test"
    with pytest.raises(ConfigError, match="no usual parameter"):
        search_of(replace(direct(tmp_path), method="uniform", method_params={}))
    with pytest.raises(ConfigError, match="Only `optimizer"):
        search_of(replace(direct(tmp_path), optimizer=None))


def test_g3_a_search_that_finds_nothing_is_an_error(tmp_path):
    with pytest.raises(MergeError, match="below the base"):
        optimise_merge(direct(tmp_path / "1"), lambda params: Outcome({"a": -1.0}))

    def failing(params):
        raise RuntimeError("broken")

    with pytest.raises(MergeError, match="broken"):
        optimise_merge(direct(tmp_path / "2"), failing)


def test_g3_ctrl_c_ends_the_merge(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        optimise_merge(direct(tmp_path), Counted(hill, interrupt_at=2))


def test_ctrl_c_during_what_follows_keeps_the_search(tmp_path):
    def interrupted(params):
        raise KeyboardInterrupt

    result = swept(elsewhere(tmp_path), post_objective=interrupted)
    assert (result.status, result.summary["status"], len(result.records)) == ("interrupted", "interrupted", 3)
    objective, on_test = Counted(), Counted()
    assert swept(elsewhere(tmp_path), objective, post_objective=on_test).status == "complete"
    assert (len(objective.calls), len(on_test.calls)) == (0, 1)
