"""Methods on whole matrices in float64 numpy: the steps of the papers with explicit loops.

Frames are made orthonormal by the inverse square root of their Gram matrix, not by a singular value decomposition.
"""

import numpy as np

Matrix = np.ndarray


def mean(matrices: list[Matrix]) -> Matrix:
    total = np.zeros_like(matrices[0])
    for matrix in matrices:
        total = total + matrix
    return total / len(matrices)


def rank(values: Matrix, norm: float, noise: float = 1e-6) -> int:
    return sum(1 for value in values if value > noise * norm)


def polar(frame: Matrix) -> Matrix:
    """``frame (frame.T frame)^(-1/2)`` on the row space."""
    eigenvalues, vectors = np.linalg.eigh(frame.T @ frame)
    root = np.zeros((frame.shape[1], frame.shape[1]))
    for value, vector in zip(eigenvalues, vectors.T, strict=True):
        if value > 1e-9 * max(eigenvalues):
            root += np.outer(vector, vector) / np.sqrt(value)
    return frame @ root


def tsv_m(matrices: list[Matrix], lam: float = 1.0) -> Matrix:
    rows, columns = matrices[0].shape
    kept = max(1, min(rows, columns) // len(matrices))
    left, values, right = [], [], []
    for matrix in matrices:
        U, S, Vh = np.linalg.svd(matrix)
        for i in range(min(kept, rank(S, np.linalg.norm(matrix)))):
            left.append(U[:, i])
            values.append(S[i])
            right.append(Vh[i])
    out = np.zeros((rows, columns))
    if values:
        U, V = polar(np.array(left).T), polar(np.array(right).T)
        for i, value in enumerate(values):
            out += lam * value * np.outer(U[:, i], V[:, i])
    return out


def iso_c(matrices: list[Matrix], lam: float = 1.0) -> Matrix:
    total = mean(matrices) * len(matrices)
    U, S, Vh = np.linalg.svd(total)
    count = rank(S, np.linalg.norm(total))
    out = np.zeros_like(total)
    for i in range(count):
        out += lam * sum(S[:count]) / count * np.outer(U[:, i], Vh[i])
    return out


def iso_cts(matrices: list[Matrix], common_fraction: float = 0.8, lam: float = 1.0) -> Matrix:
    rows, columns = matrices[0].shape
    tasks, directions = len(matrices), min(rows, columns)
    each = round((directions - int(directions * common_fraction)) / tasks)
    while each * tasks > directions:
        each -= 1
    total = mean(matrices) * tasks
    U, S, Vh = np.linalg.svd(total)
    common = min(directions - each * tasks, rank(S, np.linalg.norm(total)))
    left = [U[:, i] for i in range(common)]
    values = [S[i] for i in range(common)]
    right = [Vh[i] for i in range(common)]
    projector = np.zeros((rows, rows))
    for vector in list(left):
        projector += np.outer(vector, vector)
    for matrix in matrices:
        U, S, Vh = np.linalg.svd(matrix - projector @ matrix)
        for i in range(min(each, rank(S, np.linalg.norm(matrix)))):
            left.append(U[:, i])
            values.append(S[i])
            right.append(Vh[i])
    out = np.zeros((rows, columns))
    if values:
        U, V = polar(np.array(left).T), polar(np.array(right).T)
        for i in range(len(values)):
            out += lam * sum(values) / len(values) * np.outer(U[:, i], V[:, i])
    return out


def knots(
    matrices: list[Matrix], inside: str = "ties", k: float = 20.0, weights: list[float] | None = None, lam: float = 1.0
) -> Matrix:
    rows, columns = matrices[0].shape
    tasks = len(matrices)
    if inside == "linear":
        out = np.zeros((rows, columns))
        for t, matrix in enumerate(matrices):
            out += lam * (weights[t] if weights else 1 / tasks) * matrix
        return out
    weights = weights or [1.0] * tasks
    whole = np.hstack(matrices)
    U, S, Vh = np.linalg.svd(whole)
    count = rank(S, np.linalg.norm(whole))
    coordinates = [
        [[S[i] * Vh[i, t * columns + j] for j in range(columns)] for i in range(count)] for t in range(tasks)
    ]
    trimmed = []
    for task in coordinates:
        magnitudes = sorted((abs(x) for row in task for x in row), reverse=True)
        kept = 0 if k == 0 else max(1, int(np.ceil(len(magnitudes) * k / 100 - 1e-9)))
        threshold = magnitudes[kept - 1] if kept and magnitudes else np.inf
        trimmed.append([[x if abs(x) >= threshold else 0.0 for x in row] for row in task])
    merged = np.zeros((count, columns))
    for i in range(count):
        for j in range(columns):
            total = sum(task[i][j] for task in trimmed)
            agreeing = [w * task[i][j] for w, task in zip(weights, trimmed, strict=True) if task[i][j] * total > 0]
            merged[i, j] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return lam * U[:, :count] @ merged


def interference(merged: Matrix, matrices: list[Matrix]) -> float:
    loss = 0.0
    for matrix in matrices:
        if matrix.any():
            loss += (((merged - matrix) @ matrix.T) ** 2).sum() / (matrix**2).sum()
    return loss


def wudi(
    matrices: list[Matrix], solver: str = "adam", steps: int = 300, rate: float = 1e-5, lam: float = 1.0
) -> Matrix:
    if solver == "exact":
        return lam * _least_squares(matrices)
    merged = sum(matrices[1:], matrices[0]).copy()
    first, second = np.zeros_like(merged), np.zeros_like(merged)
    for step in range(1, steps + 1):
        gradient = np.zeros_like(merged)
        for matrix in matrices:
            if matrix.any():
                gradient += 2 * (merged - matrix) @ matrix.T @ matrix / (matrix**2).sum()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        merged -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return lam * merged


def _least_squares(matrices: list[Matrix]) -> Matrix:
    """Row by row: the row of M times every task's (normalised) rows should be what the task itself gives."""
    tasks = [matrix for matrix in matrices if matrix.any()]
    if not tasks:
        return np.zeros_like(matrices[0])
    inputs = np.vstack([matrix / np.linalg.norm(matrix) for matrix in tasks])
    rows = []
    for i in range(len(matrices[0])):
        wanted = np.concatenate([matrix[i] @ matrix.T / np.linalg.norm(matrix) for matrix in tasks])
        rows.append(np.linalg.lstsq(inputs, wanted, rcond=1e-6)[0])
    return np.array(rows)


def weighted_sum(matrices: list[Matrix], weights: list[float] | None = None, best_rank: int = 0) -> Matrix:
    """Weighted sum, cut to its best approximation of a rank."""
    out = np.zeros_like(matrices[0])
    for t, matrix in enumerate(matrices):
        out = out + (weights[t] if weights else 1 / len(matrices)) * matrix
    if not best_rank:
        return out
    U, S, Vh = np.linalg.svd(out)
    return sum((S[i] * np.outer(U[:, i], Vh[i]) for i in range(min(best_rank, len(S)))), np.zeros_like(out))
