"""Sparsifying merge methods in plain Python on lists: slow, obvious, float64.

A source is the flat list of one parameter's entries; ``sources`` holds one such list a source.
"""

import math

from tests.oracles.methods import kept, uniform_number

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


def magnitude_prune(rows: Rows, density: float = 0.2, scope: str = "tensor", **how: object) -> list[float]:
    return combined([crumbs(row, density, 0.0) for row in rows], **how)


def dropped(rows: Rows, density: float, seed: int, name: str) -> Rows:
    """Each entry kept where its number is below the density, and divided by it."""
    limit = round(density * 2**32) / 2**32

    def stays(source: int, i: int) -> bool:
        return density >= 1.0 or uniform_number(seed, f"{source}/{name}", i) < limit

    return [[x / density if stays(s, i) else 0.0 for i, x in enumerate(row)] for s, row in enumerate(rows)]


def dare_linear(rows: Rows, density: float = 0.1, seed: int = 42, name: str = "", **how: object) -> list[float]:
    return combined(dropped(rows, 1 - (1 - density), seed, name), **how)


def dare_ties(rows: Rows, density: float = 0.1, seed: int = 42, name: str = "", **how: object) -> list[float]:
    return elected(dropped(rows, 1 - (1 - density), seed, name), **how)


def pruned(rows: Rows, density: float, epsilon: float, seed: int, name: str, columns: int) -> Rows:
    """Each entry kept with a probability by the mean rank of its magnitude among its row's ``columns`` entries."""
    sparse = []
    for source, entries in enumerate(rows):
        out = []
        for i, x in enumerate(entries):
            row = entries[i // columns * columns : i // columns * columns + columns]
            smaller = sum(abs(y) < abs(x) for y in row)
            equal = sum(abs(y) == abs(x) for y in row)
            rank = smaller + (equal - 1) / 2
            keep = density if columns == 1 else density - epsilon + 2 * epsilon * rank / (columns - 1)
            limit = round(keep * 2**32) / 2**32
            out.append(x / keep if uniform_number(seed, f"{source}/{name}", i) < limit else 0.0)
        sparse.append(out)
    return sparse


def della_linear(
    rows: Rows,
    density: float = 0.5,
    epsilon: float = 0.15,
    seed: int = 42,
    name: str = "",
    columns: int = 1,
    **how: object,
) -> list[float]:
    return combined(pruned(rows, density, epsilon, seed, name, columns), **how)


def della(
    rows: Rows,
    density: float = 0.5,
    epsilon: float = 0.15,
    seed: int = 42,
    name: str = "",
    columns: int = 1,
    **how: object,
) -> list[float]:
    return elected(pruned(rows, density, epsilon, seed, name, columns), **how)
