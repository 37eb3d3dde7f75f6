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
    scope: str = "row",
    **how: object,
) -> list[float]:
    columns = columns if scope == "row" else len(rows[0])
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


def sce(rows: Rows, density: float = 1.0, lam: float = 1.0) -> list[float]:
    """Select by variance, calculate weights from squares, erase minority signs."""
    columns = list(zip(*rows, strict=True))
    means = [math.fsum(column) / len(column) for column in columns]
    variances = [math.fsum((x - m) ** 2 for x in column) for column, m in zip(columns, means, strict=True)]
    varying = sorted((v for v in variances if v > 1e-20), reverse=True)
    least = 0.0 if density == 1.0 else varying[kept(len(varying), 100 * density) - 1] if varying else math.inf
    selected = [[x if v >= least * (1 - 1e-9) else 0.0 for x, v in zip(row, variances, strict=True)] for row in rows]
    squares = [math.fsum(x * x for x in row) for row in selected]
    weights = [s / sum(squares) if sum(squares) else 1 / len(rows) for s in squares]
    return elected_before(selected, weights, lam)


def elected_before(rows: Rows, weights: list[float], lam: float) -> list[float]:
    """Weighted mean over the sources that have the sign of the unweighted sum."""
    merged = []
    for column in zip(*rows, strict=True):
        winner = sign(math.fsum(column))
        pairs = [(w, x) for w, x in zip(weights, column, strict=True) if winner and sign(x) == winner]
        share = math.fsum(w for w, _ in pairs)
        merged.append(lam * math.fsum(w * x for w, x in pairs) / share if share else 0.0)
    return merged


def cosine(a: list[float], b: list[float]) -> float:
    size = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / size if size else 0.0


def model_stock(rows: Rows) -> list[float]:
    """The mean, times N cos / (1 + (N - 1) cos), for the mean cosine of all pairs."""
    n = len(rows)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    mean = max(0.0, sum(cosine(rows[i], rows[j]) for i, j in pairs) / len(pairs))
    t = n * mean / (1 + (n - 1) * mean)
    return [t * x for x in combined(rows)]


def emr(rows: Rows, lam: float = 1.0) -> list[float]:
    """The elected sign with the largest magnitude among those that have it."""
    merged = []
    for column in zip(*rows, strict=True):
        winner = sign(math.fsum(column))
        merged.append(lam * winner * max((abs(x) for x in column if sign(x) == winner), default=0.0))
    return merged


def tall_mask(
    rows: Rows, strictness: float = 0.4, tasks: int = 2, combine: str = "mean", lam: float = 1.0
) -> list[float]:
    """The mean or sum, where enough tasks are nearer to the sum than to zero."""
    merged = []
    for column in zip(*rows, strict=True):
        total = math.fsum(column)
        votes = sum(abs(x) > strictness * abs(total - x) for x in column)
        merged.append(lam * total / (len(rows) if combine == "mean" else 1) if votes >= tasks else 0.0)
    return merged


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(x) for x in row]
    return [x / sum(powers) for x in powers]


def arcee_fusion(rows: Rows, base: list[float], columns: int) -> list[float]:
    """The update of the one source where change times divergence stands out."""
    (delta,) = rows
    importance = []
    for start in range(0, len(base), columns):
        old = base[start : start + columns]
        new = [x + d for x, d in zip(old, delta[start : start + columns], strict=True)]
        pairs = [(p + 1e-8, q + 1e-8) for p, q in zip(softmax(new), softmax(old), strict=True)]
        divergence = sum(p * math.log(p / q) for p, q in pairs)
        importance += [abs(d) * divergence for d in delta[start : start + columns]]
    ordered = sorted(importance)
    lower, median, upper = (ordered[math.floor(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (upper - lower)
    return [d if x >= threshold else 0.0 for d, x in zip(delta, importance, strict=True)]


def ram(rows: Rows, epsilon: float = 1e-5, r: float = 0.0, alpha: float = 0.2) -> list[float]:
    """Mean over the sources that change an entry; own changes grow with the ratio of shared to own ones."""
    owners = [[t for t, x in enumerate(column) if abs(x) > epsilon] for column in zip(*rows, strict=True)]
    growth = []
    for t in range(len(rows)):
        own = sum(o == [t] for o in owners)
        shared = sum(t in o and len(o) > 1 for o in owners)
        growth.append(1 + r * min(shared / max(own, 1), alpha))
    merged = []
    for i, who in enumerate(owners):
        factor = growth[who[0]] if len(who) == 1 else 1.0
        merged.append(factor * sum(rows[t][i] for t in who) / max(len(who), 1))
    return merged
