"""Points whose outcome is known before a sweep begins: given in its configuration, or measured by an earlier one."""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_wsl.errors import ConfigError
from lit_wsl.merging.parameters import is_finite, is_number
from lit_wsl.sweep.outcome import Params
from lit_wsl.sweep.records import Source
from lit_wsl.sweep.settings import SearchSettings
from lit_wsl.sweep.space import key_of

logger = logging.getLogger(__name__)

SCALED = "uniform_scalar_delta"
"""The method that gives the base at scale 0, whose interference delta is 0 by definition."""
_KNOWN_KEYS = {"params", "score", "score_details", "results"}


@dataclass(frozen=True)
class Observation:
    """A point with its outcome."""

    params: Params
    """As the study stores it."""
    source: Source
    score: float | None = None
    """None where it is known to have failed."""
    mean: float | None = None
    deltas: Mapping[str, float | None] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


def known_points(settings: SearchSettings, method: str) -> list[Observation]:
    """The `known_points` of a search and, where it asks for it, the base as the point of scale 0.

    Raises:
        ConfigError: If a point lacks a parameter or a finite score.
    """
    points = [
        _known(settings, method, given, f"search.known_points[{i}]") for i, given in enumerate(settings.known_points)
    ]
    return points + _baseline(settings, method)


def _known(settings: SearchSettings, method: str, given: Mapping[str, Any], where: str) -> Observation:
    unknown = next((key for key in given if key not in _KNOWN_KEYS), None)
    if unknown is not None:
        raise ConfigError(f"`{where}` has no key {unknown!r}; it has `params`, `score`, `score_details`, `results`.")
    if not isinstance(given.get("params"), Mapping):
        raise ConfigError(f"`{where}` needs `params`, a mapping.")
    params = settings.space.encode(given["params"], f"{where}.params")
    score = 0.0 if given.get("score") is None and _is_base(settings, method, params) else _finite(given.get("score"))
    if score is None:
        raise ConfigError(f"`{where}` needs a finite `score`, got {given.get('score')!r}.")
    return _observed(params, "known", score, given)


def _baseline(settings: SearchSettings, method: str) -> list[Observation]:
    if not settings.inject_zero_baseline:
        return []
    if method != SCALED or list(settings.space.dimensions) != ["scale"]:
        logger.warning("`inject_zero_baseline` holds for `%s` searched over `scale` alone; nothing is added.", SCALED)
        return []
    try:
        params = settings.space.encode({"scale": 0}, "search.inject_zero_baseline")
    except ConfigError as error:
        logger.warning("%s Nothing is added.", error)
        return []
    return [Observation(params, "baseline", 0.0, 0.0)]


def _is_base(settings: SearchSettings, method: str, params: Params) -> bool:
    decoded = settings.space.decode(params)
    return method == SCALED and list(decoded) == ["scale"] and decoded["scale"] == 0


def warm_start(settings: SearchSettings, wanted: Mapping[str, Any], own: Path | None = None) -> list[Observation]:
    """Points of earlier sweeps that measured the same thing, the best first, no point twice.

    Args:
        settings: The search.
        wanted: What describes this sweep; see :func:`lit_wsl.sweep.identity.described`.
        own: The file that this sweep writes itself.

    Raises:
        FileNotFoundError: If a file is missing, or nothing fits a path.
        ConfigError: If a file is no sweep's JSON.
    """
    from lit_wsl.sweep.identity import difference

    found: dict[str, Observation] = {}
    for path in _files(settings.warm_start):
        if own is not None and path.resolve() == own.resolve():
            continue
        older = _read(path)
        differs = difference(older, wanted, settings.space.dimensions)
        if differs is not None:
            logger.warning("%s is not used: its `%s` differs from this sweep's.", path, differs)
            continue
        for one in _observations(older, settings, path):
            known = found.get(key_of(one.params))
            if known is None or _order(one) > _order(known):
                found[key_of(one.params)] = one
    most = settings.budget if settings.warm_start_max_points is None else settings.warm_start_max_points
    if most is not None:
        most = max(0, most if settings.budget is None else min(most, settings.budget))
    return sorted(found.values(), key=_order, reverse=True)[:most]


def _order(one: Observation) -> tuple[float, float]:
    score = -math.inf if one.score is None else one.score
    return score, score if one.mean is None else one.mean


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            yield from sorted(path.glob("sweep_*.json"))
        elif path.exists():
            yield path
        else:
            matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if given.strip("/") else []
            if not matches:
                raise FileNotFoundError(2, "no earlier sweep is there", str(path))
            for match in matches:
                yield from sorted(match.glob("sweep_*.json")) if match.is_dir() else (match,)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        older = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON ({error}); leave it out of `search.warm_start_sweeps`.") from error
    if not isinstance(older, Mapping) or not isinstance(older.get("runs"), list):
        raise ConfigError(f"{path} is no summary of a sweep (it has no list `runs`); leave it out.")
    return older


def _observations(older: Mapping[str, Any], settings: SearchSettings, path: Path) -> Iterator[Observation]:
    """Points of one file that lie in this space; with the score that their results give, where they have any."""
    outside = 0
    for run in older["runs"]:
        if not isinstance(run, Mapping) or not isinstance(run.get("params"), Mapping):
            raise ConfigError(f"{path} has a run without `params`; leave it out of `search.warm_start_sweeps`.")
        if run.get("state") in ("interrupted", "running"):
            continue
        try:
            params = settings.space.encode(run["params"], str(path))
        except ConfigError:
            outside += 1
            continue
        yield _observed(params, "warm", _finite(run.get("score")), run)
    if outside:
        logger.warning("%d points of %s lie outside this search and are not used.", outside, path)


def _observed(params: Params, source: Source, score: float | None, given: Mapping[str, Any]) -> Observation:
    results = given.get("results") if isinstance(given.get("results"), Mapping) else {}
    details = given.get("score_details") if isinstance(given.get("score_details"), Mapping) else {}
    assert isinstance(results, Mapping)
    assert isinstance(details, Mapping)
    deltas = _deltas(results) or _deltas_of(details)
    error = given.get("error") or _first_error(results)
    known = [value for value in deltas.values() if value is not None]
    if score is None and known and not error:  # the earlier program wrote -Infinity for what its constraint refused
        score = min(known)
    mean = math.fsum(known) / len(known) if known else _finite(details.get("mean_interference_delta"))
    if error and source == "warm":
        score = None
    return Observation(
        params, source, score, score if mean is None else mean, deltas, details, results, str(error) if error else None
    )


def _deltas(results: Mapping[str, Any]) -> dict[str, float | None]:
    measured = {task: one for task, one in results.items() if isinstance(one, Mapping)}
    deltas = {task: _finite(one.get("interference_delta")) for task, one in measured.items()}
    return {task: delta for task, delta in deltas.items() if delta is not None}


def _finite(value: Any) -> float | None:
    """The number; None for anything else."""
    return float(value) if is_number(value) and is_finite(value) else None


def _deltas_of(details: Mapping[str, Any]) -> dict[str, float | None]:
    given = details.get("interference_deltas")
    return {task: _finite(delta) for task, delta in given.items()} if isinstance(given, Mapping) else {}


def _first_error(results: Mapping[str, Any]) -> str | None:
    for task, one in results.items():
        if isinstance(one, Mapping) and one.get("error"):
            return f"{task}: {one['error']}"
    return None
