"""The JSON of a sweep: strict, whole after every point, and readable by a later sweep."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_wsl.runs.strict import write_json
from lit_wsl.sweep.records import Record, best_of, pareto_front
from lit_wsl.sweep.storage import without_password
from lit_wsl.sweep.study import SweepStudy


def summary_file(directory: Path, study: SweepStudy) -> Path:
    """Where the JSON of a study lies; a study that is continued keeps its file."""
    return directory / f"sweep_{study.timestamp}_{study.study.study_name.removeprefix('sweep-')[:6]}.json"


def summary_of(
    study: SweepStudy,
    description: Mapping[str, Any],
    search: Mapping[str, Any],
    *,
    status: str,
    reason: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a sweep found so far, the keys of earlier versions first.

    Args:
        study: The study.
        description: What is merged and measured; see :func:`lit_wsl.sweep.identity.described`.
        search: The search as the configuration has it.
        status: `running`, `complete`, `early_stopped` or `interrupted`.
        reason: Why it ended.
        extra: What comes after the search: an evaluation elsewhere, the merged output.
    """
    runs = [one for one in study.records() if one.is_finished]
    best = best_of(runs)
    grid = search.get("grid") if study.settings.is_grid else None
    return {
        "timestamp": study.timestamp,
        **description,
        "grid": grid or ({} if study.settings.is_grid else None),
        "search": {key: without_password(str(one)) if key == "storage" and one else one for key, one in search.items()},
        "best_index": None if best is None else runs.index(best),
        "best_score": None if best is None else best.score,
        "best_params": None if best is None else best.params,
        "status": status,
        "reason": reason,
        "finished": study.used(study.records()),
        "budget": study.settings.budget if study.settings.budget is not None else study.settings.space.count,
        "seed": study.seed,
        "study": study.study.study_name,
        "storage": str(study.place),
        "tasks": study.tasks,
        "pareto_front": [runs.index(one) for one in pareto_front(runs)] if study.settings.is_multi_objective else None,
        **(extra or {}),
        "runs": [_run(one) for one in runs],
    }


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Put the JSON in place at once; what is not finite becomes null."""
    write_json(path, summary)


def _run(one: Record) -> dict[str, Any]:
    known: Sequence[float] = [delta for delta in one.deltas.values() if delta is not None]
    details: dict[str, Any] = dict(one.details)
    if one.score is not None:
        details |= {"min_interference_delta": one.score, "mean_interference_delta": one.mean}
    if known:
        details["interference_deltas"] = dict(one.deltas)
    return {
        "params": one.params,
        "score": one.score,
        "score_details": details,
        "results": one.results,
        "number": one.number,
        "state": one.state,
        "feasible": one.feasible,
        "source": one.source,
        "error": one.error,
        "seconds": one.seconds,
        "worker": one.worker,
    }
