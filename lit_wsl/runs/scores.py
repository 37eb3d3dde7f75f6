"""What the results of a run say in a few numbers, and which run is the best."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lit_wsl.runs.layout import results_key, split_key

_SPLITS = ("test", "validation", "train")
_Item = TypeVar("_Item")
Results = Mapping[str, Mapping[str, Any]]
"""Task to what was measured on it: metrics, ``interference_delta``, or ``{"error": …}``."""


@dataclass(frozen=True)
class Score:
    """How a run did on one split: the lowest and the mean interference delta over its tasks.

    Scores of different splits, subsets or tasks cannot be compared.
    """

    split: str
    subset: str
    tasks: tuple[str, ...]
    """All tasks that were evaluated, sorted."""
    lowest: float | None = None
    """None where a task failed, or no task has a delta."""
    mean: float | None = None
    failed: tuple[str, ...] = ()
    """Tasks that could not be evaluated."""

    @property
    def key(self) -> str:
        """Split and subset in one word."""
        return results_key(self.split, self.subset)


def score_of(results: Results, split: str, subset: str = "") -> Score:
    """The score of results on one split; a failed task leaves none."""
    tasks = tuple(sorted(results))
    failed = tuple(task for task in tasks if "error" in results[task])
    deltas = [_number(results[task].get("interference_delta")) for task in tasks]
    known = [delta for delta in deltas if delta is not None]
    if failed or not known:
        return Score(split, subset, tasks, failed=failed)
    return Score(split, subset, tasks, min(known), sum(known) / len(known))


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers measured on one task; private ones (``__``) are left out."""
    nested = result.get("metrics")
    values: Mapping[str, Any] = nested if isinstance(nested, Mapping) else result
    found = {str(k): _number(v) for k, v in values.items() if "__" not in str(k)}
    found["interference_delta"] = _number(result.get("interference_delta"))
    return {name: value for name, value in found.items() if value is not None}


def primary_of(result: Mapping[str, Any]) -> str | None:
    """Name of the metric that counts for a task; None where nothing was measured."""
    metrics, meta = metrics_of(result), result.get("interference_delta_meta")
    named = [result.get("primary"), meta.get("metric") if isinstance(meta, Mapping) else None]
    options = [name for name in (*named, *metrics) if name in metrics and name != "interference_delta"]
    return str(options[0]) if options else None


def best_of(
    scored: Iterable[tuple[_Item, Sequence[Score]]], split: str | None = None, subset: str | None = None
) -> tuple[_Item, Score] | None:
    """The item with the highest score, and that score; None where nothing has one.

    Only scores of the same tasks, split and subset are compared: those of most tasks, then of whole splits, then
    of test rows. Highest is the lowest delta, then the mean; of equals the first.

    Args:
        scored: Items and all their scores, oldest first.
        split: Take scores of this split only.
        subset: Take scores of this subset only; empty for the whole split.
    """
    candidates = [
        (item, score)
        for item, scores in scored
        for score in scores
        if score.lowest is not None and split in (None, score.split) and subset in (None, score.subset)
    ]
    if not candidates:
        return None
    group = min((_preference(score) for _, score in candidates))
    return max((c for c in candidates if _preference(c[1]) == group), key=lambda c: (c[1].lowest, c[1].mean))


def _preference(score: Score) -> tuple[Any, ...]:
    return -len(score.tasks), split_order(score.key), score.tasks


def split_order(key: str) -> tuple[bool, int, str]:
    """What sorts splits, or subsets of them (``SPLIT__SUBSET``): whole ones first, then test before validation rows."""
    split, subset = split_key(key)
    return bool(subset), _SPLITS.index(split) if split in _SPLITS else len(_SPLITS), key


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
