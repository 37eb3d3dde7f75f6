"""Mean of the task vectors, under the name of what it averages."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_wsl.merging.method import LinearMethod, register


@register("task_vector")
@dataclass(frozen=True)
class TaskVectorMean(LinearMethod):
    r"""Averages the task vectors, each the whole update of its source.

    The update is :math:`\Delta = \frac1T \sum_t \Delta_t`, as for ``uniform_delta``. The two differ in nothing but
    what a transform in front of them sees: dense updates here, factors there. Being linear it keeps low rank, so
    the mean of adapters is written as an adapter that PEFT loads.

    Reference:
        Task arithmetic, https://arxiv.org/abs/2212.04089, section 2 (addition, scaled to the mean).
    """

    needs_base: ClassVar[bool] = False

    def coefficients(self, sources: int) -> Tensor:
        """``1 / T`` each."""
        return torch.full((sources,), 1.0 / sources, dtype=torch.float64)
