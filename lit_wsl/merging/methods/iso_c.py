"""Iso-C: the sum of the task matrices with a flat spectrum."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lit_wsl.merging.method import MatrixMethod, MergeContext, register
from lit_wsl.tensors.cores import cores_of
from lit_wsl.tensors.isotropic import flattened
from lit_wsl.tensors.lora import LoraFactors


@register("iso_c")
@dataclass(frozen=True)
class IsoC(MatrixMethod):
    r"""Adds the task matrices up and replaces every singular value of the sum by their mean.

    With :math:`\sum_t \Delta_t = U \Sigma V^\top` the update is :math:`\Delta = \lambda \bar\sigma \, U V^\top`.
    Parameters that are no matrices take the mean, as in the authors' code.

    Variants: the authors' code (and fusion_bench) takes the mean over min(m, n) values and fills the directions that
    a sum of low rank does not have with arbitrary vectors of that size. Here a direction that is not there stays
    zero, and the mean is over the values that are not; for sums of full rank the two agree.

    Reference:
        Iso-C, https://arxiv.org/abs/2502.04959, section 4.
    """

    keeps_identical: ClassVar[bool] = False

    lam: float = 1.0
    """Factor on the merged update; the paper's alpha, which it chooses on validation data."""

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Mean of the task vectors, times lambda."""
        return stack.mean(0).mul_(self.lam)

    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Flattened sum of the task matrices, times lambda."""
        return flattened(stack.sum(0)).mul_(self.lam).to(stack.dtype)

    def merge_factors(self, factors: Sequence[LoraFactors]) -> list[LoraFactors] | None:
        """The same from small matrices, as rotations on either side of all tasks rotate the result."""
        cores = cores_of(factors)
        return [cores.factors(flattened(cores.stack.sum(0)).mul_(self.lam))]
