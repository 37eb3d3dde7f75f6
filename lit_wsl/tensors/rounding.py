"""Which differences a cast to fewer bits alone explains."""

import math

import torch
from torch import Tensor

from lit_wsl.tensors.difference import BLOCK_ENTRIES, Entries

_DIGITS = {
    torch.float8_e5m2: 3,
    torch.float8_e4m3fn: 4,
    torch.bfloat16: 8,
    torch.float16: 11,
    torch.float32: 24,
    torch.float64: 53,
}
"""Binary digits of a significand, the leading one included."""
_COARSE = (torch.bfloat16, torch.float16, torch.float32)
"""What values of a wider dtype may have been rounded to, the coarsest first."""
_LEAST_SHARE = 0.25
"""Rounding moves entries by more than this share of its floor; a change that is far smaller is a real one."""
_FEW = 16
"""So few moved entries may all have been rounded by less."""


def rounding_floor(base: Entries, tuned: Entries) -> float:
    """Relative difference in Frobenius norm that rounding to the coarser of both precisions may give.

    A quarter of a unit in the last digit of 1. Mantissas spread as in trained weights give some 15 % less; ones that
    all lie just above 1 give more. A wider dtype that holds rounded values counts as what they were rounded to.
    """
    return max((_floor(dtype) for side in (base, tuned) if (dtype := precision(side)) in _DIGITS), default=0.0)


def precision(entries: Entries) -> torch.dtype:
    """The coarsest dtype that holds the first block of entries without loss, or the stored one."""
    if entries.dtype not in (torch.float32, torch.float64):
        return entries.dtype
    block = _block(entries, 0, _wide(entries))
    return next((dtype for dtype in _COARSE if torch.equal(block.to(dtype).to(block.dtype), block)), entries.dtype)


def is_rounding(base: Entries, tuned: Entries) -> bool:
    """Whether one side is the other, rounded to a dtype of fewer bits.

    A base of few bits may also be what a tiny real change of it rounds to: then entries moved by far less than
    rounding would have moved them.
    """
    return any(_is_rounded(one, two, dtype) for dtype in _COARSE for one, two in ((base, tuned), (tuned, base)))


def _is_rounded(exact: Entries, rounded: Entries, dtype: torch.dtype) -> bool:
    wide = _wide(exact, rounded)
    moved, error, size = 0, 0.0, 0.0
    for start in range(0, math.prod(exact.shape), BLOCK_ENTRIES):
        one, two = _block(exact, start, wide), _block(rounded, start, wide)
        if not torch.equal(one.to(dtype).to(wide), two):
            return False
        delta = two.double() - one
        moved += int(delta.count_nonzero())
        error += float(delta.square().sum())
        size += float(torch.where(delta == 0.0, 0.0, one).double().square().sum())
    if moved < _FEW:
        return True
    coarser = _COARSE[: _COARSE.index(dtype)]
    return error >= (_LEAST_SHARE * _floor(dtype)) ** 2 * size and not any(_holds(one, rounded) for one in coarser)


def _holds(dtype: torch.dtype, entries: Entries) -> bool:
    """Whether a dtype holds all entries without loss."""
    blocks = (_block(entries, at, _wide(entries)) for at in range(0, math.prod(entries.shape), BLOCK_ENTRIES))
    return all(torch.equal(block.to(dtype).to(block.dtype), block) for block in blocks)


def _floor(dtype: torch.dtype) -> float:
    """Half of the largest relative error of rounding to a dtype."""
    return 2.0 ** -(_DIGITS[dtype] + 1)


def _wide(*sides: Entries) -> torch.dtype:
    """The dtype that holds the entries of all sides."""
    return torch.float64 if any(side.dtype == torch.float64 for side in sides) else torch.float32


def _block(entries: Entries, start: int, dtype: torch.dtype) -> Tensor:
    block = torch.empty(min(BLOCK_ENTRIES, math.prod(entries.shape) - start), dtype=dtype)
    entries.fill(block, start)
    return block
