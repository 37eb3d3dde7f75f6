"""Keep some entries of a task vector: the largest, or a random share."""

import math

import torch
from torch import Tensor

from lit_wsl.tensors.rng import CounterRng

_LOW_BITS = 16
_BINS = 1 << (31 - _LOW_BITS)


def kept_count(entries: int, density: float) -> int:
    """Entries that a density keeps: rounded up, at least one, none for density 0."""
    if density <= 0.0:
        return 0
    # A tiny slack absorbs the representation error of densities such as 0.2 (5 entries keep 1, not 2).
    return min(entries, max(1, math.ceil(entries * density - 1e-9)))


class MagnitudeSelector:
    """Exact k-th largest magnitude of a stream of blocks, in two passes and constant memory.

    The bit pattern of a non-negative float32 grows with its value. The first pass counts the upper 15 of
    its 31 bits, which finds the bin of the k-th largest; the second counts the lower 16 bits inside
    that bin. Nothing is sorted and nothing is kept but two histograms.
    """

    def __init__(self, density: float) -> None:
        self.density = density
        self.entries = 0
        self.threshold: float | None = None
        self._upper = torch.zeros(_BINS, dtype=torch.int64)
        self._lower = torch.zeros(1 << _LOW_BITS, dtype=torch.int64)
        self._bin: int | None = None
        self._wanted = 0

    def update(self, block: Tensor) -> None:
        """Count the entries of one block, any shape."""
        pattern = block.detach().float().abs().flatten().view(torch.int32)
        upper = torch.bitwise_right_shift(pattern, _LOW_BITS)
        if self._bin is None:
            self.entries += pattern.numel()
            self._upper += torch.bincount(upper, minlength=_BINS).cpu()
        else:
            inside = pattern[upper == self._bin].bitwise_and_((1 << _LOW_BITS) - 1)
            self._lower += torch.bincount(inside, minlength=1 << _LOW_BITS).cpu()

    def end_pass(self) -> bool:
        """Close a pass over all blocks; true when the threshold is known."""
        if self._bin is None:
            wanted = kept_count(self.entries, self.density)
            if wanted == 0:
                self.threshold = math.inf
                return True
            if wanted == self.entries:
                self.threshold = 0.0
                return True
            self._bin, self._wanted = _from_the_top(self._upper, wanted)
            return False
        low, _ = _from_the_top(self._lower, self._wanted)
        bits = torch.tensor((self._bin << _LOW_BITS) | low, dtype=torch.int32)
        self.threshold = float(bits.view(torch.float32))
        return True


def _from_the_top(counts: Tensor, wanted: int) -> tuple[int, int]:
    """Bin that holds the ``wanted``-th largest entry, and its rank inside that bin."""
    above = torch.cumsum(counts.flip(0), 0)
    position = int(torch.searchsorted(above, wanted))
    before = int(above[position - 1]) if position else 0
    return len(counts) - 1 - position, wanted - before


def magnitude_threshold(x: Tensor, density: float) -> float:
    """Magnitude of the smallest of the ``ceil(density * n)`` largest entries, found without a sort.

    Args:
        x: Any shape.
        density: Fraction kept, in [0, 1]; 0 gives infinity, 1 gives 0.
    """
    selector = MagnitudeSelector(density)
    for _ in range(2):
        selector.update(x)
        if selector.end_pass():
            break
    assert selector.threshold is not None
    return selector.threshold


def keep_above(x: Tensor, threshold: float) -> Tensor:
    """``x`` with every entry of a magnitude below ``threshold`` set to zero; equal magnitudes all stay."""
    if threshold == 0.0:
        return x
    if x.dtype == torch.float64:  # thresholds are float32, and so must be the comparison
        return x * (x.float().abs() >= threshold)
    just_below = torch.nextafter(torch.tensor(threshold), torch.tensor(0.0))
    return torch.nn.functional.hardshrink(x, float(just_below))  # keeps |x| > lambda


def keep_top_magnitude(x: Tensor, density: float) -> Tensor:
    """``x`` with only the fraction ``density`` of largest magnitudes kept (ties at the threshold all stay)."""
    return keep_above(x, magnitude_threshold(x, density))


def drop_and_rescale(x: Tensor, drop_rate: float, rng: CounterRng, label: str, offset: int = 0) -> Tensor:
    """Drop each entry with probability ``drop_rate`` and divide the rest by the keep probability.

    Args:
        x: Task vector or a block of it, any shape.
        drop_rate: In [0, 1).
        rng: Source of the mask.
        label: Names the stream; give each source and tensor its own.
        offset: Index of the first entry of ``x`` in its tensor.

    Reference:
        DARE, https://arxiv.org/abs/2311.03099, section 3.2 (rescaling by 1 / (1 - p)).
    """
    keep = 1.0 - drop_rate
    return x * rng.keep_mask(label, keep, x, offset) / keep
