"""Tables and names in HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """A cell of a table, with the number that it sorts by; one without a number holds text."""

    html: str
    value: float | None = None


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table that sorts by its heads; the first column holds names."""
    kinds = ["" if cell.value is not None else " class=text" for cell in rows[0]]
    heads = "".join(f"<th{kind}>{name}</th>" for kind, name in zip(kinds, head, strict=True))
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    return f"<td>{cell.html}</td>" if cell.value is None else f'<td data-value="{cell.value:g}">{cell.html}</td>'


def folded(title: str, inner: str, *, is_open: bool) -> str:
    """What is long, behind its title."""
    return f"<details{' open' if is_open else ''}><summary>{title}</summary>{inner}</details>"


def name_of(name: str) -> str:
    """A name that may be broken after its dots."""
    return f"<code>{escape(name).replace('.', '.<wbr>')}</code>"


def titled(short: str, name: str) -> str:
    """A short name that shows the long one under the pointer."""
    return f'<code title="{escape(name)}">{escape(short)}</code>'


def shape_of(shape: Sequence[int]) -> str:
    """Sides of a tensor."""
    return " × ".join(map(str, shape)) or "scalar"
