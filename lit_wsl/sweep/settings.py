"""The `search` of a configuration, read and checked once."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.merging.parameters import is_finite, is_number
from lit_wsl.merging.settings import renamed
from lit_wsl.sweep.early_stop import EarlyStop, read_early_stop
from lit_wsl.sweep.outcome import Params
from lit_wsl.sweep.space import Space, read_grid, read_space

logger = logging.getLogger(__name__)

TYPES = {
    "grid": "every point of a grid",
    "bayes": "a Gaussian process and expected improvement",
    "tpe": "a tree-structured Parzen estimator",
    "cmaes": "an evolution strategy, for two or more numbers",
    "random": "points drawn at random",
    "nsga2": "a genetic search of one objective per task",
}
"""Searches and what they do."""
_ALIASES = {"gp": "bayes", "optuna": "bayes", "bayesian": "bayes", "cma": "cmaes", "cma_es": "cmaes", "nsgaii": "nsga2"}
BUDGET, INIT_POINTS = 20, 8
_EARLIER = {
    "n_candidates",
    "xi",
    "alpha",
    "normalize_y",
    "n_restarts_optimizer",
    "invalid_score",
    "invalid_score_value",
}
"""Settings of an earlier Gaussian process, which this one has no use for."""
_KEYS = {
    "type",
    "grid",
    "space",
    "budget",
    "seed",
    "init_points",
    "initial_points",
    "known_points",
    "known_points_consume_budget",
    "inject_zero_baseline",
    "warm_start_sweeps",
    "warm_start_max_points",
    "early_stop",
    "storage",
    "workers",
}
_FORMER = {"early_stopping": "early_stop", "warm_start_from": "warm_start_sweeps"}
"""Other names of keys."""


@dataclass(frozen=True)
class SearchSettings:
    """How a sweep searches."""

    type: str
    space: Space
    budget: int | None
    """Finished points; None for all of a grid."""
    seed: int | None = None
    init_points: int = INIT_POINTS
    """Random points before a search proposes its own."""
    initial_points: list[Params] = field(default_factory=list)
    """Points to measure first, as the study stores them."""
    known_points: list[Mapping[str, Any]] = field(default_factory=list)
    """Points whose scores are given, as the configuration has them."""
    known_points_consume_budget: bool = False
    inject_zero_baseline: bool = False
    warm_start: list[str] = field(default_factory=list)
    """Files, directories or globs of earlier sweeps."""
    warm_start_max_points: int | None = None
    early_stop: EarlyStop | None = None
    storage: str | None = None
    workers: int = 1

    @property
    def is_grid(self) -> bool:
        """Whether all points are known before the first is measured."""
        return self.type == "grid"

    @property
    def is_multi_objective(self) -> bool:
        """Whether every task is an objective of its own."""
        return self.type == "nsga2"


def read_search(search: Mapping[str, Any] | None) -> SearchSettings:
    """Read the `search` of a configuration.

    Raises:
        ConfigError: If a key or value is wrong.
    """
    given = _spelt(search)
    type_ = _type_of(given)
    space = read_grid(given.get("grid") or {}) if type_ == "grid" else read_space(given.get("space"))
    if type_ == "cmaes" and sum(bool(one.count > 1) and not one.values for one in space.dimensions.values()) < 2:
        raise ConfigError("`search.type: cmaes` needs two or more numeric parameters; use `bayes` for one.")
    budget = _whole(given, "budget", None if type_ == "grid" else BUDGET, least=1)
    points = given.get("initial_points") or []
    if not isinstance(points, list) or not all(isinstance(point, Mapping) for point in points):
        raise ConfigError(f"`search.initial_points` must be a list of mappings, got {points!r}.")
    return SearchSettings(
        type=type_,
        space=space,
        budget=budget,
        seed=_whole(given, "seed", None, least=0),
        init_points=_init_points(given, budget),
        initial_points=[space.encode(point, f"search.initial_points[{i}]") for i, point in enumerate(points)],
        known_points=_known(given),
        known_points_consume_budget=_flag(given, "known_points_consume_budget"),
        inject_zero_baseline=_flag(given, "inject_zero_baseline"),
        warm_start=_paths(given),
        warm_start_max_points=_whole(given, "warm_start_max_points", None, least=None),
        early_stop=_early_stop(given, space),
        storage=None if given.get("storage") is None else str(given["storage"]),
        workers=_whole(given, "workers", 1, least=1) or 1,
    )


def _spelt(search: Mapping[str, Any] | None) -> dict[str, Any]:
    if search is None:
        raise ConfigError(
            "A sweep needs `search`; for instance `search: {type: grid, grid: {lambda: [0.3, 0.5]}}`, or `--grid`."
        )
    if not isinstance(search, Mapping):
        raise ConfigError(f"`search` must be a mapping, got {search!r}.")
    given = renamed({str(key): value for key, value in search.items()}, _FORMER)
    for key in given:
        if key not in _KEYS | _EARLIER:
            raise ConfigError(f"`search` has no key {key!r}. {did_you_mean(key, _KEYS)}")
    unused = sorted(_EARLIER & given.keys())
    if unused:
        told, verb = ", ".join(f"`search.{key}`" for key in unused), "has" if len(unused) == 1 else "have"
        logger.warning("%s %s no effect: the Gaussian process of this version sets itself.", told, verb)
    return given


def _type_of(given: Mapping[str, Any]) -> str:
    asked = str(given.get("type", "grid")).lower().replace("-", "_")
    type_ = _ALIASES.get(asked, asked)
    if type_ not in TYPES:
        raise ConfigError(f"`search.type` cannot be {asked!r}. {did_you_mean(asked, TYPES)}")
    return type_


def _init_points(given: Mapping[str, Any], budget: int | None) -> int:
    points = _whole(given, "init_points", INIT_POINTS, least=0) or 0
    return points if budget is None else min(points, budget)


def _known(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    points = given.get("known_points") or []
    if not isinstance(points, list) or not all(isinstance(point, Mapping) for point in points):
        raise ConfigError(f"`search.known_points` must be a list of mappings, got {points!r}.")
    return points


def _early_stop(given: Mapping[str, Any], space: Space) -> EarlyStop | None:
    stop = read_early_stop(given.get("early_stop"))
    for name in stop.param_resolution if stop is not None and isinstance(stop.param_resolution, Mapping) else ():
        if name not in space.dimensions:
            told = did_you_mean(str(name), space.dimensions)
            raise ConfigError(f"`search.early_stop.param_resolution` names {name!r}, which is not searched. {told}")
    return stop


def _paths(given: Mapping[str, Any]) -> list[str]:
    paths = given.get("warm_start_sweeps") or []
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise ConfigError(f"`search.warm_start_sweeps` must be a path or a list of paths, got {paths!r}.")
    return paths


def _whole(given: Mapping[str, Any], name: str, default: int | None, *, least: int | None) -> int | None:
    value = given.get(name)
    if value is None:
        return default
    if not is_number(value) or not is_finite(value) or value != int(value):
        raise ConfigError(f"`search.{name}` must be a whole number, got {value!r}.")
    if least is not None and value < least:
        raise ConfigError(f"`{name} >= {least}` must hold for `search`, got {value}.")
    return int(value)


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise ConfigError(f"`search.{name}` must be true or false, got {value!r}.")
    return value
