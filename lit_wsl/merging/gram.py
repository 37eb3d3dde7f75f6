"""Methods that need no more of whole tensors than the inner products of the sources."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_wsl.merging.method import MergeContext, MergeMethod, Scan
from lit_wsl.merging.shares import check_positive, shares_of
from lit_wsl.tensors.sphere import gram


class GramScan(Scan):
    """Inner products of all sources with each other, summed over the blocks in float64.

    Args:
        sources: Number of sources.
        finish: Makes the result from the Gram matrix, shape ``(T, T)``.
    """

    def __init__(self, sources: int, finish: Callable[[Tensor], Tensor]) -> None:
        self._inner = torch.zeros(sources, sources, dtype=torch.float64)
        self._finish = finish

    def update(self, stack: Tensor) -> None:
        """Add the products of one block, shape ``(T, n)``."""
        self._inner += gram(stack)

    def end_pass(self) -> bool:
        """One pass is enough."""
        return True

    def result(self) -> Tensor:
        """What ``finish`` makes of the sums."""
        return self._finish(self._inner)


@dataclass(frozen=True)
class GramMethod(MergeMethod):
    """A method whose result combines the sources by coefficients that follow from their inner products."""

    @abstractmethod
    def mix(self, inner: Tensor) -> Tensor:
        """One coefficient per source, shape ``(T,)``, float64, from the Gram matrix, shape ``(T, T)``."""

    def scan_tensor(self, sources: int) -> Scan | None:
        """The coefficients of one parameter."""
        return GramScan(sources, self.mix)

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The combination of the sources, shape ``(n,)``."""
        first, *others = context.statistics.tolist()
        merged = stack[0] * first
        for coefficient, source in zip(others, stack[1:], strict=True):
            merged.add_(source, alpha=coefficient)
        return merged


@dataclass(frozen=True)
class GramMean(GramMethod):
    """A mean of the sources that bends with their angles, by weights that are no less than zero."""

    per_source: ClassVar[tuple[str, ...]] = ("weights",)

    weights: tuple[float, ...] | None = None
    """One weight per source, in their order; equal by default."""

    def __post_init__(self) -> None:
        check_positive(self.name, "weights", self.weights)

    def shares(self, sources: int) -> Tensor:
        """The weights divided by their sum."""
        return shares_of(self.weights, sources)
