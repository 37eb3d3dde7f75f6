"""One source as it is."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_wsl.merging.method import LinearMethod, register


@register("passthrough")
@dataclass(frozen=True)
class Passthrough(LinearMethod):
    r"""Takes its one source as it is.

    The update is :math:`\Delta = \Delta_1`: an adapter folded into its base, or a model minus its base.

    Variants: mergekit's ``scale`` multiplies the whole weights, base included, and is not taken over;
    ``uniform_scalar_delta`` with one source scales the update.
    """

    needs_base: ClassVar[bool] = False
    most: ClassVar[int | None] = 1

    def coefficients(self, sources: int) -> Tensor:
        """One."""
        return torch.ones(sources, dtype=torch.float64)
