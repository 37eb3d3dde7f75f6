"""What methods share that make task vectors sparse and then put them together."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.method import MergeContext, MergeMethod, Scan
from lit_wsl.tensors.consensus import agreeing_sum, disjoint_mean, divide_by_share, elect_sign, elected_sum
from lit_wsl.tensors.fusion import weighted_mean, weighted_sum
from lit_wsl.tensors.ranking import RankSelector
from lit_wsl.tensors.sparsify import MagnitudeSelector, keep_above


@dataclass(frozen=True)
class SparseMethod(MergeMethod):
    """Makes each task vector sparse, then combines all of them."""

    keeps_identical: ClassVar[bool] = False
    per_source: ClassVar[tuple[str, ...]] = ("weights", "densities")

    weights: tuple[float, ...] | None = None
    """Weight of each source; default 1 each."""
    combine: Literal["mean", "sum"] = "mean"
    """Whether the weighted sum is divided by the sum of the weights."""
    lam: float = 1.0
    """Factor on the merged update; any finite number."""
    densities: tuple[float, ...] | None = None
    """Density of each source, where they differ; then ``density`` is not used."""

    def __post_init__(self) -> None:
        for density in self.densities or ():
            self.check_density(density)
        if self.weights is None or self.combine == "sum":
            return
        if min(self.weights, default=0.0) < 0.0 or not sum(self.weights) > 0.0:
            raise ConfigError(
                f"`combine: mean` of {self.name!r} needs weights >= 0 that are not all 0, got {list(self.weights)}; "
                "use `combine: sum`."
            )

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Combination of the sparse task vectors, times lambda."""
        merged = self.fuse(self.sparsify(stack, context), self._weights(len(stack)))
        factor = self.lam * self.left_over()
        return merged if factor == 1.0 else merged.mul_(factor)

    @abstractmethod
    def sparsify(self, stack: Tensor, context: MergeContext) -> Sequence[Tensor]:
        """The task vectors with most entries zero, T of shape ``(n,)``, but for a factor that is left over."""

    def left_over(self) -> float:
        """Factor of all sparse task vectors alike, which it takes less to multiply the merged update by."""
        return 1.0

    def fuse(self, sparse: Sequence[Tensor], weights: Tensor) -> Tensor:
        """Weighted mean or sum over all sources, shape ``(n,)``."""
        return weighted_mean(sparse, weights) if self.combine == "mean" else weighted_sum(sparse, weights)

    def check_density(self, density: float) -> None:
        """Refuse a density that keeps nothing, or more than everything.

        Raises:
            ConfigError: If it is not in (0, 1].
        """
        if not 0.0 < density <= 1.0:
            raise ConfigError(f"`0 < density <= 1` must hold for {self.name!r}, got {density}.")

    def each_density(self, density: float, sources: int) -> tuple[float, ...]:
        """The density of every source: its own, or the one for all."""
        return self.densities or (density,) * sources

    def _weights(self, sources: int) -> Tensor:
        return torch.tensor(self.weights or (1.0,) * sources, dtype=torch.float64)


@dataclass(frozen=True)
class ElectingMethod(SparseMethod):
    """Makes each task vector sparse, elects a sign per entry, then combines those that agree with it."""

    elect: Literal["unweighted", "weighted"] = "unweighted"
    """Whether signs are elected and compared before or after weighting."""

    def fuse(self, sparse: Sequence[Tensor], weights: Tensor) -> Tensor:
        """Weighted mean or sum over the sources that agree with the elected sign, shape ``(n,)``."""
        factors = weights.tolist()
        if len(set(factors)) == 1:  # then it does not matter when they are weighted
            return disjoint_mean(sparse) if self.combine == "mean" else elected_sum(sparse)[0].mul_(factors[0])
        if self.elect == "weighted":
            voters: Sequence[Tensor] = [x * factor for x, factor in zip(sparse, factors, strict=True)]
            total, sign = elected_sum(voters)
        else:
            voters, sign = sparse, elect_sign(sparse)
            total = agreeing_sum(sparse, sign, factors)
        return total if self.combine == "sum" else divide_by_share(total, voters, sign, factors)


class MagnitudeScan(Scan):
    """Magnitudes at certain ranks of each task vector.

    Args:
        selectors: One for each task vector.
    """

    def __init__(self, selectors: Sequence[RankSelector]) -> None:
        self._selectors = selectors

    def update(self, stack: Tensor | Sequence[Tensor]) -> None:
        """Count the magnitudes of one block, shape ``(T, n)``, or of one flat tensor for each task vector."""
        for selector, task_vector in zip(self._selectors, stack, strict=True):
            if selector.values is None:
                selector.update(task_vector)

    def add(self, other: Self) -> None:
        """Add the counts of other blocks."""
        for selector, counted in zip(self._selectors, other._selectors, strict=True):
            if selector.values is None:
                selector.add(counted)

    def end_pass(self) -> bool:
        """Close a pass; true when every magnitude is known."""
        known = [s.values is not None or s.end_pass() for s in self._selectors]  # every selector must close
        return all(known)

    def result(self) -> list[list[float]]:
        """Per task vector the magnitudes in the order of the ranks."""
        return [selector.values or [] for selector in self._selectors]


@dataclass(frozen=True)
class LargestPercent:
    """The selection of TIES, for methods and transforms: the largest k percent of each task vector."""

    name: ClassVar[str]

    k: float = 20.0
    """Percent of entries kept, in [0, 100]."""
    lam: float = 1.0
    """Factor on the result; any finite number."""
    scope: Literal["global", "tensor"] = "global"
    """Where the ``k`` percent are counted: over the whole model, or in each parameter."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.k <= 100.0:
            raise ConfigError(f"`0 <= k <= 100` must hold for {self.name!r}, got {self.k}; k is in percent.")

    def scan_model(self, sources: int) -> Scan | None:
        """Thresholds over the whole model, for ``scope: global``."""
        return self._scan(sources) if self.scope == "global" else None

    def scan_tensor(self, sources: int) -> Scan | None:
        """Thresholds per parameter, for ``scope: tensor``."""
        return self._scan(sources) if self.scope == "tensor" else None

    def _scan(self, sources: int) -> Scan:
        return MagnitudeScan([MagnitudeSelector(self.k / 100.0) for _ in range(sources)])

    def largest(self, stack: Tensor | Sequence[Tensor], context: MergeContext) -> list[Tensor]:
        """The task vectors above their thresholds, zero elsewhere."""
        pairs = zip(stack, context.statistics, strict=True)
        return [keep_above(task_vector, threshold) for task_vector, [threshold] in pairs]
