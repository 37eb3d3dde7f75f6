"""Singular value decompositions without the directions that rounding makes up."""

from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT64_NOISE = 1e-13
"""Share of the norm below which a decomposition in float64 makes singular values up."""
SMALL = 128
"""A matrix with a side of so many entries is decomposed in no time."""


@dataclass(frozen=True)
class Triplets:
    """Singular triplets of a matrix, float64: ``U`` (rows, r), ``S`` descending (r,), ``Vh`` (r, columns)."""

    U: Tensor
    S: Tensor
    Vh: Tensor

    def leading(self, count: int) -> "Triplets":
        """The ``count`` largest of them, or all if there are fewer."""
        return Triplets(self.U[:, :count], self.S[:count], self.Vh[:count])


def decompose(matrix: Tensor, noise: float | None = None) -> Triplets:
    """Thin singular value decomposition in float64, of the numerical rank only.

    The singular vectors of a value that is zero up to rounding are arbitrary: whichever the library returns. They
    are left out, so that what is made of the others is a function of the matrix. A matrix with entries that are not
    finite gives one triplet of NaN.

    Large matrices that are known to float32 take the eigenvectors of their smaller Gram matrix in float64, which is
    several times faster; its errors, in proportion to the square of the condition number, then lie below theirs.

    Args:
        matrix: Shape ``(rows, columns)``.
        noise: Share of the Frobenius norm up to which a singular value counts as zero; by default what rounding to
            the dtype of ``matrix`` leaves.
    """
    wide = matrix.double()
    norm = torch.linalg.vector_norm(wide)
    if not torch.isfinite(norm):
        rows, columns = matrix.shape
        return Triplets(*(torch.full(shape, torch.nan).to(wide) for shape in ((rows, 1), (1,), (1, columns))))
    share = torch.finfo(matrix.dtype).eps if noise is None else noise
    is_gram = min(matrix.shape) > SMALL and share >= torch.finfo(torch.float32).eps
    U, S, Vh = _gram_decomposition(wide) if is_gram else torch.linalg.svd(wide, full_matrices=False)
    rounding = max(share, FLOAT64_NOISE) * norm
    rank = int((rounding < S).sum())
    return Triplets(U, S, Vh).leading(rank)


def _gram_decomposition(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin decomposition by eigenvectors; singular values are measured, as roots of eigenvalues would lose half."""
    if matrix.shape[0] > matrix.shape[1]:
        V, S, Uh = _gram_decomposition(matrix.T)
        return Uh.T, S, V.T
    U = torch.linalg.eigh(matrix @ matrix.T).eigenvectors
    rows = U.T @ matrix
    S, order = torch.linalg.vector_norm(rows, dim=1).sort(descending=True)
    return U[:, order], S, rows[order] / S.clamp_min(torch.finfo(S.dtype).tiny).unsqueeze(1)
