"""Mean of the task vectors."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lit_wsl.merging.method import LinearMethod, register
from lit_wsl.merging.shares import shares_of


@register("uniform_delta")
@dataclass(frozen=True)
class UniformDelta(LinearMethod):
    r"""Averages the task vectors (for full models: the parameters).

    The update is :math:`\Delta = \frac1T \sum_t \Delta_t`.

    Reference:
        Model soups, https://arxiv.org/abs/2203.05482, section 2 (uniform soup).
    """

    needs_base: ClassVar[bool] = False

    def coefficients(self, sources: int) -> Tensor:
        """``1 / T`` each."""
        return shares_of(None, sources)
