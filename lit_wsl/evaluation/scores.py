"""Scores of several models on several tasks: means, shares of the individual gain, sampling errors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_wsl.evaluation.interference import interference_delta

BASE, INDIVIDUAL = "base", "individual"


@dataclass(frozen=True)
class ScoreTable:
    """Rows of scores in [0, 1], higher better, with the base and the individual fine-tunes among them."""

    tasks: list[str]
    rows: Mapping[str, Mapping[str, float]]
    """Model name to task name to score; ``base`` and ``individual`` must be there."""
    test_rows: Mapping[str, int] = field(default_factory=dict)
    """Number of rows that each task was measured on."""

    def mean(self, row: str) -> float:
        """Mean score over the tasks."""
        return sum(self.rows[row][task] for task in self.tasks) / len(self.tasks)

    def interference(self, row: str, task: str) -> float | None:
        """Share of the individual gain on one task that a row keeps; None where there was no gain."""
        return interference_delta(self.rows[BASE][task], self.rows[INDIVIDUAL][task], self.rows[row][task])

    def recovered(self, row: str) -> float | None:
        """Share of the mean individual gain that a row keeps."""
        return interference_delta(self.mean(BASE), self.mean(INDIVIDUAL), self.mean(row))

    def standard_error(self, row: str) -> float | None:
        """Sampling error of the mean score: binomial per task, tasks independent; None without row counts."""
        if any(not self.test_rows.get(task) for task in self.tasks):
            return None
        variance = sum(s * (1 - s) / self.test_rows[task] for task, s in self.rows[row].items())
        return math.sqrt(variance) / len(self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return {
            "tasks": self.tasks,
            "test_rows": dict(self.test_rows),
            "rows": {
                name: {
                    "scores": dict(scores),
                    "mean": self.mean(name),
                    "standard_error": self.standard_error(name),
                    "interference_delta": {task: self.interference(name, task) for task in self.tasks},
                    "recovered": self.recovered(name),
                }
                for name, scores in self.rows.items()
            },
        }
