"""A mapping on the screen: tables of recipes and trees of models, repeated blocks once."""

import sys
from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from lit_wsl.mapper.hierarchy import Branch, branches_of
from lit_wsl.mapper.inventory import Inventory
from lit_wsl.mapper.result import MappingResult
from lit_wsl.mapper.rows import LeftOver, Row, left_over_sources, left_over_targets, rows_of

_PLAIN_WIDTH = 1000
"""Columns where there is no terminal and no notebook to ask: no name in a file is broken."""
_TWO_NAMES = 130
"""Columns from which two names stand side by side."""
_NARROW = 14
"""Columns of an operation or shape below that."""
_PROSE_WIDTH = 70
"""Columns of a sentence, which may be broken."""


def print_analysis(result: MappingResult, width: int | None = None) -> None:
    """Print what is ambiguous, what is left over and why, and how much is mapped.

    Args:
        result: The mapping.
        width: Columns of the tables; default those of the terminal or notebook, in a file as many as are needed.
    """
    console = _console(width)
    rows = rows_of(result)
    if doubtful := [row for row in rows if row.is_ambiguous]:
        console.print(_doubts(doubtful))
    left, open_ = left_over_sources(result), left_over_targets(result)
    if left:
        console.print(_left_over(left, "Source tensors that are not mapped", "why"))
    if open_:
        console.print(_left_over(open_, "Target tensors that nothing makes", ""))
    for line in summary(result):
        console.print(line, soft_wrap=width is None and not console.is_jupyter)


def print_mapping(result: MappingResult, width: int | None = None) -> None:
    """Print a table of the recipes, those of repeated blocks in one row.

    Args:
        result: The mapping.
        width: Columns of the table; default those of the terminal or notebook, in a file as many as are needed.
    """
    console = _console(width)
    is_narrow = console.width < _TWO_NAMES
    names = ("source, target",) if is_narrow else ("source", "target")
    table = _table(*names, title=f"{result.source.where} → {result.target.where}")
    for column in ("operation", "shape"):
        table.add_column(column, max_width=_NARROW if is_narrow else None)
    table.add_column("tensors", justify="right")
    table.add_column("score", justify="right", no_wrap=True)
    for row in rows_of(result):
        sides = (f"{row.sources}\n→\N{NO-BREAK SPACE}{row.targets}",) if is_narrow else (row.sources, row.targets)
        table.add_row(*sides, row.operation, row.shape, str(_made(row)), _score(row))
    console.print(table)


def print_hierarchies(source: Inventory, target: Inventory) -> None:
    """Print both models as trees."""
    print_hierarchy(source)
    print_hierarchy(target)


def print_hierarchy(inventory: Inventory) -> None:
    """Print a model as a tree, alike blocks in one branch."""
    entries = sum(weight.numel for weight in inventory.weights)
    tree = Tree(Text(f"{inventory.where}: {len(inventory.weights)} tensors, {entries:,} entries", style="bold"))
    _grow(tree, branches_of(inventory))
    _console().print(tree)


def summary(result: MappingResult) -> list[str]:
    """How much is mapped, by which operations, and how sure that is, in lines."""
    used, made = len(set(result.recipes.sources())), len(result.recipes.targets())
    doubtful = sum(match.is_ambiguous for match in result.matches)
    kinds = Counter(match.match_type for match in result.matches)
    lines = [
        f"{used} of {len(result.source.weights)} source tensors are mapped ({result.coverage:.1%}); "
        f"{made} of {len(result.target.weights)} target tensors are made ({result.target_coverage:.1%}).",
        f"{len(result.matches)} recipes: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}; "
        f"{doubtful} ambiguous. Strategy {result.strategy}, threshold {result.threshold:g}.",
    ]
    return lines if result.matches else lines[:1]


def _console(width: int | None = None) -> Console:
    """A console that takes names as they are, as wide as the terminal or notebook, or wide enough for a file."""
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    if width is None and not sys.stdout.isatty() and not console.is_jupyter:
        console.width = _PLAIN_WIDTH
    return console


def _table(*columns: str, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _doubts(rows: Iterable[Row]) -> Table:
    table = _table("source", "target", "or else", title="Ambiguous: another reading is about as likely")
    table.add_column("why", max_width=_PROSE_WIDTH)
    table.add_column("score", justify="right", no_wrap=True)
    for row in rows:
        why = row.note.removesuffix(f": {row.alternatives}") if row.alternatives else row.note
        table.add_row(row.sources, row.targets, row.alternatives, why or "little speaks for it", _score(row))
    return table


def _left_over(rows: Iterable[LeftOver], title: str, why: str) -> Table:
    table = _table("tensor", "shape", title=title)
    if why:
        table.add_column(why, max_width=_PROSE_WIDTH)
    for row in rows:
        table.add_row(row.name, row.shape, *([row.reason] if why else []))
    return table


def _made(row: Row) -> int:
    return sum(len(match.entry.targets) for match in row.matches)


def _score(row: Row) -> Text:
    """The score; a question mark where it is ambiguous."""
    return Text(f"{row.score:.2f} ?", style="yellow") if row.is_ambiguous else Text(f"{row.score:.2f}  ")


def _grow(tree: Tree, branches: Iterable[Branch]) -> None:
    for branch in branches:
        label = Text(branch.name, style="bold" if branch.children else "")
        label.append(f"  {branch.layer}" if branch.layer else "", style="cyan")
        label.append(f"  {branch.tensors}" if branch.tensors else "", style="dim")
        _grow(tree.add(label), branch.children)
