"""Average of the LoRA factors themselves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lit_wsl.errors import MergeError
from lit_wsl.merging.method import LinearMethod, register
from lit_wsl.merging.shares import shares_of
from lit_wsl.tensors.lora import LoraFactors


@register("uniform")
@dataclass(frozen=True)
class Uniform(LinearMethod):
    r"""Averages the factors A and B separately (for full models: the parameters).

    The update is :math:`\Delta = s_0 \, \bar B \bar A`, with the first adapter's scale: what averaging adapter
    files does. It has cross terms :math:`B_i A_j` and is *not* the mean of the updates; ``uniform_delta`` is.
    For full models, where there are no factors, it is the mean of the parameters.
    """

    needs_base: ClassVar[bool] = False
    caution: ClassVar[str] = (
        "`uniform` averages A and B separately, which is not the mean of the updates; `uniform_delta` is."
    )

    def coefficients(self, sources: int) -> Tensor:
        """``1 / T`` each; used for dense sources."""
        return shares_of(None, sources)

    def merge_factors(self, factors: Sequence[LoraFactors]) -> list[LoraFactors]:
        """One pair of averaged factors with the first source's scale.

        Raises:
            MergeError: If the ranks differ.
        """
        first = factors[0]
        if any(f.rank != first.rank for f in factors):
            raise MergeError(
                f"`uniform` averages the factors, so ranks must agree, got {[f.rank for f in factors]}; "
                "use `uniform_delta`, which averages the updates."
            )
        A = torch.stack([f.A.float() for f in factors]).mean(0)
        B = torch.stack([f.B.float() for f in factors]).mean(0)
        return [replace(first, A=A, B=B)]
