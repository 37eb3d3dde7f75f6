"""Arcee Fusion: take over the changes of one tuned model that matter most."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lit_wsl.merging.method import MatrixMethod, MergeContext, register
from lit_wsl.tensors.importance import divergence_importance, outlier_threshold


@register("arcee_fusion")
@dataclass(frozen=True)
class ArceeFusion(MatrixMethod):
    r"""Takes over the entries of one tuned model whose importance stands out, and keeps the base elsewhere.

    The importance of an entry is :math:`|\theta - \theta_0| \, KL(softmax(\theta) \| softmax(\theta_0))` with the
    softmax over its row; entries of a parameter at or above the median plus 1.5 times the distance of the quartiles
    are taken over. A row is one output's weights (a kernel lies behind them, a vector is one row). Whole parameters
    are held in memory, embeddings too.

    Variants: in mergekit the softmax of a kernel runs over its last dimension, and quartiles of more than a million
    entries come from a random sample; here they are exact.

    Reference:
        Arcee Fusion, https://github.com/arcee-ai/mergekit (``arcee_fusion``); there is no paper.
    """

    least: ClassVar[int] = 1
    most: ClassVar[int | None] = 1
    space: ClassVar[Literal["delta", "weight"]] = "weight"
    is_homogeneous: ClassVar[bool] = False
    keeps_identical: ClassVar[bool] = False

    @classmethod
    def takes(cls, shape: Sequence[int]) -> bool:
        """Everything but a scalar or an empty parameter: the softmax needs whole rows, the threshold all of them."""
        return len(shape) > 0 and math.prod(shape) > 0

    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The tuned weights where they matter, else the base."""
        assert base is not None
        (tuned,) = stack
        as_rows = (1, -1) if tuned.shape[-1] == 1 else tuned.shape  # a vector is a single row
        importance = divergence_importance(tuned.reshape(as_rows), base.reshape(as_rows)).view(tuned.shape)
        return torch.where(importance >= outlier_threshold(importance), tuned, base)

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The tuned weights: what is no matrix is a single number, whose softmax is always 1."""
        return stack[0].clone()
