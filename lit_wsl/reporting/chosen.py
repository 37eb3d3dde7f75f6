"""Which runs a report is about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from lit_wsl.errors import CheckpointError
from lit_wsl.runs.layout import RunLayout, split_key
from lit_wsl.runs.listing import Run, list_runs, read_run
from lit_wsl.runs.names import MERGED
from lit_wsl.runs.resolve import resolve_run

MOST_RECENT = 20
"""Runs of a report that names none."""


@dataclass(frozen=True)
class Chosen:
    """Runs that have results, and those that a reader might miss."""

    runs: list[Run]
    left_out: dict[str, str] = field(default_factory=dict)
    """Run id to why it is not shown."""
    older: int = 0
    """Earlier runs beyond the limit."""


def named_runs(layout: RunLayout, names: Sequence[str], split: str | None = None, **among: Any) -> Chosen:
    """The runs that are named, in that order, each once.

    Args:
        layout: Where to look.
        names: What :func:`lit_wsl.runs.resolve_run` takes.
        split: Every run must have been measured on it.
        among: ``method`` and ``tasks`` of :func:`lit_wsl.runs.resolve_run`.

    Raises:
        CheckpointError: If there is no such run, or it has no results.
    """
    found: dict[str, Run] = {}
    for name in names:
        run = read_run(_resolved(layout, name, among))
        reason = _nothing_to_show(run, split)
        if reason:
            raise CheckpointError(f"Run {run.path} {reason}; {_remedy(run)}.")
        found.setdefault(str(run.path.resolve()), run)
    return Chosen(list(found.values()))


def recent_runs(layout: RunLayout, most: int = MOST_RECENT, split: str | None = None, **among: Any) -> Chosen:
    """The newest runs that have results, newest first.

    Args:
        layout: Where to look.
        most: How many; 0 takes all.
        split: Runs that were measured on it only.
        among: ``method`` and ``tasks`` of :func:`lit_wsl.runs.list_runs`.

    Raises:
        CheckpointError: If there is none.
    """
    everything = list_runs(layout, **among)[::-1]
    reasons = {run.run_id: reason for run in everything if (reason := _nothing_to_show(run, split))}
    runs = [run for run in everything if not _nothing_to_show(run, split)]
    if not runs:
        what = "no run with results" if everything else "no run"
        raise CheckpointError(
            f"There is {what} in {layout.root / MERGED}; `lit-wsl merge --evaluate` makes one, "
            "`--artifacts_dir` looks elsewhere."
        )
    kept = runs[:most] if most > 0 else runs
    return Chosen(kept, reasons, len(runs) - len(kept))


def _resolved(layout: RunLayout, name: str, among: Mapping[str, Any]) -> Any:
    """The run's directory; an error names the nearest id."""
    try:
        return resolve_run(layout, name, **among)
    except CheckpointError as error:
        known = [run.run_id for run in list_runs(layout, **among)]
        near = get_close_matches(name.rstrip("/").rpartition("/")[2], known, n=1, cutoff=0.6)
        raise CheckpointError(f"{error} Did you mean {near[0]!r}?" if near else str(error)) from error


def _nothing_to_show(run: Run, split: str | None) -> str:
    """Why a run cannot be shown; empty if it can."""
    if run.status.startswith("damaged"):
        return f"is {run.status}"
    if not any(run.results.values()):
        return "has no results"
    if split is not None and not any(split_key(key)[0] == split for key in run.results):
        return f"was not measured on {split!r} but on {', '.join(run.results)}"
    return ""


def _remedy(run: Run) -> str:
    if run.config is not None:
        return f"measure it with `lit-wsl evaluate-merged --config {run.config}`"
    return f"measure it with `lit-wsl evaluate-merged --adapter-path {run.path}`"
