"""Model Stock: go from the base towards the mean as far as the angle between the sources says."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_wsl.merging.method import MergeContext, MergeMethod, Scan, register
from lit_wsl.tensors.fusion import weighted_mean
from lit_wsl.tensors.gram import mean_cosine


class _GramScan(Scan):
    """Inner products of the task vectors with each other."""

    def __init__(self, sources: int) -> None:
        self._gram = torch.zeros(sources, sources, dtype=torch.float64)

    def update(self, stack: Tensor) -> None:
        """Add the inner products of one block, shape ``(T, n)``."""
        wide = stack.double()
        self._gram += wide @ wide.T

    def end_pass(self) -> bool:
        """True: a single pass is enough."""
        return True

    def result(self) -> Tensor:
        """The Gram matrix, shape ``(T, T)``, float64."""
        return self._gram


@register("model_stock")
@dataclass(frozen=True)
class ModelStock(MergeMethod):
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

    def scan_tensor(self, sources: int) -> Scan | None:
        """Inner products, per parameter."""
        return _GramScan(sources)

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The mean, shortened."""
        cosine, count = max(0.0, mean_cosine(context.statistics)), len(stack)
        ratio = count * cosine / (1.0 + (count - 1) * cosine)
        return weighted_mean(stack, torch.ones(count)).mul_(ratio)
