"""Weighted sum of adapters whose factors are put side by side."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_wsl.merging.method import LinearMethod, register


@register("lora_cat")
@dataclass(frozen=True)
class LoraCat(LinearMethod):
    r"""Adds weighted adapters up exactly: the factors stand side by side and the ranks add up.

    The update is :math:`\Delta = \sum_t w_t s_t B_t A_t`. An adapter output holds it without loss while the ranks sum
    to no more than a matrix has (or than ``rank`` allows). Full models take the same sum of task vectors.

    Variants: this is PEFT's ``add_weighted_adapter`` with ``combination_type: cat``. PEFT 0.21 copies
    ``use_rslora`` and ``use_dora`` of the first adapter to the result although the scales are in the factors already,
    so that its rsLoRA results are too large by the root of the rank, and DoRA's magnitudes are lost; not so here.
    """

    per_source: ClassVar[tuple[str, ...]] = ("weights",)

    weights: tuple[float, ...] | None = None
    """Factor on each source, any finite numbers; 1 / T each by default. PEFT has no default."""

    def coefficients(self, sources: int) -> Tensor:
        """The weights as they are."""
        return torch.tensor(self.weights or (1.0 / sources,) * sources, dtype=torch.float64)
