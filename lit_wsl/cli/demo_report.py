"""What the demo found: figures for programs, a page for people, a table for the terminal."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_wsl.cli.console import table_console
from lit_wsl.evaluation import ScoreTable
from lit_wsl.evaluation.report import score_table, write_report
from lit_wsl.runs.bundle import CONFIG, read_results, versions
from lit_wsl.runs.strict import write_json
from lit_wsl.sweep.outcome import Params
from lit_wsl.sweep.records import Record

logger = logging.getLogger(__name__)

CHOSEN_BY = "highest lowest interference delta over the tasks on validation rows; of equals, the highest mean"


@dataclass(frozen=True)
class Measured:
    """A merge on test rows."""

    params: Params
    run: Path
    """Its run bundle."""

    @property
    def results(self) -> Mapping[str, Mapping[str, Any]]:
        """What was measured of each task."""
        return read_results(self.run)["test"]

    @property
    def scores(self) -> dict[str, float]:
        """Task to the metric that counts."""
        return {task: one["metrics"][one["primary"]] for task, one in self.results.items()}

    @property
    def mean(self) -> float:
        """Mean score over the tasks."""
        return sum(self.scores.values()) / len(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Plain figures."""
        return {"params": self.params, "scores": self.scores, "mean": self.mean, "run": str(self.run)}


@dataclass(frozen=True)
class Row:
    """One method: what its sweep chose on validation rows, and what test rows say."""

    method: str
    sweep: Path
    """The JSON of the sweep."""
    best: Record
    """Its best point."""
    chosen: Measured
    default: Measured
    """The method with its default parameters."""

    @property
    def note(self) -> str:
        """The chosen parameters, and what the defaults give instead."""
        return f"{note(self.chosen.params)}; by default {100 * self.default.mean:.1f}" if self.chosen.params else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain figures."""
        on_validation = {"lowest": self.best.score, "mean": self.best.mean}
        return {
            "method": self.method,
            **self.chosen.to_dict(),
            "validation": on_validation,
            "sweep": str(self.sweep),
            "default": self.default.to_dict(),
        }


def note(params: Params) -> str:
    """Parameters in a line."""
    return ", ".join(f"{name} {value}" for name, value in params.items())


def report(output: Path, scores: ScoreTable, rows: Mapping[str, Row], best: str, model: Path, seconds: float) -> None:
    """Write `results.json` and `report.html`, and print the table.

    Args:
        output: The demo's directory.
        scores: All scores on test rows.
        rows: What the sweeps chose.
        best: The row that was best on validation rows.
        model: Where its weights lie.
        seconds: Time that it took.
    """
    figures = {
        **scores.to_dict(),
        "chosen_by": CHOSEN_BY,
        "chosen": {name: row.to_dict() for name, row in rows.items()},
        "best_on_validation": best,
        "model": str(model),
        "seconds": round(seconds, 1),
        "versions": versions(),
    }
    write_json(output / "results.json", figures)
    notes = {name: row.note for name, row in rows.items()}
    facts = {
        "merged model (best on validation)": f"{model}: {best} {note(rows[best].chosen.params)}",
        "parameters were chosen by": CHOSEN_BY,
        "repeat it": f"lit-wsl merge --config {rows[best].chosen.run / CONFIG} --output NEW_DIRECTORY",
        "all runs": f"lit-wsl runs list --artifacts_dir {output}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    write_report(output / "report.html", "Three adapters, one backbone", scores, notes, facts, best)
    table_console().print(score_table(scores, notes))
    logger.info("Took %.0f s. Figures: %s, page: %s.", seconds, output / "results.json", output / "report.html")
