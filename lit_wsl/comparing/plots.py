"""Plots of a comparison: figures, and the same as SVG that stands inside a page and takes its colours from there."""

import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from lit_wsl.comparing.changes import BIN_EDGES
from lit_wsl.comparing.records import Finding, Pattern
from lit_wsl.comparing.summary import in_layers, kind_of, layer_of, short_kinds, total, tower_of
from lit_wsl.comparing.wording import figure
from lit_wsl.state.names import parse_name

MOST_COLUMNS, MOST_LABELS, MOST_PANELS = 30, 80, 12
_DECADES = 4
"""Powers of ten that the colours of the heat map tell apart."""
_LOWEST = 1e-7
"""Share of the largest singular value below which float32 arithmetic makes values up."""
_SHADES, _DPI = 48, 150
_INK, _FAINT, _TINT, _PAPER = "#2b3440", "#8a94a0", "#e6e9ee", "#fffffe"
"""Colours that no map of colours has, so that those of the page can take their places."""
_COLOURS = {_INK: "var(--ink)", _FAINT: "var(--faint)", _TINT: "var(--line)", _PAPER: "var(--paper)"}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "figure.facecolor": _PAPER,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), _INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), _FAINT),
}


def figures_of(findings: Sequence[Finding], threshold: float) -> dict[str, Figure]:
    """Every picture that there is something to show in, by the name of its file.

    Args:
        findings: What was found of every tensor.
        threshold: What an entry must differ by to count as changed.
    """
    drawn = {"heat_map": heat_map(findings), "spectra": spectra(findings), "histogram": histogram(findings, threshold)}
    return {name: drawing for name, drawing in drawn.items() if drawing is not None}


def heat_map(findings: Sequence[Finding]) -> Figure | None:
    """Relative difference of each kind of module in each layer; None where no layer changed."""
    cells: dict[tuple[str, str], list[Finding]] = {}
    for one in in_layers(findings):
        if one.change is not None:
            cells.setdefault((layer_of(one.name), kind_of(one.name)), []).append(one)
    values = {key: total(group).relative_diff for key, group in cells.items()}
    if not any(values.values()):
        return None
    layers, kinds = list(dict.fromkeys(layer for layer, _ in cells)), _columns(values)
    grid = np.array([[values.get((layer, kind), math.nan) for kind in kinds] for layer in layers])
    with rc_context(_STYLE):
        longest = max(map(len, kinds))
        size = (2.6 + 0.36 * len(kinds), 1.0 + 0.06 * longest + 0.17 * max(len(layers), 4))
        drawing = Figure(figsize=size, layout="constrained")
        axes = drawing.subplots()
        _draw_cells(axes, grid)
        short = short_kinds(kinds)
        axes.set_xticks(
            np.arange(len(kinds)) + 0.5, [short[kind] for kind in kinds], rotation=55, ha="left", rotation_mode="anchor"
        )
        axes.xaxis.tick_top()
        axes.tick_params(axis="x", length=0, pad=1)
        step = -(-len(layers) // MOST_LABELS)
        names = _row_names(layers, findings)
        axes.set_yticks(np.arange(0, len(layers), step) + 0.5, names[::step])
        axes.tick_params(axis="y", length=0)
        axes.spines[:].set_visible(False)
        return _laid_out(drawing)


def _columns(values: dict[tuple[str, str], float]) -> list[str]:
    """Kinds of modules in their order; the most changed of very many."""
    kinds = list(dict.fromkeys(kind for _, kind in values))
    most = {kind: max(value for (_, other), value in values.items() if other == kind) for kind in kinds}
    kept = set(sorted(kinds, key=lambda kind: -most[kind])[:MOST_COLUMNS])
    return [kind for kind in kinds if kind in kept]


def _row_names(layers: Sequence[str], findings: Iterable[Finding]) -> list[str]:
    """Numbers of layers, with the tower where there are several."""
    parsed = {layer_of(one.name): (tower_of(one.name), parse_name(one.name).layer) for one in findings}
    several = len({parsed[layer][0] for layer in layers}) > 1
    return [f"{parsed[layer][0]} {parsed[layer][1]}" if several else f"layer {parsed[layer][1]}" for layer in layers]


def _draw_cells(axes: Axes, grid: "np.ndarray[Any, np.dtype[np.float64]]") -> None:
    """Colour by the power of ten; what did not change is grey, what does not exist empty."""
    high = float(np.nanmax(grid))
    low = max(float(grid[grid > 0].min()), high * 10.0**-_DECADES)
    if high / low < 1.5:  # one colour says it all, but a scale needs two ends
        low, high = low / 2, high * 2
    edges = (np.arange(grid.shape[1] + 1), np.arange(grid.shape[0] + 1))
    unchanged = np.ma.masked_where(grid != 0, grid)
    still = axes.pcolormesh(*edges, np.ma.masked_invalid(unchanged), cmap=ListedColormap([_TINT]))
    changed = np.ma.masked_where(~(grid > 0), grid)
    colours = colormaps["viridis"].resampled(_SHADES)
    mesh = axes.pcolormesh(*edges, changed, cmap=colours, norm=LogNorm(low, high, clip=True))
    for cells in (still, mesh):
        cells.set(edgecolor=_PAPER, linewidth=0.6)
    axes.invert_yaxis()
    width = 0.36 * grid.shape[1]
    share = 0.12 / (0.12 + width)
    bar: Any = axes.figure.colorbar(mesh, ax=axes, location="right", fraction=share, aspect=18, anchor=(0.0, 1.0))
    bar.outline.set_visible(False)
    bar.solids.set(rasterized=False, edgecolor="face")
    bar.ax.minorticks_off()
    ticks = _log_ticks(low, high)
    bar.set_ticks(ticks, labels=[figure(tick) for tick in ticks])
    bar.set_label("relative difference")


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between the ends; 2 and 5 times them where there are few."""
    for steps in ((1.0,), (1.0, 2.0, 5.0)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) > 2:
            break
    return ticks or [low, high]


def spectra(findings: Sequence[Finding]) -> Figure | None:
    """Singular values of every analysed difference over the largest, by kind of module; None where there are none."""
    panels: dict[str, list[tuple[int | None, Pattern]]] = {}
    weights: dict[str, float] = {}
    for one in findings:
        if one.pattern is None or one.change is None or one.pattern.max_singular_value <= 0.0:
            continue
        kind = kind_of(one.name)
        panels.setdefault(kind, []).append((parse_name(one.name).layer, one.pattern))
        weights[kind] = math.hypot(weights.get(kind, 0.0), one.change.diff_norm)
    if not panels:
        return None
    kinds = sorted(panels, key=lambda kind: -weights[kind])[:MOST_PANELS]
    columns = min(4, len(kinds))
    rows = -(-len(kinds) // columns)
    short = short_kinds(panels)
    with rc_context(_STYLE):
        drawing = Figure(figsize=(max(2.4 * columns, 3.2), 0.3 + 1.9 * rows), layout="constrained")
        grid = drawing.subplots(rows, columns, squeeze=False)
        deepest = max(layer or 0 for kind in kinds for layer, _ in panels[kind])
        for axes, kind in zip(grid.flat, kinds, strict=False):
            _draw_spectra(axes, panels[kind], max(deepest, 1))
            axes.set_title(f"{_ending(short[kind])} ({len(panels[kind])})", color=_INK)
        for axes in grid.flat[len(kinds) :]:
            axes.set_visible(False)
        _share_scale(list(grid.flat[: len(kinds)]), columns)
        drawing.supylabel("share of the largest value")
        drawing.supxlabel("singular value, in order")
        return _laid_out(drawing)


def _share_scale(panels: Sequence[Axes], columns: int) -> None:
    """One scale for all panels, with its numbers at the left of each row."""
    low = min(axes.get_ylim()[0] for axes in panels)
    high = max(axes.get_ylim()[1] for axes in panels)
    powers = range(round(math.log10(low)), 1)
    step = -(-len(powers) // 6)
    for at, axes in enumerate(panels):
        axes.set_ylim(low, high)
        axes.set_yticks([10.0**power for power in powers[::-step]], [f"1e{power}" for power in powers[::-step]])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="y", labelleft=at % columns == 0)


def _ending(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _draw_spectra(axes: Axes, patterns: Sequence[tuple[int | None, Pattern]], deepest: int) -> None:
    lines, colours, shown, lowest = [], [], 1, 1.0
    for layer, pattern in patterns:
        values = [value / pattern.max_singular_value for value in pattern.singular_values]
        places = [at for at in range(len(values)) if (at < 40 or at % 4 == 0) and values[at] >= _LOWEST]
        shown, lowest = max(shown, places[-1] + 1), min(lowest, values[places[-1]])
        lines.append([(at + 1, values[at]) for at in places])
        colours.append(colormaps["viridis"](0.5 if layer is None else 0.2 + 0.65 * layer / deepest))
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=0.9), autolim=False)
    if shown < 4:  # a line of so few points is hard to see, or none
        points = np.array([point for line in lines for point in line])
        axes.scatter(points[:, 0], points[:, 1], s=9, color=_INK)
    edges = sorted(pattern.noise_edge / pattern.max_singular_value for _, pattern in patterns)
    edge = max(edges[len(edges) // 2], _LOWEST)
    axes.axhline(edge, color=_INK, lw=0.8, ls=(0, (4, 3)))
    low = math.floor(math.log10(min(lowest, edge)))
    axes.set_yscale("log")
    axes.set_ylim(10.0**low, max(1.6, 1.6 * edge))
    axes.set_xlim(0.5, shown + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))


def histogram(findings: Sequence[Finding], threshold: float) -> Figure | None:
    """Share of entries by the size of their difference, over all tensors that changed; None without one."""
    changes = [one.change for one in findings if one.change is not None and one.change.histogram]
    if not changes:
        return None
    weights = np.array([change.numel for change in changes], dtype=np.float64)
    shares = weights @ np.array([change.histogram for change in changes]) / weights.sum()
    filled = np.flatnonzero(shares > 0)
    first, last = int(filled[0]), int(filled[-1])
    powers = [round(math.log10(edge)) for edge in BIN_EDGES]
    with rc_context(_STYLE):
        drawing = Figure(figsize=(6.6, 2.4), layout="constrained")
        axes = drawing.subplots()
        places = np.arange(first, last + 1)
        bars = axes.bar(places, 100 * shares[first : last + 1], 0.92, color=colormaps["viridis"](0.35))
        labels = [f"{100 * share:.1f}" if share >= 0.0005 else "" for share in shares[first : last + 1]]
        axes.bar_label(bars, labels, padding=1, fontsize=8, color=_INK)
        edges = range(first, min(last + 1, len(powers)) + 1)
        axes.set_xticks([at - 0.5 for at in edges], ["0", *(f"1e{power}" for power in powers)][first : edges.stop])
        axes.set_xlim(first - 0.6, max(last, first + 3) + 0.6)
        place = math.log10(threshold) - powers[0] + 0.5 if threshold > 0 else -1.0
        if first - 0.5 <= place <= last + 0.5:
            axes.axvline(place, color=_INK, lw=0.8, ls=(0, (4, 3)))
        axes.set_xlabel("size of the difference of an entry")
        axes.set_ylabel("percent of entries")
        axes.margins(y=0.15)
        return _laid_out(drawing)


def _laid_out(drawing: Figure) -> Figure:
    """The drawing with all its ticks, which else were made in the style of whoever shows it."""
    drawing.draw_without_rendering()
    return drawing


_NUMBER = re.compile(r"(?<=[ \"ML])-?\d+\.\d{3,}")
_ROOT = re.compile(r'<svg [^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>')
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_PATH = re.compile(r'(?<= d=")[^"]*')


def svg_of(drawing: Figure, name: str, label: str) -> str:
    """The drawing for a page: without addresses, in the page's colours, with coordinates of two decimals.

    Args:
        drawing: One of these figures.
        name: Tells ids of several drawings on one page apart.
        label: What it shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        drawing.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="none")
    text = buffer.getvalue()
    text = _METADATA.sub("", text[text.index("<svg ") :])
    text = _PATH.sub(lambda found: _NUMBER.sub(_rounded, " ".join(found[0].split())), text)
    for stand_in, colour in _COLOURS.items():
        text = text.replace(stand_in, colour)
    width, height = (float(side) for side in _ROOT.search(text).groups())  # type: ignore[union-attr]
    root = f'<svg role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}" width="{width * 4 / 3:.0f}">'
    return _ROOT.sub(root, text, count=1)


def png_of(drawing: Figure) -> bytes:
    """The drawing as PNG."""
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        drawing.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"
