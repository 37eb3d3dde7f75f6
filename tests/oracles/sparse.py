"""Sparsifying merge methods in plain Python on lists: slow, obvious, float64.

A source is the flat list of one parameter's entries; ``sources`` holds one such list a source.
"""

import math

from tests.oracles.methods import kept

Rows = list[list[float]]


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def combined(rows: Rows, weights: list[float] | None = None, combine: str = "mean", lam: float = 1.0) -> list[float]:
    """Weighted mean or sum over all sources."""
    weights = weights or [1.0] * len(rows)
    divisor = sum(weights) if combine == "mean" else 1.0
    merged = []
    for i in range(len(rows[0])):
        merged.append(lam * math.fsum(w * row[i] for w, row in zip(weights, rows, strict=True)) / divisor)
    return merged


def elected(
    rows: Rows,
    weights: list[float] | None = None,
    combine: str = "mean",
    lam: float = 1.0,
    elect: str = "unweighted",
) -> list[float]:
    """Weighted mean or sum over the sources that agree with the elected sign."""
    weights = weights or [1.0] * len(rows)
    merged = []
    for i in range(len(rows[0])):
        votes = [row[i] * (w if elect == "weighted" else 1.0) for w, row in zip(weights, rows, strict=True)]
        winner = sign(math.fsum(votes))
        total = divisor = 0.0
        for vote, weight, row in zip(votes, weights, rows, strict=True):
            if winner and sign(vote) == winner:
                total += weight * row[i]
                divisor += weight
        if combine == "sum":
            divisor = 1.0
        merged.append(lam * total / divisor if divisor else 0.0)
    return merged


def crumbs(row: list[float], density: float, gamma: float) -> list[float]:
    """Sort by magnitude, cut the largest, keep the next, and all that equal the ends."""
    magnitudes = sorted((abs(x) for x in row), reverse=True)
    count = kept(len(row), 100 * density)
    dropped = math.floor(gamma * len(row) + 1e-9)
    while dropped + count > len(row):
        dropped -= 1
    band = magnitudes[dropped : dropped + count]
    return [x if band[-1] <= abs(x) <= band[0] else 0.0 for x in row]


def breadcrumbs(rows: Rows, density: float = 0.1, gamma: float = 0.01, **how: object) -> list[float]:
    return combined([crumbs(row, density, gamma) for row in rows], **how)


def breadcrumbs_ties(rows: Rows, density: float = 0.1, gamma: float = 0.01, **how: object) -> list[float]:
    return elected([crumbs(row, density, gamma) for row in rows], **how)
