"""How two tensors differ, in one pass over blocks that stay in cache."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK_ENTRIES = 1 << 17
"""Entries of a block: two in float32 and their sources fit the cache of a core."""

_Integers = NDArray[np.generic]
_FLOAT32 = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2})


class Entries(Protocol):
    """Entries of a tensor in their order, made block by block."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    """What they are stored as."""

    def fill(self, out: Tensor, start: int) -> None:
        """Write the entries from flat position ``start`` into ``out``."""

    def stored(self) -> Tensor | None:
        """The flat stored entries, if they are what :meth:`fill` writes."""


class Stored:
    """Entries of a tensor as it is, such as a view of a mapped file."""

    def __init__(self, tensor: Tensor) -> None:
        tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype
        self._flat = tensor.reshape(-1)

    def fill(self, out: Tensor, start: int) -> None:
        """Write the entries from flat position ``start`` into ``out``."""
        out.copy_(self._flat[start : start + out.numel()])

    def stored(self) -> Tensor | None:
        """The flat tensor."""
        return self._flat


@dataclass(frozen=True)
class Difference:
    """How ``tuned`` differs from ``base``; sums over the entries that are finite on both sides."""

    numel: int
    mean_abs: float
    max_abs: float
    mean: float
    norm: float
    """Frobenius norm of the difference."""
    base_norm: float
    tuned_norm: float
    inner: float
    """Inner product of both tensors."""
    changed: int
    """Entries that differ by more than the threshold."""
    base_nonfinite: tuple[int, int]
    """NaN and infinite entries of the base."""
    tuned_nonfinite: tuple[int, int]
    unshared: int
    """Entries that are NaN, or infinite on one side and something else on the other."""
    is_equal: bool
    """Bit for bit."""

    @property
    def relative(self) -> float:
        """Norm of the difference over that of the base, which is kept from zero."""
        return self.norm / (self.base_norm + 1e-10)

    @property
    def changed_ratio(self) -> float:
        """Share of entries that differ by more than the threshold."""
        return self.changed / self.numel if self.numel else 0.0

    @property
    def std(self) -> float:
        """Standard deviation of the difference."""
        if not self.numel:
            return 0.0
        return math.sqrt(max(0.0, self.norm**2 / self.numel - self.mean**2))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both tensors; 1 for two zeros."""
        if self.base_norm == self.tuned_norm == 0.0:
            return 1.0
        size = self.base_norm * self.tuned_norm
        return max(-1.0, min(1.0, self.inner / size)) if size else 0.0


def difference(base: Entries, tuned: Entries, threshold: float = 1e-6) -> Difference:
    """Compare two tensors of as many entries in one pass.

    Blocks are compared in float32, in float64 where a side is stored as float64 or as integers; sums over blocks
    are kept in float64. A block of equal bytes costs little more than reading it.

    Args:
        base: The tensor before.
        tuned: The tensor after.
        threshold: What an entry must differ by to count as changed.
    """
    wide = torch.float32 if {base.dtype, tuned.dtype} <= _FLOAT32 else torch.float64
    entries = math.prod(base.shape)
    bits = _bits(base.stored(), tuned.stored())
    one, two = torch.empty(2, min(entries, BLOCK_ENTRIES), dtype=wide)
    x, y = one, two
    rows: list[list[float]] = []
    nonfinite = torch.zeros(5, dtype=torch.int64)
    is_equal = bits is not None
    for start in range(0, entries, BLOCK_ENTRIES):
        stop = min(start + BLOCK_ENTRIES, entries)
        if stop - start < len(x):
            x, y = one[: stop - start], two[: stop - start]
        base.fill(x, start)
        # Where one block differs most others do; from then on asking would cost more than it spares.
        is_equal = is_equal and bits is not None and bool((bits[0][start:stop] == bits[1][start:stop]).all())
        if is_equal:
            row = _sums_of_equal(x)
        else:
            tuned.fill(y, start)
            row = _sums(x, y, threshold)
        if not _is_sure(row):
            tuned.fill(y, start)
            row = _wide_sums(x, y, threshold, nonfinite)
        rows.append(row)
    return _result(entries, rows, nonfinite.tolist(), is_equal=is_equal)


def _bits(left: Tensor | None, right: Tensor | None) -> tuple[_Integers, _Integers] | None:
    """Both tensors as integers, so that equal means equal bytes; None where dtypes differ or values are made."""
    if left is None or right is None or left.dtype != right.dtype:
        return None
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[left.dtype.itemsize]
    return left.view(kind).numpy(), right.view(kind).numpy()


_CANCELLED = 1e-2
"""A fine-tuned side whose squares are so much less than the base's is what rounding leaves of their difference."""


def _sums(x: Tensor, y: Tensor, threshold: float) -> list[float]:
    """Sums of one block: squares of base, difference and tuned; base by tuned; difference, size, largest, changed.

    ``y`` is overwritten.
    """
    delta = y.sub_(x)
    base, square, inner = torch.dot(x, x).item(), torch.dot(delta, delta).item(), torch.dot(x, delta).item()
    total, absolute = delta.sum().item(), delta.abs_().sum().item()
    sizes = delta.numpy()  # NumPy compares, counts and finds the largest in half the time
    largest, changed = sizes.max().item(), np.count_nonzero(sizes > threshold)
    return [base, square, base + 2 * inner + square, base + inner, total, absolute, largest, float(changed)]


def _sums_of_equal(x: Tensor) -> list[float]:
    """Sums of a block that is the same on both sides."""
    square = torch.dot(x, x).item()
    return [square, 0.0, square, square, 0.0, 0.0, 0.0, 0.0]


def _is_sure(row: list[float]) -> bool:
    """Whether no square overflowed, no entry is NaN, and the squares of the tuned side are not lost in the base's."""
    base, square, tuned = row[:3]
    return math.isfinite(base + square) and tuned >= _CANCELLED * base


def _wide_sums(x: Tensor, y: Tensor, threshold: float, nonfinite: Tensor) -> list[float]:
    """Sums in float64 over entries that are finite on both sides; the others are counted."""
    whole = torch.isfinite(x) & torch.isfinite(y)
    kinds = [kind(side) for side in (x, y) for kind in (torch.isnan, torch.isinf)]
    nonfinite += torch.stack([places.sum() for places in (*kinds, (x != y) & ~whole)])
    x, y = torch.where(whole, x, 0.0).double(), torch.where(whole, y, 0.0).double()
    tuned = torch.dot(y, y).item()
    sums = _sums(x, y, threshold)
    sums[2] = tuned
    return sums


def _result(entries: int, rows: list[list[float]], nonfinite: list[int], *, is_equal: bool) -> Difference:
    sums = torch.tensor(rows or [[0.0] * 8], dtype=torch.float64)
    base, square, tuned, inner, total, absolute, _, changed = sums.sum(0).tolist()
    return Difference(
        numel=entries,
        mean_abs=absolute / max(entries, 1),
        max_abs=sums[:, 6].max().item(),
        mean=total / max(entries, 1),
        norm=math.sqrt(square),
        base_norm=math.sqrt(base),
        tuned_norm=math.sqrt(tuned),
        inner=inner,
        changed=round(changed),
        base_nonfinite=(nonfinite[0], nonfinite[1]),
        tuned_nonfinite=(nonfinite[2], nonfinite[3]),
        unshared=nonfinite[4],
        is_equal=is_equal,
    )
