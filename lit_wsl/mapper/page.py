"""A mapping as one page of HTML that asks nothing of the network."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from lit_wsl.mapper.result import MappingResult, Match
from lit_wsl.mapper.rows import LeftOver, Row, left_over_sources, left_over_targets, rows_of
from lit_wsl.mapper.tables import summary

_PARTS = ("shape", "name", "hierarchy", "order")


def page(result: MappingResult) -> str:
    """The page: what is ambiguous first, then the other recipes, then what is left over."""
    rows = rows_of(result)
    doubtful = [row for row in rows if row.is_ambiguous]
    title = f"{result.source.where} → {result.target.where}"
    sections = [
        _section("Ambiguous", "another reading is about as likely", doubtful),
        _section("Recipes", "", [row for row in rows if not row.is_ambiguous]),
        _left_section("Source tensors that are not mapped", left_over_sources(result)),
        _left_section("Target tensors that nothing makes", left_over_targets(result)),
    ]
    style, script = (files("lit_wsl.mapper").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>\n{style}</style></head><body><main>",
            f"<h1>{_name(result.source.where)} <span class=arrow>→</span> {_name(result.target.where)}</h1>",
            _coverage(result),
            *(f"<p>{escape(line)}</p>" for line in summary(result)[1:]),
            '<input id="filter" type="search" placeholder="Filter by name, operation or reason" '
            'aria-label="Filter" autocomplete="off"><p id="none" hidden>Nothing matches.</p>',
            *filter(None, sections),
            f"</main><script>\n{script}</script></body></html>\n",
        ]
    )


def _coverage(result: MappingResult) -> str:
    used, made = len(set(result.recipes.sources())), len(result.recipes.targets())
    sides = [
        (result.coverage, f"{used} of {len(result.source.weights)} source tensors are mapped"),
        (result.target_coverage, f"{made} of {len(result.target.weights)} target tensors are made"),
    ]
    return "".join(f'<p class="coverage">{_bar(share, f"{share:.1%}")} {text}</p>' for share, text in sides)


def _section(title: str, subtitle: str, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    count = sum(len(row.matches) for row in rows)
    head = "<span></span><span>source</span><span>target</span><span>operation</span><span>shape</span>"
    return (
        f"<section><h2>{title} <small>{count}{' · ' + subtitle if subtitle else ''}</small></h2>"
        f'<div class="row head">{head}<span>score</span></div>{"".join(map(_recipe, rows))}</section>'
    )


def _recipe(row: Row) -> str:
    """A row that unfolds to its recipes."""
    cells = [
        f'<span class="count">{len(row.matches)}×</span>',
        f"<span>{_name(row.sources)}</span>",
        f"<span>{_name(row.targets)}</span>",
        f"<span>{escape(row.operation)}</span>",
        f"<span>{escape(row.shape)}</span>",
        _bar(row.score, f"{row.score:.2f}", is_low=row.is_ambiguous),
    ]
    doubt = _doubt(row)
    inner = "".join(map(_single, row.matches))
    head = "".join(f"<th>{part}</th>" for part in ("source", "target", *_PARTS, "score"))
    return (
        f"<details><summary><span class=row>{''.join(cells)}</span>{doubt}</summary>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{inner}</tbody></table></div></details>'
    )


def _doubt(row: Row) -> str:
    if not row.note and not row.is_ambiguous:
        return ""
    why = row.note.removesuffix(f": {row.alternatives}") if row.alternatives else row.note
    others = f" — or else {_name(row.alternatives)}" if row.alternatives else ""
    return f"<span class=note>{escape(why or 'little speaks for it')}{others}</span>"


def _single(match: Match) -> str:
    names = (_lines(match.entry.sources), _lines(match.entry.targets))
    values = (*(getattr(match.scores, part) for part in _PARTS), match.score)
    return f"<tr>{''.join(f'<td>{text}</td>' for text in (*names, *(f'{value:.2f}' for value in values)))}</tr>"


def _left_section(title: str, rows: Sequence[LeftOver]) -> str:
    if not rows:
        return ""
    count = sum(len(row.names) for row in rows)
    items = "".join(map(_left, rows))
    return f"<section><h2>{title} <small>{count}</small></h2>{items}</section>"


def _left(row: LeftOver) -> str:
    head = (
        f'<span class="row left"><span class=count>{len(row.names)}×</span><span>{_name(row.name)}</span>'
        f"<span>{escape(row.shape)}</span><span>{escape(row.reason)}</span></span>"
    )
    return f"<details><summary>{head}</summary><p class=names>{_lines(row.names)}</p></details>"


def _bar(share: float, text: str, *, is_low: bool = False) -> str:
    kind = "bar low" if is_low else "bar"
    width = 100 * min(max(share, 0.0), 1.0)
    fill = f'<span class=fill style="width:{width:.1f}%"></span>'
    return f'<span class="{kind}">{fill}<strong>{escape(text)}</strong></span>'


def _lines(names: Iterable[str]) -> str:
    return "<br>".join(map(_name, names))


def _name(name: str) -> str:
    """A name that may be broken after its dots."""
    return f"<code>{escape(name).replace('.', '.<wbr>')}</code>"
