"""Matrices with a flat spectrum: every direction they have counts the same."""

import torch
from torch import Tensor

from lit_wsl.tensors.procrustes import orthogonalised_sum
from lit_wsl.tensors.singular import FLOAT64_NOISE, Triplets, decompose


def flattened(matrix: Tensor) -> Tensor:
    """The matrix with every singular value replaced by their mean; those that are zero stay zero.

    Args:
        matrix: Shape ``(rows, columns)``.

    Returns:
        Same shape, float64; its nuclear norm is that of ``matrix``.

    Reference:
        Iso-C, https://arxiv.org/abs/2502.04959, section 4.
    """
    triplets = decompose(matrix)
    return _mean(triplets.S) * (triplets.U @ triplets.Vh)


def common_and_specific(stack: Tensor, common_fraction: float, directions: int | None = None) -> Tensor:
    """Leading directions of the sum, and of what each task has beside them, made orthonormal, with a flat spectrum.

    Args:
        stack: Task matrices, shape ``(T, rows, columns)``.
        common_fraction: Share of the directions that the sum of all tasks provides, in [0, 1].
        directions: How many directions there are, for the cores of larger matrices; by default the smaller side.

    Returns:
        Shape ``(rows, columns)``, float64.

    Reference:
        Iso-CTS, https://arxiv.org/abs/2502.04959, section 4.
    """
    directions = directions or min(stack.shape[1:])
    specific = specific_directions(directions, len(stack), common_fraction)
    common = decompose(stack.sum(0)).leading(directions - specific * len(stack))
    parts = [common, *(_beside(matrix, common).leading(specific) for matrix in stack)]
    S = torch.cat([part.S for part in parts])
    return orthogonalised_sum(parts, _mean(S).expand_as(S))


def specific_directions(directions: int, tasks: int, common_fraction: float) -> int:
    """How many directions each task provides for itself: the rest divided among them, rounded to the nearest."""
    rest = directions - int(directions * common_fraction)
    return min(round(rest / tasks), directions // tasks)


def _beside(matrix: Tensor, common: Triplets) -> Triplets:
    """What the column space of ``common`` leaves of a matrix; rounding is measured against the whole matrix."""
    wide = matrix.double()
    norm = torch.linalg.vector_norm(wide)
    remainder = wide - common.U @ (common.U.T @ wide)
    left = torch.linalg.vector_norm(remainder)
    share = float(norm / left) if left > 0 else 1.0
    return decompose(remainder, max(torch.finfo(matrix.dtype).eps, FLOAT64_NOISE) * share)


def _mean(values: Tensor) -> Tensor:
    """Mean, 0 of none."""
    return values.sum() / max(1, len(values))
