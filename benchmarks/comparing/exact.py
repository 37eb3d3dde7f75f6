"""The figures of a comparison in float64, to which ours and the naive way's are held."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.comparing.naive import THRESHOLD
from lit_wsl.state.reader import open_state

PIECE_ENTRIES = 1 << 22


def exact_figures(base: Path, tuned: Path) -> dict[str, list[float]]:
    """Mean, largest, relative difference and share of changed entries by name."""
    left, right = open_state(base), open_state(tuned)
    found = {}
    for name in left.keys():
        before, after = left.read(name).view(-1), right.read(name).view(-1)
        size = largest = square = norm = 0.0
        changed = 0
        for start in range(0, before.numel(), PIECE_ENTRIES):
            one = before[start : start + PIECE_ENTRIES].double()
            delta = (after[start : start + PIECE_ENTRIES].double() - one).abs()
            size += float(delta.sum())
            largest = max(largest, float(delta.max()))
            square += float(delta.square().sum())
            norm += float(one.square().sum())
            changed += int((delta > THRESHOLD).sum())
        found[name] = [
            size / before.numel(),
            largest,
            math.sqrt(square) / (math.sqrt(norm) + 1e-10),
            changed / before.numel(),
        ]
    return found


def worst_error(figures: Mapping[str, Sequence[float]], exact: Mapping[str, Sequence[float]]) -> float:
    """Largest relative error of any figure of any tensor; infinite where a tensor is missing."""
    if figures.keys() != exact.keys():
        return math.inf
    return max(
        abs(one - two) / max(abs(two), 1e-10)
        for name in exact
        for one, two in zip(figures[name], exact[name], strict=True)
    )
