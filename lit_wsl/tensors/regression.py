"""One linear layer that answers the inputs of several as these do, by least squares."""

import torch
from torch import Tensor


def shrink_gram(gram: Tensor, alpha: float) -> Tensor:
    """A Gram matrix with the entries off its diagonal times ``alpha``."""
    return gram * alpha + torch.diag(gram.diagonal() * (1.0 - alpha))


def regression_mean(matrices: Tensor, grams: Tensor, alpha: float, noise: float) -> Tensor:
    r"""The matrix :math:`M` that minimises :math:`\sum_t \|X_t (M - W_t)^\top\|^2` for inputs :math:`X_t`.

    With :math:`G_t = X_t^\top X_t`, shrunk, it is
    :math:`\bar W + \left(\sum_t (W_t - \bar W) G_t\right) \left(\sum_t G_t\right)^{-1}`, where :math:`\bar W` is the
    mean: an offset that all matrices share comes back unchanged, and directions that no input has, once all inputs are
    scaled to equal size, take the mean.

    Args:
        matrices: :math:`W_t`, shape ``(T, rows, columns)``.
        grams: :math:`G_t`, shape ``(T, columns, columns)``.
        alpha: Factor on the entries off the diagonal, in [0, 1]; see :func:`shrink_gram`.
        noise: With ``alpha = 1``, eigenvalues of the sum below this share of the largest are no direction; the
            inputs are first scaled to equal size.

    Returns:
        Shape ``(rows, columns)``, float64.
    """
    mean = matrices.mean(0, dtype=torch.float64)
    total = torch.zeros_like(grams[0], dtype=torch.float64)
    pulled = torch.zeros_like(mean)
    for matrix, gram in zip(matrices, grams, strict=True):
        shrunk = shrink_gram(gram.double(), alpha)
        total += shrunk
        pulled += (matrix - mean) @ shrunk
    return mean + _divided(pulled, total, noise if alpha == 1.0 else 0.0)


def _divided(pulled: Tensor, total: Tensor, noise: float) -> Tensor:
    """``pulled @ total^-1``, where inputs that are always zero give zero."""
    sizes = total.diagonal().sqrt()
    shares = sizes.reciprocal().masked_fill_(sizes == 0, 0.0)
    scaled = total * shares.unsqueeze(0) * shares.unsqueeze(1)
    scaled.diagonal()[sizes == 0] = 1.0
    right = pulled * shares
    if noise == 0.0:  # shrunk: no eigenvalue is below 1 - alpha
        return torch.cholesky_solve(right.T, torch.linalg.cholesky(scaled)).T * shares
    values, vectors = torch.linalg.eigh(scaled)
    inverse = values.reciprocal().masked_fill_(values <= noise * values[-1], 0.0)
    return ((right @ vectors) * inverse) @ vectors.T * shares
