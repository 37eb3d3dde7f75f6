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
_COARSE = (torch.bfloat16, torch.float16)
"""What values of a wider dtype may have been rounded to, the coarsest first."""


def rounding_floor(base: Entries, tuned: Entries) -> float:
    """Relative difference in Frobenius norm that rounding to the coarser of both precisions gives, from above.

    Half a unit in the last digit at most; the root mean square over mantissas is some 15 % less. A wider dtype that
    holds rounded values counts as what they were rounded to.
    """
    digits = [_DIGITS.get(precision(side)) for side in (base, tuned)]
    known = [count for count in digits if count is not None]
    return 2.0 ** -(min(known) + 1) if known else 0.0


def precision(entries: Entries) -> torch.dtype:
    """The coarsest dtype that holds the first block of entries without loss, or the stored one."""
    if entries.dtype not in (torch.float32, torch.float64):
        return entries.dtype
    block = _block(entries, 0)
    return next((dtype for dtype in _COARSE if torch.equal(block.to(dtype).to(block.dtype), block)), entries.dtype)


def is_rounding(base: Entries, tuned: Entries) -> bool:
    """Whether one side is the other, rounded to a dtype of fewer bits."""
    return any(_is_rounded(one, two, dtype) for dtype in _COARSE for one, two in ((base, tuned), (tuned, base)))


def _is_rounded(exact: Entries, rounded: Entries, dtype: torch.dtype) -> bool:
    for start in range(0, math.prod(exact.shape), BLOCK_ENTRIES):
        one, two = _block(exact, start), _block(rounded, start)
        if not torch.equal(one.to(dtype).to(one.dtype), two):
            return False
    return True


def _block(entries: Entries, start: int) -> Tensor:
    block = torch.empty(min(BLOCK_ENTRIES, math.prod(entries.shape) - start))
    entries.fill(block, start)
    return block
