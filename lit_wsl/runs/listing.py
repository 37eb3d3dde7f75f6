"""Runs as they lie on the disk."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lit_wsl.errors import CheckpointError, LitWslError
from lit_wsl.runs.bundle import CONFIG, SUMMARY, read_results
from lit_wsl.runs.layout import RunLayout, split_key
from lit_wsl.runs.metadata import METADATA, load_merge_metadata, source_tasks_of
from lit_wsl.runs.names import MERGED
from lit_wsl.runs.scores import Results, Score, best_of, score_of
from lit_wsl.runs.strict import read_mapping

_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Run:
    """A run bundle."""

    path: Path
    method: str
    source_tasks: list[str]
    timestamp: str
    """ISO 8601."""
    params: dict[str, Any] = field(default_factory=dict)
    tag: str = ""
    results: dict[str, Results] = field(default_factory=dict)
    """By split, or ``SPLIT__SUBSET``."""
    metadata: dict[str, Any] = field(default_factory=dict)
    status: str = "completed"
    """``completed``, ``failed`` (a task could not be evaluated), ``unfinished`` (no summary) or ``damaged: …``."""

    @property
    def run_id(self) -> str:
        """Name of the directory."""
        return self.path.name

    @property
    def scores(self) -> list[Score]:
        """One score for each split."""
        return [score_of(results, *split_key(key)) for key, results in self.results.items()]

    @property
    def config(self) -> Path | None:
        """The resolved configuration, if it is kept."""
        path = self.path / CONFIG
        return path if path.is_file() else None

    @property
    def has_weights(self) -> bool:
        """Whether the merged weights are kept."""
        return any(next(self.path.glob(pattern), None) for pattern in _WEIGHTS)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "run_id": self.run_id,
            "path": str(self.path),
            "method": self.method,
            "source_tasks": self.source_tasks,
            "timestamp": self.timestamp,
            "params": self.params,
            "merge_tag": self.tag,
            "status": self.status,
            "has_weights": self.has_weights,
            "scores": self.scores,
        }


def is_run(path: Path) -> bool:
    """Whether a directory is a run bundle, finished or not, or what a merge wrote."""
    return path.is_dir() and (
        path.parent.name == "runs" or any((path / name).is_file() for name in (SUMMARY, METADATA))
    )


def read_run(path: Path) -> Run:
    """A run by its directory.

    Raises:
        CheckpointError: If one of its files is damaged.
    """
    metadata = load_merge_metadata(path)
    summary = read_mapping(path / SUMMARY) if (path / SUMMARY).is_file() else {}
    method, _ = _place(path)
    results = read_results(path)
    failed = any(score_of(r, *split_key(key)).failed for key, r in results.items())
    return Run(
        path=path,
        method=str(summary.get("merge_method") or metadata.get("merge_method") or method),
        source_tasks=source_tasks_of(summary) or source_tasks_of(metadata),
        timestamp=str(summary.get("timestamp") or metadata.get("timestamp") or _changed(path)),
        params=_params(path, summary, metadata),
        tag=str(summary.get("merge_tag") or metadata.get("merge_tag") or ""),
        results=results,
        metadata=metadata,
        status="unfinished" if not summary else "failed" if failed else "completed",
    )


def list_runs(
    layout: RunLayout, method: str | None = None, tasks: Sequence[str] | None = None, home: Path | None = None
) -> list[Run]:
    """All runs, oldest first; a damaged one says so in its status.

    Args:
        layout: Where to look.
        method: Runs of this method only.
        tasks: Runs that merged these tasks only, in any order.
        home: Runs of this folder instead of the layout's.
    """
    folders = (home / "runs").glob("*") if home else (layout.root / MERGED).glob("*/*/runs/*")
    found = [_read_or_tell(path) for path in folders if path.is_dir() and not path.is_symlink()]
    wanted = sorted(layout.source_tasks(tasks)) if tasks else None
    chosen = [
        run for run in found if method in (None, run.method) and (wanted is None or sorted(run.source_tasks) == wanted)
    ]
    return sorted(chosen, key=lambda run: (run.timestamp, run.run_id))


def best_run(runs: Iterable[Run], split: str | None = None, subset: str | None = None) -> tuple[Run, Score] | None:
    """The finished run with the highest score, and that score; None where none has one.

    Args:
        runs: Oldest first.
        split: Compare scores of this split only.
        subset: Compare scores of this subset only; empty for the whole split.
    """
    finished = (run for run in runs if run.status in ("completed", "failed"))
    return best_of(((run, run.scores) for run in finished), split, subset)


def _params(path: Path, *described: dict[str, Any]) -> dict[str, Any]:
    """Parameters of the method, by the first that names any.

    Raises:
        CheckpointError: If they are no mapping.
    """
    given = (one.get(name) for one in described for name in ("params", "method_params"))
    found: Any = next((value for value in given if value), {})
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is damaged: its parameters are {found!r:.60}; run the merge again.")
    return found


def _read_or_tell(path: Path) -> Run:
    try:
        return read_run(path)
    except LitWslError as error:
        method, tasks = _place(path)
        return Run(path, method, tasks, _changed(path), status=f"damaged: {error}")


def _place(path: Path) -> tuple[str, list[str]]:
    """Method and tasks by the folders' names."""
    parts = path.absolute().parts
    return (parts[-4], [parts[-3]]) if len(parts) > 4 and parts[-5] == MERGED else ("", [])


def _changed(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat()
