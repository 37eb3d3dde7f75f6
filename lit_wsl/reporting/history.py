"""The score of a sweep over its points, drawn as SVG in the colours of the page."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import count

from lit_wsl.reporting.sweeps import Point

LOWEST = -1.0
"""Scores below this are drawn at it: what far worse points score hides what the good ones do."""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720.0, 270.0, 58.0, 14.0, 22.0, 44.0


def history(points: Sequence[Point], runs: Mapping[int, str]) -> str:
    """Dots in order, the best so far as a line, failed points as crosses; empty without any score.

    Args:
        points: In order.
        runs: Place of a point to the name of the run that it is.
    """
    scores = [max(one.score, LOWEST) for one in points if one.score is not None]
    if not scores:
        return ""
    scale = _Scale(len(points), min(scores), max(scores))
    described = _described(points)
    parts = [
        f'<svg class="history" role="img" aria-label="{escape(described)}" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}">',
        *scale.axes(),
        _steps(points, scale),
        *(_dot(one, at, scale) for at, one in enumerate(points)),
        *(_named(points[at], at, name, scale) for at, name in runs.items()),
        "</svg>",
    ]
    return "".join(parts)


class _Scale:
    """Where points and scores stand in the drawing."""

    def __init__(self, count: int, low: float, high: float) -> None:
        self.count = count
        self.ticks = _ticks(low, high)
        margin = 0.06 * max(high - low, 1e-3)
        self.low, self.high = min(low - margin, self.ticks[0]), max(high + margin, self.ticks[-1])

    def x(self, at: float) -> float:
        return _LEFT + (at + 0.5) / self.count * (_WIDTH - _LEFT - _RIGHT)

    def y(self, score: float) -> float:
        return _TOP + (self.high - score) / (self.high - self.low) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self) -> list[str]:
        right, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        digits = _digits(self.ticks)
        parts = []
        for tick in self.ticks:
            y = f"{self.y(tick):.1f}"
            kind = "zero" if abs(tick) < 1e-12 else "grid"
            parts.append(f'<line class="{kind}" x1="{_LEFT:g}" x2="{right:g}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text class="end" x="{_LEFT - 8:g}" y="{y}" dy=".32em">{tick:.{digits}f}</text>')
        step = max(1, math.ceil(self.count / 12))
        for at in range(0, self.count, step):
            parts.append(f'<text class="mid" x="{self.x(at):.1f}" y="{floor + 18:g}">{at + 1}</text>')
        parts.append(f'<text class="mid" x="{(_LEFT + right) / 2:g}" y="{_HEIGHT - 6:g}">point</text>')
        parts.append('<text x="4" y="12">lowest interference delta</text>')
        return parts


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from below ``low`` to above ``high``, about five, two at least."""
    span = max(high - low, 1e-3)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(one * power for one in (1, 2, 2.5, 5, 10) if one * power >= span / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [at * step for at in range(first, max(last, first + 1) + 1)]


def _digits(ticks: Sequence[float]) -> int:
    """Fewest decimals that say where every tick stands."""
    small = 1e-6 * (ticks[1] - ticks[0])
    return next(digits for digits in count() if all(abs(round(tick, digits) - tick) < small for tick in ticks))


def _steps(points: Sequence[Point], scale: _Scale) -> str:
    """The best so far; it rises at a point."""
    path, last = [], None
    for at, one in enumerate(points):
        if one.best_so_far is None or one.best_so_far == last:
            continue
        y = scale.y(max(one.best_so_far, LOWEST))
        path.append(f"M{scale.x(at):.1f} {y:.1f}" if last is None else f"H{scale.x(at):.1f}V{y:.1f}")
        last = one.best_so_far
    return f'<path class="steps" d="{"".join(path)}H{scale.x(len(points) - 1):.1f}"/>' if path else ""


def _dot(one: Point, at: int, scale: _Scale) -> str:
    x = scale.x(at)
    if one.score is None:
        y = _HEIGHT - _BOTTOM - 4
        return f'<path class="failed" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>'
    y = scale.y(max(one.score, LOWEST))
    kind = "point" if one.is_feasible else "refused"
    if one.score < LOWEST:
        return f'<path class="{kind}" d="M{x - 4.5:.1f} {y - 4:.1f}h9l-4.5 8z"/>'
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _named(one: Point, at: int, name: str, scale: _Scale) -> str:
    """A ring around the point of a run, with the run's number."""
    if one.score is None:
        return ""
    x, y = scale.x(at), scale.y(max(one.score, LOWEST))
    above = y - 11 if y > _TOP + 14 else y + 20
    return (
        f'<circle class="run" cx="{x:.1f}" cy="{y:.1f}" r="7.5"/>'
        f'<text class="mid run" x="{x:.1f}" y="{above:.1f}">{escape(name)}</text>'
    )


def _described(points: Sequence[Point]) -> str:
    known = [one.best_so_far for one in points if one.best_so_far is not None]
    failed = sum(one.score is None for one in points)
    rise = f"; the best so far rises from {known[0]:.4f} to {known[-1]:.4f}" if known else "; none may be chosen"
    return f"Lowest interference delta of {len(points)} points in order, {failed} failed{rise}"
