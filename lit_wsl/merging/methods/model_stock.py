"""Model Stock: go from the base towards the mean as far as the angle between the sources says."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_wsl.merging.gram import GramMethod
from lit_wsl.merging.method import register
from lit_wsl.tensors.gram import mean_cosine


@register("model_stock")
@dataclass(frozen=True)
class ModelStock(GramMethod):
    r"""Averages the task vectors and shortens the mean by the angle between them, parameter by parameter.

    The update is :math:`t \, \bar\Delta` with :math:`t = N \cos\theta / (1 + (N - 1) \cos\theta)`, where
    :math:`\cos\theta` is the mean over all pairs of the N sources: 1 for parallel task vectors, 0 for orthogonal ones.

    Variants: the angle is taken per parameter, as in the paper (mergekit's ``filter_wise: false``). A mean cosine
    below zero gives t = 0; the formula, and mergekit, would then turn away from the sources. A pair with a zero task
    vector has cosine 0. mergekit takes products of norms below 1e-6 for 1e-6, which shortens small updates.

    Reference:
        Model Stock, https://arxiv.org/abs/2403.19522; the mean over pairs is mergekit's.
    """

    least: ClassVar[int] = 2

    def mix(self, inner: Tensor) -> Tensor:
        """The mean's coefficients, shortened."""
        cosine, count = max(0.0, mean_cosine(inner)), len(inner)
        ratio = count * cosine / (1.0 + (count - 1) * cosine)
        return torch.full((count,), ratio / count, dtype=torch.float64)
