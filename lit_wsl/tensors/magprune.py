"""Random sparsity that prefers large entries."""

import numpy as np
import torch
from torch import Tensor

from lit_wsl.tensors.magnitudes import magnitude_patterns
from lit_wsl.tensors.rng import CounterRng
from lit_wsl.tensors.sparsify import masked

_LONGEST_TABLE = 1 << 16
"""Columns up to which there is a table of all probabilities."""


def drop_small_and_rescale(
    x: Tensor, density: float, epsilon: float, rng: CounterRng, label: str, offset: int = 0
) -> Tensor:
    """Keep each entry with a probability linear in the rank of its magnitude in its row, and divide it by that.

    The smallest of a row has ``density - epsilon``, the largest ``density + epsilon``, and the mean is ``density``; the
    expectation of an entry stays.

    Args:
        x: Rows of a task vector, shape ``(rows, columns)``.
        density: Mean probability.
        epsilon: Half the range.
        rng: Source of the mask.
        label: Names the stream; give each source and tensor its own.
        offset: Index of the first entry of ``x`` in its tensor.
    """
    columns = x.shape[1]
    doubled = doubled_ranks(x)
    has_table = columns <= _LONGEST_TABLE
    ranks = np.arange(2 * columns - 1) if has_table else doubled
    probabilities = density + epsilon * (ranks / (columns - 1) - 1.0) if columns > 1 else np.full(1, density)
    limits, factors = np.rint(probabilities * (1 << 32)).astype(np.int64), 1.0 / probabilities
    if x.dtype == torch.float32:
        factors = factors.astype(np.float32)
    if has_table:
        limits, factors = limits[doubled], factors[doubled]
    kept = masked(x, rng.below(label, limits.reshape(-1), x.numel(), offset))
    return kept.mul_(torch.from_numpy(factors).to(x.device))


def doubled_ranks(x: Tensor) -> np.ndarray:
    """Twice the rank of each magnitude in its row, from 0 for the smallest on, int64, shape ``(rows, columns)``.

    Equal magnitudes share the mean of their ranks. Numpy sorts integers many times as fast as it finds the order that
    sorts them, so the place of an entry is made part of it.

    Args:
        x: Shape ``(rows, columns)``, float32; magnitudes in float64 are compared in float32.
    """
    shape = x.shape
    keys = magnitude_patterns(x).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(keys.size, dtype=np.uint64)
    keys = keys.reshape(shape)
    keys.sort(axis=1)
    places, ordered = keys.astype("<u8", copy=False).view("<u4").reshape(*shape, 2).transpose(2, 0, 1)
    differs = np.ones(shape, bool)
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=differs[:, 1:])
    first = np.flatnonzero(differs)
    counts = np.diff(first, append=keys.size)
    ranks = np.empty(keys.size, np.int64)
    ranks[places.reshape(-1)] = np.repeat(2 * first + counts - 1, counts)
    ranks = ranks.reshape(shape)
    ranks -= 2 * shape[1] * np.arange(shape[0])[:, None]
    return ranks
