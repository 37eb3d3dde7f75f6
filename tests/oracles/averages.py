"""Averages and interpolations in plain Python on flat lists of numbers: slow, obvious, float64.

Vectors are walked on the sphere themselves, entry by entry; nothing is known here of Gram matrices.
"""

import math

List = list[float]


def dot(x: List, y: List) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def size(x: List) -> float:
    return math.sqrt(dot(x, x))


def scaled(x: List, factor: float) -> List:
    return [factor * a for a in x]


def weighted_sum(vectors: list[List], weights: List) -> List:
    return [math.fsum(w * x[i] for w, x in zip(weights, vectors, strict=True)) for i in range(len(vectors[0]))]


def normalised(weights: List | None, count: int) -> List:
    weights = [1.0] * count if weights is None else list(weights)
    return [w / math.fsum(weights) for w in weights]


def weighted_delta(vectors: list[List], lam: float = 0.5) -> List:
    return weighted_sum(vectors, [lam, 1 - lam])


def weighted_delta_n(vectors: list[List], coefficients: List | None = None, *, normalize: bool = True) -> List:
    if coefficients is None or normalize:
        coefficients = normalised(coefficients, len(vectors))
    return weighted_sum(vectors, coefficients)


def weighted_factors(As: list[list[List]], Bs: list[list[List]], scales: List, lam: float) -> list[List]:
    """s B A, written out with its four terms."""
    shares = [lam, 1 - lam]
    scale = shares[0] * scales[0] + shares[1] * scales[1]
    rank, d_in, d_out = len(As[0]), len(As[0][0]), len(Bs[0])
    out = [[0.0] * d_in for _ in range(d_out)]
    for i in range(2):
        for j in range(2):
            for row in range(d_out):
                for column in range(d_in):
                    product = math.fsum(Bs[i][row][k] * As[j][k][column] for k in range(rank))
                    out[row][column] += scale * shares[i] * shares[j] * product
    return out


def angle_between(x: List, y: List) -> float:
    return math.acos(max(-1.0, min(1.0, dot(x, y) / size(x) / size(y))))


def slerp(first: List, second: List, t: float, max_cosine: float = 1.0) -> List:
    straight = weighted_sum([first, second], [1 - t, t])
    if size(first) == 0.0 or size(second) == 0.0:
        return straight
    angle = angle_between(first, second)
    if abs(math.cos(angle)) > max_cosine or math.sin(angle) < 1e-6:
        return straight
    return weighted_sum(
        [first, second], [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]
    )


def logarithm(at: List, point: List) -> List:
    """The tangent at a unit vector that leads to another, as long as the angle between them."""
    angle = angle_between(at, point)
    across = [p - math.cos(angle) * a for p, a in zip(point, at, strict=True)]
    length = size(across)
    return scaled(across, angle / length) if length > 1e-9 else scaled(across, 0.0)


def exponential(at: List, tangent: List) -> List:
    length = size(tangent)
    if length == 0.0:
        return at
    return [math.cos(length) * a + math.sin(length) * b / length for a, b in zip(at, tangent, strict=True)]


def karcher(vectors: list[List], weights: List | None = None, steps: int = 1000) -> List:
    shares = normalised(weights, len(vectors))
    directed = [(w, scaled(v, 1 / size(v))) for w, v in zip(shares, vectors, strict=True) if size(v) > 0 and w > 0]
    length = math.fsum(w * size(v) for w, v in zip(shares, vectors, strict=True))
    if not directed:
        return weighted_sum(vectors, shares)
    parts = normalised([w for w, _ in directed], len(directed))
    units = [unit for _, unit in directed]
    mean = weighted_sum(units, parts)
    if size(mean) < 1e-6:
        return weighted_sum(vectors, shares)
    mean = scaled(mean, 1 / size(mean))
    for _ in range(steps):
        mean = exponential(mean, weighted_sum([logarithm(mean, unit) for unit in units], parts))
        mean = scaled(mean, 1 / size(mean))
    return scaled(mean, length)


def nearswap(first: List, second: List, t: float) -> List:
    """The way mergekit puts it: an interpolation by t over the distance."""
    out = []
    for a, b in zip(first, second, strict=True):
        share = 1.0 if a == b else min(1.0, t / abs(a - b))
        out.append(share * b + (1 - share) * a)
    return out
