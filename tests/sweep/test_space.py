"""Spaces and searches: what they accept, what they refuse, and when two points are one."""

import math

import pytest

from lit_wsl.errors import ConfigError
from lit_wsl.sweep.settings import read_search
from lit_wsl.sweep.space import key_of, read_grid, read_space


def dimension(given):
    return read_space({"x": given}).dimensions["x"]


def test_a11_1_a_grid_is_the_product_and_promotes_scalars():
    space = read_grid({"lambda": [0.1, 0.2], "k": 20, "mode": ["a", "b"]})
    points = [space.decode(point) for point in space.points()]
    assert points == [{"lambda": lam, "k": 20, "mode": mode} for lam in (0.1, 0.2) for mode in ("a", "b")]
    assert space.count == 4


def test_a11_1_an_empty_grid_is_one_point_without_parameters():
    assert [*read_grid({}).points()] == [{}]


def test_a_grid_may_hold_lists_and_mappings():
    space = read_grid({"coefficients": [[0.2, 0.8], [0.5, 0.5]], "lambda": [{"layers": {"0": 1.0}, "default": 0.5}]})
    assert [space.decode(point)["coefficients"] for point in space.points()] == [[0.2, 0.8], [0.5, 0.5]]
    assert space.encode({"coefficients": [0.5, 0.5], "lambda": {"default": 0.5, "layers": {"0": 1.0}}}, "here")


@pytest.mark.parametrize("kind", ["float", "continuous", None])
def test_a11_8_floats(kind):
    given = {"min": 0, "max": 2} if kind is None else {"type": kind, "min": 0, "max": 2}
    assert dimension(given).encode(1) == 1.0
    assert dimension(given).count == math.inf


@pytest.mark.parametrize("kind", ["int", "integer"])
def test_a11_8_whole_numbers(kind):
    one = dimension({"type": kind, "min": 2, "max": 5})
    assert [*one.all()] == [2, 3, 4, 5]
    with pytest.raises(ConfigError, match="whole number"):
        one.encode(2.5)


@pytest.mark.parametrize("kind", ["categorical", "cat", "choice", "enum"])
@pytest.mark.parametrize("key", ["values", "choices"])
def test_a11_8_choices(kind, key):
    one = dimension({"type": kind, key: ["common", "union"]})
    assert one.encode("union") == "union"
    with pytest.raises(ConfigError, match="cannot be 'strict'"):
        one.encode("strict")


@pytest.mark.parametrize("log", [{"log": True}, {"scale": "log"}])
def test_a11_8_logarithms_need_positive_bounds(log):
    assert dimension({"min": 1e-3, "max": 1.0, **log}).distribution.log
    with pytest.raises(ConfigError, match="min > 0"):
        dimension({"min": 0.0, "max": 1.0, **log})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"min": 1.0, "max": 1.0}, "max > min"),
        ({"min": 0.0}, "needs `min` and `max`"),
        ({"min": 0.0, "max": 10**400}, "two numbers; `max` is 1000"),
        ({"type": "double", "min": 0, "max": 1}, "cannot be 'double'"),
        ({"type": "choice"}, "needs `values`"),
        ({"min": 0, "max": 1, "lower": 0}, "no key 'lower'"),
        ({"type": "int", "min": 0.5, "max": 3}, "whole numbers"),
        ({"min": 0, "max": 1, "step": 0}, "x.step` must be a number above 0"),
        ({"min": 0, "max": 1, "step": "small"}, "x.step` must be a number above 0"),
        ({"type": "int", "min": 0, "max": 9, "step": 1.5}, "whole numbers; its `step` must be too"),
        ({"type": "int", "min": 0, "max": 9, "step": 0}, "x.step` must be a number above 0"),
        ({"min": 0.1, "max": 1, "log": "no"}, "x.log` must be true or false"),
        (3, "must be a mapping"),
    ],
)
def test_a11_8_what_is_refused(given, told):
    with pytest.raises(ConfigError, match=told):
        dimension(given)


def test_a11_8_an_empty_space_is_a_value_error():
    with pytest.raises(ValueError, match="space` is empty"):
        read_search({"type": "bayes", "space": {}})


def test_a11_9_defaults_of_a_search():
    search = read_search({"type": "bayes", "space": {"x": {"min": 0, "max": 1}}})
    assert (search.budget, search.seed, search.init_points, search.known_points_consume_budget) == (20, None, 8, False)
    few = read_search({"type": "bayes", "budget": 3, "space": {"x": {"min": 0, "max": 1}}})
    assert few.init_points == 3
    with pytest.raises(ConfigError, match="budget >= 1"):
        read_search({"type": "bayes", "budget": 0, "space": {"x": {"min": 0, "max": 1}}})


def test_a11_9_settings_of_the_earlier_process_are_told_to_be_without_effect(caplog):
    read_search({"type": "bayes", "space": {"x": {"min": 0, "max": 1}}, "xi": 0.01, "n_candidates": 2048})
    assert "`search.n_candidates`, `search.xi` have no effect" in caplog.text


@pytest.mark.parametrize(
    ("search", "told"),
    [
        (None, "needs `search`"),
        ({"type": "bayse", "space": {}}, "Did you mean 'bayes'"),
        ({"type": "bayes", "bugdet": 3}, "Did you mean 'budget'"),
        ({"type": "cmaes", "space": {"x": {"min": 0, "max": 1}}}, "two or more numeric"),
        ({"type": "grid", "grid": [1]}, "must map"),
        ({"type": "grid", "grid": {"x": []}}, "no values"),
        ({"type": "grid", "grid": {}, "budget": math.inf}, "whole number"),
        ({"type": "grid", "grid": {}, "workers": math.nan}, "whole number"),
        ({"type": "grid", "grid": {}, "budget": 10**400}, "whole number"),
        ({"type": "grid", "grid": {"x": [1]}, "early_stop": {"param_resolution": {"y": 0.1}}}, "'y'"),
    ],
)
def test_a_search_that_cannot_be_is_refused(search, told):
    with pytest.raises(ConfigError, match=told):
        read_search(search)


def test_of_two_names_the_newer_one_holds_in_any_order():
    given = {"warm_start_sweeps": "a", "early_stop": {"patience": 3}}
    former = {"warm_start_from": "b", "early_stopping": False}
    for one in ({**given, **former}, {**former, **given}):
        search = read_search({"type": "grid", "grid": {}, **one})
        assert (search.warm_start, search.early_stop.patience) == (["a"], 3)


def test_a11_16_floats_are_one_point_to_twelve_decimals():
    assert key_of({"x": 0.1 + 0.2}) == key_of({"x": 0.3})
    assert key_of({"x": 0.3}) != key_of({"x": 0.3 + 1e-11})
    assert key_of({"x": -0.0}) == key_of({"x": 0.0})
    assert read_grid({"x": [0.3, 0.1 + 0.2, 0.5, 0.5]}).count == 2


def test_a11_11_initial_points_need_every_parameter():
    space = {"x": {"min": 0, "max": 1}, "y": {"min": 0, "max": 1}}
    with pytest.raises(ValueError, match="lacks a value of `y`"):
        read_search({"type": "bayes", "space": space, "initial_points": [{"x": 0.5}]})
    with pytest.raises(ConfigError, match=r"must be in \[0, 1\]"):
        read_search({"type": "bayes", "space": space, "initial_points": [{"x": 0.5, "y": 3}]})
