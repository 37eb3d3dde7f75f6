"""Weighted mean of the sources."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.method import LinearMethod, register
from lit_wsl.merging.shares import shares_of


@register("linear")
@dataclass(frozen=True)
class Linear(LinearMethod):
    r"""Averages the weights of the models, each with its own weight.

    The merged weights are :math:`\theta = \sum_t w_t \theta_t / \sum_t w_t`. The base cancels out, so the same mean
    is taken of task vectors, and adapters stay adapters. Weights may be negative.

    Variants: with ``normalize: false`` the division is left out, as in mergekit, which scales the whole model, base
    included, unless the weights sum to one; to scale the updates alone take ``weighted_delta_n``. Weights that sum to
    zero give infinities in mergekit, and are refused here.

    Reference:
        Model soups, https://arxiv.org/abs/2203.05482, section 2.
    """

    needs_base: ClassVar[bool] = False
    per_source: ClassVar[tuple[str, ...]] = ("weights",)

    weights: tuple[float, ...] | None = None
    """One weight per source, in their order; equal by default."""
    normalize: bool = True
    """Divide by the sum of the weights."""

    def __post_init__(self) -> None:
        if self.normalize and self.weights is not None and abs(math.fsum(self.weights)) < 1e-12:
            raise ConfigError(f"`weights` of 'linear' must not sum to zero, got {list(self.weights)}.")

    def coefficients(self, sources: int) -> Tensor:
        """The weights, divided by their sum if asked for."""
        if self.normalize:
            return shares_of(self.weights, sources)
        return torch.tensor(self.weights or (1.0,) * sources, dtype=torch.float64)

    def base_coefficient(self, sources: int) -> float:
        """What weights that do not sum to one make of the base."""
        return 0.0 if self.normalize else float(self.coefficients(sources).sum()) - 1.0
