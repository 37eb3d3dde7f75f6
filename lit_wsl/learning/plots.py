"""Pictures of what was learned: the coefficients, and the way to them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from lit_wsl.comparing.summary import short_kinds
from lit_wsl.learning.drawing import FAINT, INK, STYLE, laid_out
from lit_wsl.learning.history import source_names
from lit_wsl.learning.history_plots import history_plot as history_plot
from lit_wsl.learning.rows import DEFAULT, Rows
from lit_wsl.state.names import parse_name

MOST_NUMBERS = 40
"""Columns that are wide enough for numbers in their cells."""
_GAP = 0.45
"""Columns between two towers."""
_REST, _NO_LAYER = "all else", "no layer"


def coefficient_plot(rows: Rows, sources: Sequence[str], values: Sequence[Sequence[float]]) -> Figure:
    """Draw coefficients: bars for one row, else a heat map of layers, groups or tensors by source.

    Args:
        rows: Which parameters share a row.
        sources: The task of each source.
        values: One list a row.
    """
    names, grid = source_names(list(sources)), np.asarray(values, dtype=float)
    with rc_context({**STYLE, "axes.grid": False}):
        if len(rows.names) == 1:
            drawing = _bars(names, grid[0])
        elif rows.granularity == "groups":
            drawing = _groups(rows, names, grid)
        elif rows.granularity == "layer":
            drawing = _layers(rows, names, grid)
        else:
            drawing = _tensors(rows, names, grid)
        return laid_out(drawing)


def _scale(grid: np.ndarray) -> tuple[Colormap, Normalize]:
    """Colours from 0 on, or to both sides of it where there are negative values."""
    largest = max(float(np.nanmax(np.abs(grid))), 1e-3)
    if np.nanmin(grid) < 0.0:
        return colormaps["RdBu"], Normalize(-largest, largest)
    return colormaps["Blues"], Normalize(0.0, 1.25 * largest)  # short of its darkest, which hides numbers


def _bars(names: Sequence[str], values: np.ndarray) -> Figure:
    """One coefficient a source."""
    drawing = Figure(figsize=(6.4, 0.9 + 0.36 * len(names)), dpi=110, layout="constrained")
    axes = drawing.subplots()
    colours = ["#c44536" if value < 0.0 else "#2f6690" for value in values]
    axes.barh(range(len(names)), values, 0.58, color=colours, alpha=0.88)
    for at, value in enumerate(values):
        side = -1 if value < 0.0 else 1
        axes.annotate(
            _text(value, 3),
            (value, at),
            xytext=(4 * side, 0),
            textcoords="offset points",
            va="center",
            ha="left" if side > 0 else "right",
        )
    axes.axvline(0.0, color=FAINT, linewidth=0.9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x")
    axes.margins(x=0.2)
    axes.set_xlabel("coefficient")
    return drawing


def _layers(rows: Rows, names: Sequence[str], grid: np.ndarray) -> Figure:
    """Sources by layers, the towers side by side, behind the row of all else."""
    places = [_place(name) for name in rows.names]
    order = sorted(range(len(places)), key=lambda at: (places[at] is not None, places[at] or ("", 0)))
    ordered = [places[at] for at in order]
    drawing = Figure(figsize=_size(len(order), len(names)), dpi=110, layout="constrained")
    axes = drawing.subplots()
    edges = _columns(ordered)
    image = _cells(axes, grid[order].T, edges)
    axes.set_yticks(np.arange(len(names)) + 0.5, names)
    _name_columns(axes, ordered, edges, _REST)
    _colour_bar(drawing, image, axes, grid)
    return drawing


def _groups(rows: Rows, names: Sequence[str], grid: np.ndarray) -> Figure:
    """Groups by sources."""
    labels = [_REST if name == DEFAULT else name for name in rows.names]
    wide = 2.2 + 0.075 * max(map(len, labels)) + 0.75 * len(names)
    drawing = Figure(figsize=(wide, 1.2 + 0.3 * len(labels)), dpi=110, layout="constrained")
    axes = drawing.subplots()
    image = _cells(axes, grid, [(at, at + 1.0) for at in range(len(names))])
    axes.set_yticks(np.arange(len(labels)) + 0.5, labels)
    axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=30 if max(map(len, names)) > 10 else 0)
    if DEFAULT in rows.names:
        axes.axhline(rows.names.index(DEFAULT) + 1.0, color="white", linewidth=7.0)
    _colour_bar(drawing, image, axes, grid)
    return drawing


def _tensors(rows: Rows, names: Sequence[str], grid: np.ndarray) -> Figure:
    """For each source, roles by layers; what stands in no layer is in a column of its own."""
    parsed = [parse_name(name) for name in rows.names]
    places = [None if one.layer is None else (one.tower, one.layer) for one in parsed]
    columns = sorted(set(places), key=lambda place: (place is not None, place or ("", 0)))
    roles = list(dict.fromkeys(one.role.removesuffix(".weight") for one in parsed))
    cube = np.full((len(names), len(roles), len(columns)), np.nan)
    for row, (one, place) in enumerate(zip(parsed, places, strict=True)):
        cube[:, roles.index(one.role.removesuffix(".weight")), columns.index(place)] = grid[row]
    across = 1 if len(columns) > 16 or len(names) == 1 else 2
    down = -(-len(names) // across)
    short = short_kinds(roles)
    edge = 0.4 + 0.075 * max(map(len, short.values()))
    size = (edge + across * max(1.6, 0.24 * len(columns)) + 1.0, down * (0.62 + 0.19 * len(roles)) + 0.3)
    drawing = Figure(figsize=size, dpi=110, layout="constrained")
    panels = drawing.subplots(down, across, squeeze=False, sharey=True)
    edges, (colours, scale) = _columns(columns), _scale(grid)
    for at, (axes, panel) in enumerate(zip(panels.flat, cube, strict=False)):
        image = _cells(axes, panel, edges, colours=colours, scale=scale, numbers=False)
        axes.set_title(names[at], loc="left", fontsize=9.5)
        _name_columns(axes, columns, edges, _NO_LAYER if at >= len(names) - across else None)
    for axes in panels[:, 0]:
        axes.set_yticks(np.arange(len(roles)) + 0.5, [short[role] for role in roles], fontsize=8)
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    _colour_bar(drawing, image, list(panels.flat), grid)
    return drawing


Place = tuple[str, int] | None


def _place(name: str) -> Place:
    """Tower and layer of a row's name; None for that of all else."""
    tower, _, layer = name.rpartition(":")
    return None if name == DEFAULT else (tower, int(layer))


def _columns(places: Sequence[Place]) -> list[tuple[float, float]]:
    """Left and right edge of each column, with a gap where a tower begins."""
    edges: list[tuple[float, float]] = []
    for at, place in enumerate(places):
        start = edges[-1][1] if edges else 0.0
        before = places[at - 1] if at else place
        if (before is None) != (place is None) or (before and place and before[0] != place[0]):
            start += _GAP
        edges.append((start, start + 1.0))
    return edges


def _size(columns: int, rows: int) -> tuple[float, float]:
    return max(5.0, 1.9 + (0.32 if columns <= MOST_NUMBERS else 0.16) * columns), 1.15 + 0.34 * rows


def _cells(
    axes: Axes,
    grid: np.ndarray,
    edges: Sequence[tuple[float, float]],
    *,
    colours: Colormap | None = None,
    scale: Normalize | None = None,
    numbers: bool = True,
) -> Any:
    """Cells of a grid, shape ``(rows, columns)``, the first row on top; numbers in them where they fit."""
    if colours is None or scale is None:
        colours, scale = _scale(grid)
    image: Any = None
    for column, (left, right) in zip(grid.T, edges, strict=True):
        cells = np.ma.masked_invalid(column[:, None])
        corners = np.array([left, right]), np.arange(len(column) + 1.0)
        image = axes.pcolormesh(*corners, cells, cmap=colours, norm=scale, edgecolor="white", linewidth=0.8)
        for at, value in enumerate(column) if numbers and len(edges) <= MOST_NUMBERS else ():
            dark = float(np.dot(colours(scale(value))[:3], (0.299, 0.587, 0.114))) < 0.55
            text = _text(value, 2).replace("0.", ".", 1) if abs(value) < 0.995 else _text(value, 1)
            place = ((left + right) / 2, at + 0.5)
            axes.annotate(text, place, ha="center", va="center", fontsize=7, color="w" if dark else INK)
    axes.set(xlim=(edges[0][0], edges[-1][1]), ylim=(len(grid), 0.0))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def _text(value: float, digits: int) -> str:
    """A number without a negative zero, with a true minus."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _name_columns(
    axes: Axes, places: Sequence[Place], edges: Sequence[tuple[float, float]], outside: str | None
) -> None:
    """Numbers of layers below the columns, and towers beneath these where there are several.

    Args:
        axes: Where the cells are.
        places: Of the columns.
        edges: Of the columns.
        outside: Name of a column in no layer; None names no column at all.
    """
    if outside is None:
        axes.set_xticks([])
        return
    step = 1 if len(places) <= MOST_NUMBERS else 4
    middles = [(left + right) / 2 for left, right in edges]
    shown = [(m, p) for m, p in zip(middles, places, strict=True) if p is None or p[1] % step == 0]
    axes.set_xticks([m for m, _ in shown], [outside if p is None else str(p[1]) for _, p in shown], fontsize=8)
    for label, (_, place) in zip(axes.get_xticklabels(), shown, strict=True):
        label.set_rotation(90 if place is None else 0)
    towers = list(dict.fromkeys(place[0] for place in places if place is not None))
    if len(towers) <= 1:
        axes.set_xlabel("layer")
    for tower in towers if len(towers) > 1 else ():
        own = [m for m, p in zip(middles, places, strict=True) if p is not None and p[0] == tower]
        axes.annotate(
            f"layers of {tower}",
            (sum(own) / len(own), 0.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -24),
            textcoords="offset points",
            ha="center",
            va="top",
        )


def _colour_bar(drawing: Figure, image: Any, axes: Any, grid: np.ndarray) -> None:
    """The colours of the values that there are."""
    bar = drawing.colorbar(image, ax=axes, fraction=0.04, pad=0.015, aspect=18, label="coefficient")
    low, high = float(grid.min()), float(grid.max())
    room = 0.03 * max(high - low, 1e-3)
    bar.ax.set_ylim(max(image.norm.vmin, min(low, 0.0) - room), min(image.norm.vmax, max(high, 0.0) + room))
    bar.ax.spines["outline"].set_visible(False)
