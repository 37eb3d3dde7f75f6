"""The figures of runs as a table of tasks by runs, with what is best in each row."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_wsl.runs.layout import split_key
from lit_wsl.runs.listing import Run
from lit_wsl.runs.scores import Score, best_of, metrics_of, primary_of, score_of, split_order

DELTA = "interference_delta"


@dataclass(frozen=True)
class Row:
    """One figure of every run."""

    task: str
    """Empty for figures over all tasks."""
    metric: str
    kind: Literal["metric", "delta", "score"]
    values: list[float | None]
    notes: list[str]
    """Why a value is missing, or what it is over."""
    direction: str | None = "max"
    """``max``, ``min``, or None where the results do not say, or contradict each other."""
    base: tuple[float, ...] = ()
    """Scores of the base; more than one where runs were set against different ones."""
    single: tuple[float, ...] = ()
    """Scores of the task's own model."""
    best: frozenset[int] = frozenset()
    """Runs with the best value; empty where there is nothing to choose from."""


@dataclass(frozen=True)
class Figures:
    """Everything measured on one split, or on a subset of it."""

    key: str
    rows: list[Row]
    scores: list[Score | None]
    """Of every run; None for one that was not measured here."""
    errors: list[tuple[int, str, str]] = field(default_factory=list)
    """Run, task and why it failed."""

    @property
    def best(self) -> int | None:
        """The run with the highest score."""
        best = _best(self.scores)
        return None if best is None else best[0]

    @property
    def ranked(self) -> list[int]:
        """Runs that were measured here, those with the highest scores first."""
        return sorted(self.measured, key=lambda at: (_rank(self.scores[at]), -at), reverse=True)

    @property
    def measured(self) -> list[int]:
        """Runs that were measured here."""
        return [at for at, score in enumerate(self.scores) if score is not None]


def keys_of(runs: Sequence[Run], split: str | None = None) -> list[str]:
    """What runs were measured on: first what most of them were, then whole splits, then test rows.

    Args:
        runs: The runs.
        split: This split and its subsets only.
    """
    found = [key for run in runs for key, results in run.results.items() if results]
    wanted = {key for key in found if split in (None, split_key(key)[0])}
    return sorted(wanted, key=lambda key: (-found.count(key), split_order(key)))


def figures_of(runs: Sequence[Run], key: str) -> Figures:
    """Figures of runs on one split, or subset of it.

    Args:
        runs: The runs; one that was not measured there has no values.
        key: Of :func:`keys_of`.
    """
    everything = [run.results.get(key) or {} for run in runs]
    tasks = sorted({task for results in everything for task in results})
    scores = [score_of(results, *split_key(key)) if results else None for results in everything]
    rows = [row for task in tasks for row in _task_rows(task, [results.get(task) for results in everything])]
    errors = [
        (at, task, str(result["error"]))
        for at, results in enumerate(everything)
        for task, result in results.items()
        if "error" in result
    ]
    return Figures(key, [*rows, *_score_rows(scores)], scores, errors)


def _task_rows(task: str, results: Sequence[Mapping[str, Any] | None]) -> list[Row]:
    """The metrics that count for a task (runs may differ in it), then its interference delta."""
    measured = [result for result in results if result and "error" not in result]
    named = dict.fromkeys(name for result in measured if (name := primary_of(result)))
    rows = [_metric_row(task, name, results) for name in named]
    deltas = [_value(result, DELTA) for result in results]
    if any(delta is not None for delta in deltas):
        rows.append(Row(task, DELTA, "delta", deltas, _notes(results, deltas), best=_extreme(deltas, "max")))
    if not rows:
        empty: list[float | None] = [None] * len(results)
        rows.append(Row(task, "–", "metric", empty, _notes(results, empty), None))
    return rows


def _metric_row(task: str, metric: str, results: Sequence[Mapping[str, Any] | None]) -> Row:
    values = [_value(result, metric) for result in results]
    metas = [_meta(result) for result in results]
    about = [meta for meta in metas if meta.get("metric") == metric]
    said = {
        result.get("direction") or meta.get("direction")
        for result, meta in zip(results, metas, strict=True)
        if result and primary_of(result) == metric
    } - {None}
    direction = said.pop() if len(said) == 1 else None
    return Row(
        task,
        metric,
        "metric",
        values,
        _notes(results, values),
        direction,
        base=_numbers(about, "base"),
        single=_numbers(about, "task_adapter"),
        best=_extreme(values, direction),
    )


def _score_rows(scores: Sequence[Score | None]) -> list[Row]:
    """Lowest and mean over the tasks; the best among runs of the same tasks only."""
    known = [score for score in scores if score is not None]
    if not any(score.lowest is not None for score in known):
        return []
    winner = _best(scores)
    group = winner[1].tasks if winner else ()
    several = len({score.tasks for score in known}) > 1
    notes = [_score_note(score, group if several else None) for score in scores]
    rows = []
    for name in ("lowest", "mean"):
        values = [getattr(score, name) if score else None for score in scores]
        comparable = [
            value if score is not None and score.tasks == group else None
            for value, score in zip(values, scores, strict=True)
        ]
        rows.append(Row("", f"{name} {DELTA}", "score", values, notes, best=_extreme(comparable, "max")))
    return rows


def _score_note(score: Score | None, group: tuple[str, ...] | None) -> str:
    if score is None:
        return "not measured"
    if score.failed:
        return f"{', '.join(score.failed)} failed"
    if score.lowest is None:
        return "no baseline"
    return "" if group is None or score.tasks == group else f"over {', '.join(score.tasks)}"


def _rank(score: Score | None) -> tuple[float, float]:
    if score is None or score.lowest is None or score.mean is None:
        return -math.inf, -math.inf
    return score.lowest, score.mean


def _best(scores: Sequence[Score | None]) -> tuple[int, Score] | None:
    return best_of([(at, [score]) for at, score in enumerate(scores) if score is not None])


def _extreme(values: Sequence[float | None], direction: str | None) -> frozenset[int]:
    """Places of the best value, where values differ."""
    known = {value for value in values if value is not None}
    if len(known) < 2 or direction not in ("max", "min"):
        return frozenset()
    best = max(known) if direction == "max" else min(known)
    return frozenset(at for at, value in enumerate(values) if value == best)


def _value(result: Mapping[str, Any] | None, name: str) -> float | None:
    return metrics_of(result).get(name) if result and "error" not in result else None


def _meta(result: Mapping[str, Any] | None) -> Mapping[str, Any]:
    meta = (result or {}).get("interference_delta_meta")
    return meta if isinstance(meta, Mapping) else {}


def _numbers(metas: Sequence[Mapping[str, Any]], name: str) -> tuple[float, ...]:
    """The different numbers of that name, lowest first."""
    values = (meta.get(name) for meta in metas)
    return tuple(sorted({float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)}))


def _notes(results: Sequence[Mapping[str, Any] | None], values: Sequence[float | None]) -> list[str]:
    return [_note(result) if value is None else "" for result, value in zip(results, values, strict=True)]


def _note(result: Mapping[str, Any] | None) -> str:
    if not result:
        return "not measured"
    return "failed" if "error" in result else "none"
