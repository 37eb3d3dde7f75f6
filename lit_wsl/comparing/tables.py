"""What a comparison found, for the terminal: the verdict, then one row for each kind of module that changed."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lit_wsl.comparing.run import Comparison
from lit_wsl.comparing.summary import Total, summarise
from lit_wsl.comparing.verdict import verdict_of
from lit_wsl.comparing.wording import figure, percent

MOST_KINDS = 40
"""Rows of the table; the report has them all."""


def comparison_tables(comparison: Comparison) -> Iterator[RenderableType]:
    """The verdict with what a reader should know beside it, and a table where anything changed."""
    verdict = verdict_of(comparison)
    yield Text(f"{verdict.headline}.", style="bold")
    for sentence in verdict.findings:
        yield Text(f"- {sentence}")
    summary = summarise(comparison.findings)
    kinds = {kind: total for kind, total in summary.kinds.items() if total.changed}
    if kinds:
        yield _table({**dict(list(kinds.items())[:MOST_KINDS]), "whole model": summary.whole})


def _table(totals: dict[str, Total]) -> Table:
    table = Table(title=None)
    table.add_column("module")
    for head in ("tensors", "changed", "relative change", "entries changed", "rank", "energy in rank 16"):
        table.add_column(head, justify="right")
    for name, total in totals.items():
        table.add_row(
            name,
            str(total.tensors),
            str(total.changed),
            figure(total.relative_diff),
            percent(total.changed_ratio),
            _ranks(total),
            percent(total.energy_at["16"]) if "16" in total.energy_at else "",
        )
    return table


def _ranks(total: Total) -> str:
    """The ranks of changes of low rank: one number, or the least and the largest."""
    if not total.ranks:
        return ""
    least, most = total.ranks[0], total.ranks[-1]
    return str(least) if least == most else f"{least} to {most}"
