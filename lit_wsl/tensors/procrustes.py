"""The nearest frame of orthonormal vectors, and sums of singular triplets that are made orthogonal first."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_wsl.tensors.singular import Triplets, decompose

FRAME_NOISE = 1e-6
"""Share of its norm below which a direction of a frame of float32 singular vectors is rounding."""


def nearest_isometry(frame: Tensor) -> Tensor:
    """The matrix with orthonormal columns (or rows) that is nearest to ``frame``: ``U Vh`` of its decomposition.

    Where ``frame`` lacks rank, the result is the unique partial isometry with the same row and column space: it adds
    no direction that ``frame`` does not have.

    Args:
        frame: Shape ``(rows, columns)``.

    Returns:
        Same shape, float64; its singular values are one or zero.

    Reference:
        Orthogonal Procrustes problem: Schoenemann (1966); Higham, Functions of Matrices, theorem 8.4.
    """
    triplets = decompose(frame, FRAME_NOISE)
    return triplets.U @ triplets.Vh


def orthogonalised_sum(parts: Sequence[Triplets], values: Tensor | None = None) -> Tensor:
    """Sum of singular triplets after their vectors were made orthonormal across parts.

    Args:
        parts: Triplets of matrices of one shape.
        values: Replaces all singular values, in the order of the parts.

    Returns:
        ``U_o diag(S) Vh_o``, float64, where ``U_o`` and ``Vh_o`` are the isometries nearest to the vectors of all
        parts side by side.

    Reference:
        TSV-Merge, https://arxiv.org/abs/2412.00081.
    """
    U = nearest_isometry(torch.cat([part.U for part in parts], dim=1))
    Vh = nearest_isometry(torch.cat([part.Vh for part in parts]))
    S = torch.cat([part.S for part in parts]) if values is None else values
    return (U * S) @ Vh
