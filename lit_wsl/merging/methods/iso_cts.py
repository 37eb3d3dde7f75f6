"""Iso-CTS: directions of the sum and of each task, with a flat spectrum."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.method import MatrixMethod, MergeContext, register
from lit_wsl.tensors.cores import cores_of
from lit_wsl.tensors.isotropic import common_and_specific
from lit_wsl.tensors.lora import LoraFactors


@register("iso_cts")
@dataclass(frozen=True)
class IsoCts(MatrixMethod):
    r"""Takes the leading directions of the sum, adds those each task has beside them, weighs all alike.

    Of the :math:`\min(m, n)` directions a share ``common_fraction`` comes from :math:`\sum_t \Delta_t`; the rest is
    divided evenly among the tasks, each of which gives the leading ones of
    :math:`\Delta_t - U_c U_c^\top \Delta_t`. The vectors of all are made orthonormal as in ``tsv_m``, and every
    singular value is replaced by the mean. Parameters that are no matrices take the mean, as in the authors' code.

    Variants: the number of directions per task is rounded as in the authors' code, except where that would take more
    than there are. Directions that matrices of low rank do not have are left out, as in ``iso_c``.

    Reference:
        Iso-CTS, https://arxiv.org/abs/2502.04959, section 4.
    """

    keeps_identical: ClassVar[bool] = False

    common_fraction: float = 0.8
    """Share of the directions that the sum provides, in [0, 1]; 1 is ``iso_c``."""
    lam: float = 1.0
    """Factor on the merged update; the paper's alpha, which it chooses on validation data."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.common_fraction <= 1.0:
            raise ConfigError(f"`0 <= common_fraction <= 1` must hold for 'iso_cts', got {self.common_fraction}.")

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Mean of the task vectors, times lambda."""
        return stack.mean(0).mul_(self.lam)

    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Common and task-specific directions with a flat spectrum, times lambda."""
        return common_and_specific(stack, self.common_fraction).mul_(self.lam).to(stack.dtype)

    def merge_factors(self, factors: Sequence[LoraFactors]) -> list[LoraFactors] | None:
        """The same from small matrices, as rotations on either side of all tasks rotate the result."""
        cores = cores_of(factors)
        return [cores.factors(common_and_specific(cores.stack, self.common_fraction, cores.directions).mul_(self.lam))]
