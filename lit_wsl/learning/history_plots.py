"""Picture of a learner's history."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lit_wsl.learning.drawing import FAINT, GOOD, STYLE, laid_out, name_ends, task_colours
from lit_wsl.learning.history import read_history

WINDOW = 20
"""Smooth lines are means over the updates around each, one in so many of all."""
Line = Mapping[str, Any]


def history_plot(history: Path) -> Figure | None:
    """Draw objective, losses by task, coefficients by source and the gradient's norm; None without a line.

    Args:
        history: File of a :class:`~lit_wsl.learning.history.LearningHistory`.

    Raises:
        CheckpointError: If the history is damaged.
    """
    lines = read_history(history)
    if not lines:
        return None
    panels = {"objective": _objective, "loss": _losses}
    if any("coefficients" in line for line in lines):
        panels["coefficient"] = _coefficients
    if any("gradient" in line for line in lines):
        panels["gradient norm"] = _gradient
    with rc_context(STYLE):
        down = -(-len(panels) // 2)
        drawing = Figure(figsize=(10.4, 0.4 + 2.9 * down), dpi=110, layout="constrained")
        grid = drawing.subplots(down, 2, squeeze=False, sharex=True)
        for axes, (name, draw) in zip(grid.flat, panels.items(), strict=False):
            axes.set_title(name, loc="left", fontsize=9.5)
            axes.margins(x=0.02)
            draw(axes, lines)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in grid.flat[max(0, len(panels) - 2) : len(panels)]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("update")
        return laid_out(drawing)


def _objective(axes: Axes, lines: Sequence[Line]) -> None:
    _smooth(axes, _updates(lines), [_number(line["objective"]) for line in lines], GOOD)


def _losses(axes: Axes, lines: Sequence[Line]) -> None:
    tasks = list(lines[0]["losses"])
    ends = []
    for task, colour in zip(tasks, task_colours(len(tasks)), strict=True):
        last = _smooth(axes, _updates(lines), [_number(line["losses"].get(task)) for line in lines], colour)
        ends.append((last, task, colour))
    _name(axes, lines, ends)


def _coefficients(axes: Axes, lines: Sequence[Line]) -> None:
    """Means over the rows; where every row is known, from the lowest to the highest."""
    known = [line for line in lines if "coefficients" in line]
    sources = list(known[0]["coefficients"])
    ends = []
    for at, (source, colour) in enumerate(zip(sources, task_colours(len(sources)), strict=True)):
        values = [_number(line["coefficients"][source]) for line in known]
        axes.plot(_updates(known), values, color=colour, linewidth=1.6)
        rows = [[row[at] for row in line["layer_coefficients"].values()] for line in known if _has_rows(line)]
        if len(rows) == len(known):
            axes.fill_between(_updates(known), [*map(min, rows)], [*map(max, rows)], color=colour, alpha=0.13, lw=0)
        ends.append((values[-1], source, colour))
    axes.axhline(0.0, color=FAINT, linewidth=0.9, zorder=1)
    _name(axes, known, ends)


def _gradient(axes: Axes, lines: Sequence[Line]) -> None:
    values = [_number(line.get("gradient", {}).get("norm")) for line in lines]
    axes.set_yscale("log" if all(value > 0.0 for value in values if math.isfinite(value)) else "linear")
    _smooth(axes, _updates(lines), values, GOOD)


def _has_rows(line: Line) -> bool:
    return len(line.get("layer_coefficients", {})) > 1


def _smooth(axes: Axes, updates: Sequence[int], values: Sequence[float], colour: Any) -> float:
    """The values, faint, and their rolling mean; returns where that ends."""
    half = len(values) // (2 * WINDOW)
    means = [_mean(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]
    if half:
        axes.plot(updates, values, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(updates, means, color=colour, linewidth=1.6, marker="o" if len(values) == 1 else None, markersize=4)
    return means[-1]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _name(axes: Axes, lines: Sequence[Line], ends: Sequence[tuple[float, str, Any]]) -> None:
    name_ends(axes, lines[-1]["update"], [end for end in ends if math.isfinite(end[0])])


def _updates(lines: Sequence[Line]) -> list[int]:
    return [line["update"] for line in lines]


def _number(value: float | None) -> float:
    return math.nan if value is None else value
