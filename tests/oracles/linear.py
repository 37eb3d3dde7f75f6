"""Low-rank and distance maths in numpy float64."""

import numpy as np


def best_error(matrix: np.ndarray, rank: int) -> float:
    """Frobenius norm that the best approximation of that rank leaves (Eckart-Young)."""
    return float(np.sqrt(np.square(np.linalg.svd(matrix, compute_uv=False)[rank:]).sum()))


def retained(matrix: np.ndarray, rank: int) -> float:
    """Share of the squared norm in the leading ``rank`` singular values; 1 for a zero matrix."""
    power = np.square(np.linalg.svd(matrix, compute_uv=False))
    return float(power[:rank].sum() / power.sum()) if power.sum() else 1.0


def rank_for(matrix: np.ndarray, energy: float) -> int:
    """Smallest rank that retains the share ``energy``."""
    return next(r for r in range(1, min(matrix.shape) + 1) if retained(matrix, r) >= energy - 1e-12)


def dora(weight: np.ndarray, update: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Row by row: direction of the moved row, length from the magnitude."""
    rows = []
    for w, u, m in zip(weight, update, magnitude, strict=True):
        moved = [a + b for a, b in zip(w, u, strict=True)]
        length = sum(x * x for x in moved) ** 0.5
        rows.append([m * x / length for x in moved])
    return np.array(rows)


def kth_magnitude(values: np.ndarray, count: int) -> float:
    """Smallest of the ``count`` largest magnitudes, by sorting; infinity when none is kept."""
    return float(np.sort(np.abs(values.astype(np.float64)).ravel())[::-1][count - 1]) if count else float("inf")
