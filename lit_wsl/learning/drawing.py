"""How pictures of learning look."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_wsl.state.publish import published_file

INK, GOOD, POOR, BEST, FAINT = "#2b3440", "#2f6690", "#b9c2cc", "#d98e04", "#8a94a0"
_TASKS = ("#2f6690", "#c44536", "#3a8f5c", "#7d5ba6", "#b8741a", "#c2578b", "#3c9aa8", "#6b7280")
STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "grid.color": "#e6e9ee",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def task_colours(count: int) -> list[Any]:
    """A colour for each of several tasks."""
    return (
        list(_TASKS[:count]) if count <= len(_TASKS) else [colormaps["turbo"](at / (count - 1)) for at in range(count)]
    )


def spread(values: Sequence[float], least: float) -> list[float]:
    """Places near ascending values, no two nearer than ``least``; those that are pushed apart keep their middle."""
    groups: list[list[float]] = []
    for value in values:
        groups.append([value])
        while len(groups) > 1 and _places(groups[-2], least)[-1] + least > _places(groups[-1], least)[0]:
            last = groups.pop()
            groups[-1] += last
    return [place for group in groups for place in _places(group, least)]


def _places(group: Sequence[float], least: float) -> list[float]:
    middle = sum(group) / len(group)
    return [middle + least * (at - (len(group) - 1) / 2) for at in range(len(group))]


def name_ends(axes: Axes, at: float, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Write names of lines at their right ends, moved apart where they would overlap.

    Args:
        axes: Where the lines are drawn, with their limits.
        at: Where they end.
        ends: Height, name and colour of each.
    """
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda end: end[0])
    figure = axes.figure
    line = 1.35 * STYLE["font.size"] / 72 * figure.dpi / axes.get_window_extent().height
    for place, (_, name, colour) in zip(spread([end[0] for end in order], (high - low) * line), order, strict=True):
        axes.annotate(
            name,
            (at, place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )


def laid_out(drawing: Figure) -> Figure:
    """A drawing with all its ticks, which else were made in the style of whoever shows it."""
    drawing.draw_without_rendering()
    return drawing


def save(drawing: Figure | None, path: Path) -> None:
    """Write a drawing as PNG, if there is one.

    Args:
        drawing: It.
        path: The file that is put in place.

    Raises:
        CheckpointError: If it cannot be written.
    """
    if drawing is not None:
        with published_file(path) as partial:
            partial.write_bytes(png(drawing))


def png(drawing: Figure) -> bytes:
    """A drawing as PNG."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png")
    return buffer.getvalue()
