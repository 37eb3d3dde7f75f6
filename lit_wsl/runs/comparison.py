"""Runs side by side: tasks with their differences, and settings that are not the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_wsl.errors import ConfigError
from lit_wsl.runs.layout import split_key
from lit_wsl.runs.listing import Run
from lit_wsl.runs.scores import metrics_of, primary_of, score_of, split_order

_SAYS_NOTHING = {
    "run_id", "merge_tag", "timestamp", "params", "source_adapters", "source_tasks", "merge_method",
    "num_adapters", "num_parameters", "retained_energy", "skipped", "excluded", "without_update_in",
    "common_rows", "verified", "output_format", "versions", "inputs", "spec", "lit_wsl", "torch",
}  # fmt: skip
"""Metadata that differs anyway, or that is compared elsewhere."""


@dataclass(frozen=True)
class Row:
    """One figure of every run."""

    task: str
    metric: str
    values: list[float | None]
    deltas: list[float | None]
    """Difference to the first run; None for the first."""
    notes: list[str]
    """Why a value is missing."""


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side."""

    runs: list[Run]
    key: str | None
    """The split, or subset of it, that all were measured on; None where there is none."""
    rows: list[Row]
    differing: dict[str, list[Any]]
    """Setting to its value in every run, where they differ."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "runs": [run.to_dict() for run in self.runs],
            "split": self.key,
            "rows": self.rows,
            "differing": self.differing,
        }


def compare_runs(runs: Sequence[Run], key: str | None = None) -> RunComparison:
    """Compare runs with the first of them.

    Args:
        runs: At least two.
        key: Split, or ``SPLIT__SUBSET``; default the first of :func:`~lit_wsl.runs.scores.split_order` that
            all runs were measured on.

    Raises:
        ConfigError: If there are fewer than two runs, or not all were measured on ``key``.
    """
    if len(runs) < 2:
        raise ConfigError("Name at least two runs to compare.")
    shared = [one for one in sorted(runs[0].results, key=split_order) if all(one in run.results for run in runs)]
    if key is not None and key not in shared:
        missing = next(run.run_id for run in runs if key not in run.results)
        raise ConfigError(f"{missing} was not measured on {key!r}. Shared: {', '.join(shared) or 'none'}.")
    key = key or next(iter(shared), None)
    return RunComparison(list(runs), key, _rows(runs, key) if key else [], _differing(runs))


def settings_of(run: Run) -> dict[str, Any]:
    """Everything that makes a run, with dots in the names of nested values."""
    metadata = {name: value for name, value in run.metadata.items() if name not in _SAYS_NOTHING and value is not None}
    metadata.pop("method_params", None)
    return {
        "method": run.method,
        "tasks": ", ".join(run.source_tasks),
        **_flat(run.params, "params"),
        **_flat(metadata),
        **_flat(_mapping(run.metadata.get("versions")), "versions"),
        **_flat(_mapping(run.metadata.get("inputs")), "inputs"),
    }


def _rows(runs: Sequence[Run], key: str) -> list[Row]:
    tasks = sorted({task for run in runs for task in run.results[key]})
    rows = []
    for task in tasks:
        results = [run.results[key].get(task) for run in runs]
        named = next((primary_of(result) for result in results if result and primary_of(result)), None)
        for metric in dict.fromkeys([*([named] if named else []), "interference_delta"]):
            values = [metrics_of(result).get(metric) if result else None for result in results]
            notes = [_reason(result, value) for result, value in zip(results, values, strict=True)]
            rows.append(Row(task, metric, values, _deltas(values), notes))
    scores = [score_of(run.results[key], *split_key(key)) for run in runs]
    for metric, values in (("lowest", [s.lowest for s in scores]), ("mean", [s.mean for s in scores])):
        notes = ["failed: " + ", ".join(s.failed) if s.failed else "" for s in scores]
        rows.append(Row("all", f"{metric} interference_delta", values, _deltas(values), notes))
    return rows


def _reason(result: Mapping[str, Any] | None, value: float | None) -> str:
    if value is not None:
        return ""
    if result is None:
        return "not evaluated"
    return f"failed: {result['error']}" if "error" in result else "not measured"


def _deltas(values: Sequence[float | None]) -> list[float | None]:
    first, *others = values
    return [None, *(None if first is None or value is None else value - first for value in others)]


def _differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    settings = [settings_of(run) for run in runs]
    names = dict.fromkeys(name for one in settings for name in one)
    values = {name: [one.get(name) for one in settings] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings with dotted names; an empty one has none."""
    if not isinstance(value, Mapping):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{name}.{key}" if name else str(key)))
    return flat


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
