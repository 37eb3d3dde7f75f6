"""The tables of the page: totals, ranks, configuration, and every tensor."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from lit_wsl.comparing.html import Cell, folded, name_of, shape_of, table
from lit_wsl.comparing.records import Extracted, Finding, Pattern, TensorChange
from lit_wsl.comparing.summary import Total
from lit_wsl.comparing.texts import most_modified
from lit_wsl.comparing.wording import amount, counted, figure, percent, share_of, span

_FEW = 16
"""Rows of a table that is open from the start."""
_LONG = 200
"""Characters of a configuration value that are shown."""


def totals(title: str, subtitle: str, rows: Sequence[tuple[str, Total]], *, noun: str = "") -> Iterator[str]:
    """Totals under a title; many of them are folded, counted by the noun. Names are HTML."""
    head = ("", "tensors", "changed", "entries", "relative difference", "entries changed", "rank")
    cells = [
        [
            Cell(name),
            Cell(str(one.tensors), one.tensors),
            Cell(str(one.changed), one.changed),
            Cell(amount(one.entries), one.entries),
            Cell(figure(one.relative_diff), one.relative_diff),
            Cell(escape(percent(one.changed_ratio)), one.changed_ratio),
            Cell(span(one.ranks) if one.ranks else "–", max(one.ranks, default=0)),
        ]
        for name, one in rows
    ]
    if rows:
        yield f"<h2>{title} <small>{subtitle}</small></h2>"
        inner = table(head, cells)
        yield folded(counted(len(rows), noun), inner, is_open=len(rows) <= _FEW) if noun else inner


def ranks(findings: Sequence[Finding]) -> Iterator[str]:
    """The rank of every matrix with a difference, in brackets where the difference is not of low rank."""
    analysed = [(one, one.pattern) for one in findings if one.pattern is not None]
    if not analysed:
        return
    is_extracted = any(one.extracted for one, _ in analysed)
    head = ["", "shape", "rank", "times above noise", "rank of 95 %", "rank of 99 %", "energy held"]
    head += ["extracted rank", "left out"] if is_extracted else []
    rows = [_rank_row(one, pattern, is_extracted=is_extracted) for one, pattern in analysed]
    low = sum(pattern.is_low_rank for _, pattern in analysed)
    yield f"<h2>Ranks <small>{share_of(low, len(analysed), 'changed matrix')} of low rank</small></h2>"
    yield (
        "<p class=faint>The rank counts singular values above the noise, and stands in brackets where what it leaves "
        "out is more than rounding explains. The ranks of 95 % and 99 % hold that share of the squared norm.</p>"
    )
    yield folded(counted(len(rows), "matrix"), table(head, rows), is_open=len(rows) <= _FEW)


def _rank_row(finding: Finding, pattern: Pattern, *, is_extracted: bool) -> list[Cell]:
    rank, known = pattern.effective_rank, len(pattern.singular_values)
    row = [
        Cell(name_of(finding.name)),
        Cell(shape_of(pattern.shape), pattern.shape[0] * pattern.shape[1]),
        Cell(str(rank) if pattern.is_low_rank else f"({rank})", rank),
        Cell(_margin(pattern), pattern.rank_confidence if rank else -1.0),
        _bounded(pattern.rank_95_energy, known),
        _bounded(pattern.rank_99_energy, known),
        Cell(escape(percent(pattern.energy_captured)), pattern.energy_captured),
    ]
    return [*row, *_extracted(finding.extracted)] if is_extracted else row


def _margin(pattern: Pattern) -> str:
    """How many times the last value that counts lies above the edge of the noise."""
    if not pattern.effective_rank:
        return "–"
    return "&gt; 1000" if pattern.rank_confidence > 0.999 else figure(1.0 / (1.0 - pattern.rank_confidence))


def _bounded(rank: int | None, known: int) -> Cell:
    return Cell(f"&gt; {known}", known + 1) if rank is None else Cell(str(rank), rank)


def _extracted(records: Sequence[Extracted]) -> tuple[Cell, Cell]:
    """Rank of the factors, and the largest share of a difference's norm that they leave out."""
    if not records:
        return Cell("–", -1.0), Cell("–", -1.0)
    most, error = max(one.rank for one in records), max(one.relative_error for one in records)
    return Cell(span([one.rank for one in records]), most), Cell(figure(error), error)


def failures(failed: Mapping[str, str]) -> Iterator[str]:
    """Tensors that could not be compared, with the reason."""
    if failed:
        rows = [[Cell(name_of(name)), Cell(escape(reason))] for name, reason in failed.items()]
        yield f"<h2>Not compared <small>{counted(len(failed), 'tensor')}</small></h2>{table(('', 'reason'), rows)}"


def configurations(configs: Mapping[str, Any]) -> Iterator[str]:
    """Differing values of the files beside the weights."""
    pairs = [(f"{kind}.{key}", one) for kind, found in configs.items() for key, one in found.items()]
    if pairs:
        rows = [[Cell(name_of(name)), Cell(_value(one["base"])), Cell(_value(one["finetuned"]))] for name, one in pairs]
        yield f"<h2>Configuration <small>{counted(len(rows), 'difference')}</small></h2>"
        yield table(("", "base", "fine-tuned"), rows)


def _value(value: object) -> str:
    text = str(value)
    return f"<code>{escape(text if len(text) <= _LONG else f'{text[:_LONG]}…')}</code>"


def tensors(findings: Sequence[Finding]) -> Iterator[str]:
    """Every tensor that was compared, the most changed first."""
    changed = most_modified(findings, len(findings))
    same = [(one.name, one.change) for one in findings if one.change is not None and one.change.diff_norm == 0.0]
    if changed or same:
        head = ("", "shape", "dtype", "relative difference", "mean |Δ|", "max |Δ|", "entries changed", "")
        rows = [_tensor(name, change) for name, change in [*changed, *same]]
        yield f"<h2>Tensors <small>{len(rows)}, the most changed first</small></h2>"
        yield '<input id="filter" type="search" placeholder="Filter by name" aria-label="Filter" autocomplete="off">'
        yield f'<div id="tensors">{table(head, rows)}</div>'


def _tensor(name: str, change: TensorChange) -> list[Cell]:
    dtypes = dict.fromkeys((change.base_dtype, change.tuned_dtype))
    return [
        Cell(name_of(name)),
        Cell(shape_of(change.shape), change.numel),
        Cell(" → ".join(dtypes)),
        Cell(figure(change.relative_diff), change.relative_diff),
        Cell(figure(change.mean_abs_diff), change.mean_abs_diff),
        Cell(figure(change.max_abs_diff), change.max_abs_diff),
        Cell(escape(percent(change.changed_ratio)), change.changed_ratio),
        Cell(_status(change)),
    ]


def _status(change: TensorChange) -> str:
    if change.diff_norm == 0.0:
        return "equal"
    if change.is_rounding:
        return "rounded"
    return "modified" if change.modified else "below the bars"
