"""Best low-rank approximations: of a sum of factors without forming it, and of a dense matrix."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from lit_wsl.tensors.lora import LoraFactors, concatenate
from lit_wsl.tensors.rng import CounterRng

OVERSAMPLING = 8
POWER_ITERATIONS = 4


def rank_for_energy(singular_values: Tensor, energy: float) -> int:
    """Smallest rank whose squared singular values reach the share ``energy`` of their sum.

    Args:
        singular_values: Descending, shape ``(r,)``.
        energy: Share to keep, in (0, 1].
    """
    power = singular_values.double().square()
    total = power.sum()
    if total == 0:
        return 1
    kept = torch.cumsum(power, 0) / total
    return min(int(torch.searchsorted(kept, energy - 1e-12)) + 1, len(power))


def compress(parts: list[LoraFactors], rank: int | None, energy: float = 1.0) -> tuple[LoraFactors, float]:
    """Truncated SVD of a sum of low-rank updates that never forms the dense matrix.

    With ``B = Q_B R_B`` and ``A.T = Q_A R_A``, the singular values of ``B A`` are those of the small core
    ``R_B R_A.T``: cost O((d_out + d_in) R^2) for a total rank R.

    Args:
        parts: Updates of one parameter.
        rank: Largest rank kept; ``None`` leaves the choice to ``energy``.
        energy: Share of the squared Frobenius norm to keep, in (0, 1].

    Returns:
        Balanced factors (scale 1) and the share of the squared norm that they hold.
    """
    total = concatenate(parts)
    Q_B, R_B = torch.linalg.qr(total.B.double())
    Q_A, R_A = torch.linalg.qr(total.A.double().T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T)
    keep = min(rank or len(S), rank_for_energy(S, energy), len(S))
    return _balanced(total, Q_B @ U[:, :keep], S[:keep], Vh[:keep] @ Q_A.T), _share(S[:keep], S.square().sum())


def factorise(
    delta: Tensor, rank: int | None, energy: float = 1.0, *, transposed: bool = False
) -> tuple[LoraFactors, float]:
    """Best rank-``rank`` factors of a dense update, and the share of its squared norm that they hold.

    Small or nearly full-rank requests use an exact SVD; others a randomised range finder with power
    iterations, whose sketch comes from fixed counters: the same bytes on every run.

    Args:
        delta: Dense update in its stored shape; more than two dimensions are flattened behind the first.
        rank: Largest rank kept; ``None`` leaves the choice to ``energy``.
        energy: Share of the squared Frobenius norm to keep, in (0, 1].
        transposed: The parameter is stored as ``(d_in, d_out)``.

    Reference:
        Halko, Martinsson, Tropp, https://arxiv.org/abs/0909.4061, algorithm 4.4.
    """
    matrix = delta.reshape(delta.shape[0], -1).float()
    matrix = matrix.T if transposed else matrix
    smallest = min(matrix.shape)
    sketch = smallest if rank is None else rank + OVERSAMPLING
    if sketch * 2 >= smallest:
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        U, S, Vh = _randomised_svd(matrix, sketch)
    keep = min(rank or len(S), rank_for_energy(S, energy) if energy < 1.0 else len(S), len(S))
    frame = LoraFactors(matrix[:0], matrix[:, :0], 1.0, tuple(delta.shape), transposed)
    total = matrix.double().square().sum() if matrix.numel() < 1 << 20 else matrix.square().sum().double()
    return _balanced(frame, U[:, :keep], S[:keep], Vh[:keep]), _share(S[:keep], total)


def _randomised_svd(matrix: Tensor, sketch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading ``sketch`` singular triplets of a tall or wide matrix."""
    probe = CounterRng(seed=0).normal("sketch", matrix.shape[1] * sketch).reshape(-1, sketch).to(matrix.device)
    Q = torch.linalg.qr(matrix @ probe).Q
    for _ in range(POWER_ITERATIONS):
        Q = torch.linalg.qr(matrix.T @ Q).Q
        Q = torch.linalg.qr(matrix @ Q).Q
    U, S, Vh = torch.linalg.svd(Q.T @ matrix, full_matrices=False)
    return Q @ U, S, Vh


def _balanced(like: LoraFactors, U: Tensor, S: Tensor, Vh: Tensor) -> LoraFactors:
    """Factors ``B = U sqrt(S)`` and ``A = sqrt(S) Vh`` in float32, contiguous."""
    root = S.sqrt()
    B = (U * root).float().contiguous()
    A = (root.unsqueeze(1) * Vh).float().contiguous()
    return replace(like, A=A, B=B, scale=1.0)


def _share(kept: Tensor, total: Tensor) -> float:
    """Share of the squared norm that is kept, in [0, 1]; an empty update is kept whole."""
    whole = float(total)
    return 1.0 if whole == 0 else min(1.0, math.fsum(kept.double().square().tolist()) / whole)
