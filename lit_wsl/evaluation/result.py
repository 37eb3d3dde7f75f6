"""What an evaluator is, and what it says of one backbone on one task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from lit_wsl.evaluation.subset import Subset
from lit_wsl.evaluation.task import Direction, Task
from lit_wsl.runs.scores import Score, score_of
from lit_wsl.training.tasks import Split


@dataclass(frozen=True)
class TaskResult:
    """Metrics of one backbone on one task."""

    task: str
    metrics: dict[str, float]
    """All metrics by name."""
    primary: str | None
    """Name of the metric that counts; None where none does."""
    direction: Direction
    """Which way of it is better."""
    rows: int
    """Rows that were evaluated."""
    confusion: Tensor | None = None
    """Counts, shape ``(classes, classes)``: true class by predicted class."""
    labels: list[str] = field(default_factory=list)
    """Class names in the order of the indices."""

    @property
    def score(self) -> float | None:
        """Value of the metric that counts."""
        return None if self.primary is None else self.metrics[self.primary]

    def to_dict(self) -> dict[str, Any]:
        """Plain figures, for JSON; the confusion matrix has a file of its own."""
        return {"metrics": self.metrics, "primary": self.primary, "direction": self.direction, "rows": self.rows}


@dataclass(frozen=True)
class MergeEvaluation:
    """What one merge scored."""

    split: Split
    subset: str
    """Tag of the subset; empty for the whole split."""
    results: dict[str, TaskResult]
    """Tasks that were measured."""
    deltas: dict[str, float | None]
    """Interference delta of these; None where a baseline is missing or the single adapter gained nothing."""
    errors: dict[str, str]
    """Tasks that failed, with the reason."""
    report: dict[str, dict[str, Any]]
    """All of it in plain values, as it is recorded: per task the metrics and the delta, or ``{"error": …}``."""
    seconds: float = 0.0
    """Time that measuring took."""
    run: Path | None = None
    """The run bundle, where results were saved."""
    files: list[Path] = field(default_factory=list)
    """Confusion matrices that were written."""

    @property
    def score(self) -> Score:
        """Lowest and mean interference delta; none where a task failed."""
        return score_of(self.report, self.split, self.subset)


class Evaluator(Protocol):
    """Scores backbones of one architecture on the tasks it knows; models and data are made once."""

    @property
    def registry(self) -> Mapping[str, Task]:
        """The tasks by name."""

    def evaluate(
        self, state: Mapping[str, Tensor] | None, task: str, split: Split, subset: Subset | None = None
    ) -> TaskResult:
        """Metrics of one backbone on one task.

        Args:
            state: State dict of the backbone; None is the base.
            task: Name of a known task.
            split: Rows to use. Choose parameters on ``validation``, report ``test``.
            subset: Some of those rows, or how many; None for all.
        """

    def digest(self, task: str, split: Split, subset: Subset | None = None) -> str:
        """Hash of all that a score depends on besides the weights that are put in: base, head, metric, rows."""


class ScoresEveryTask:
    """What an evaluator can do besides, once it can evaluate one task."""

    def scores(
        self: Evaluator, state: Mapping[str, Tensor] | None, split: Split, subset: Subset | None = None
    ) -> dict[str, float]:
        """The metric that counts of one backbone, on every task that has one.

        Args:
            state: State dict of the backbone; None is the base.
            split: Rows to use. Choose parameters on ``validation``, report ``test``.
            subset: Some of those rows, or how many; None for all.
        """
        results = [self.evaluate(state, name, split, subset) for name in self.registry]
        return {result.task: result.score for result in results if result.score is not None}
