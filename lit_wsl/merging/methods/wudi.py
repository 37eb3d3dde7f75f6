"""WUDI: the update that interferes least with each task's own inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.method import MatrixMethod, MergeContext, register
from lit_wsl.tensors.cores import cores_of
from lit_wsl.tensors.interference import descend_interference, interference_system, least_interference
from lit_wsl.tensors.lora import LoraFactors


@register("wudi")
@dataclass(frozen=True)
class Wudi(MatrixMethod):
    r"""Lowers the interference of the sum with the inputs that the rows of each task matrix stand for.

    The interference is :math:`L(M) = \sum_t \|(M - \Delta_t) \Delta_t^\top\|_F^2 / \|\Delta_t\|_F^2`. The update is
    :math:`\lambda M` after a fixed number of Adam steps from :math:`M = \sum_t \Delta_t`; no data and no random
    numbers are involved. Parameters that are no matrices take the mean, as in the authors' code.

    Variants: ``solver: adam`` with 300 steps at 1e-5 is the authors' and fusion_bench's; it moves each entry by little
    more than the rate times the steps, so its reach depends on the size of the task vectors. Here it runs in float64,
    as Adam turns a gradient of mere rounding into whole steps. Each step is a product with a square matrix: for large
    models a matter of hours without a GPU. ``solver: exact`` is the limit of gradient descent, :math:`M = C H^+` with
    :math:`H = \sum_t \Delta_t^\top \Delta_t / \|\Delta_t\|_F^2` and
    :math:`C = \sum_t \Delta_t \Delta_t^\top \Delta_t / \|\Delta_t\|_F^2`: one eigendecomposition, whatever the
    size of the task vectors. A task matrix of zeros divides by zero in the authors' code; here it has no part.

    Reference:
        WUDI-Merging, https://arxiv.org/abs/2503.08099.
    """

    is_homogeneous: ClassVar[bool] = False
    keeps_identical: ClassVar[bool] = False

    solver: Literal["adam", "exact"] = "adam"
    """Adam steps from the sum, or the minimiser itself."""
    steps: int = 300
    """Adam steps."""
    rate: float = 1e-5
    """Learning rate of Adam."""
    lam: float = 1.0
    """Factor on the merged update."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"`steps >= 0` must hold for 'wudi', got {self.steps}.")
        if self.rate <= 0.0:
            raise ConfigError(f"`rate > 0` must hold for 'wudi', got {self.rate}.")

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Mean of the task vectors, times lambda."""
        return stack.mean(0).mul_(self.lam)

    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The sum of the task matrices with less interference, times lambda."""
        H, C = interference_system(stack)
        if self.solver == "exact":
            merged = least_interference(H, C, torch.finfo(stack.dtype).eps)
        else:
            merged = descend_interference(stack.sum(0, dtype=torch.float64), H, C, self.steps, self.rate)
        return merged.mul_(self.lam).to(stack.dtype)

    def merge_factors(self, factors: Sequence[LoraFactors]) -> list[LoraFactors] | None:
        """The exact solution from small matrices; Adam looks at entries and has no such way."""
        if self.solver != "exact":
            return None
        cores = cores_of(factors)
        merged = least_interference(*interference_system(cores.stack), torch.finfo(cores.stack.dtype).eps)
        return [cores.factors(merged.mul_(self.lam))]
