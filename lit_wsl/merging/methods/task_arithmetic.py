"""Scaled sum of the task vectors."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_wsl.merging.method import LinearMethod, register


@register("uniform_scalar_delta", "task_arithmetic")
@dataclass(frozen=True)
class TaskArithmetic(LinearMethod):
    r"""Adds the task vectors up and scales the sum.

    The update is :math:`\Delta = s \sum_t \Delta_t` with :math:`s` the ``scale``.

    Reference:
        Task arithmetic, https://arxiv.org/abs/2212.04089, section 2 (addition; the paper's lambda is ``scale``).
        mergekit's ``task_arithmetic`` divides by the sum of weights when ``normalize`` is set; this never does.
    """

    keeps_identical: ClassVar[bool] = False

    scale: float = 1.0
    """Factor on the sum; any finite number."""

    def coefficients(self, sources: int) -> Tensor:
        """``scale`` each."""
        return torch.full((sources,), self.scale, dtype=torch.float64)
