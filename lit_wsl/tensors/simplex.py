"""Parametrisations of merge coefficients: from what an optimiser moves to what task vectors are multiplied by."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

EDGE = 1e-6
"""How near an initial coefficient may come to an open bound, where its inverse is infinite."""
LEAST_SUM = 1e-8
"""Smallest sum that coefficients are divided by."""


def normalised(coefficients: Tensor) -> Tensor:
    """Coefficients over their sum along the last dimension; a sum below ``1e-8`` counts as that."""
    return coefficients / coefficients.sum(dim=-1, keepdim=True).clamp(min=LEAST_SUM)


def simplex_softmax_scaled(raw: Tensor, magnitude: Tensor) -> Tensor:
    """Shares of the softmax over the last dimension, times a magnitude that broadcasts against them."""
    return raw.softmax(dim=-1) * magnitude


class Parametrisation(ABC):
    """A map from free numbers, shape ``(*P, T)``, to coefficients of the same shape."""

    low: ClassVar[float] = float("-inf")
    high: ClassVar[float] = float("inf")
    """Bounds of the coefficients, reached or not."""

    @abstractmethod
    def coefficients(self, raw: Tensor) -> Tensor:
        """The coefficients; differentiable."""

    @abstractmethod
    def raw(self, coefficients: Tensor) -> Tensor:
        """Free numbers that give these coefficients, or those nearest to them."""


class ProjectedLambda(Parametrisation):
    """The free numbers are the coefficients; :meth:`project` brings them back into bounds after each update.

    Reference:
        AdaMerging, https://arxiv.org/abs/2310.02575, section 3 (its code clamps in the forward pass, where a
        coefficient on the wrong side of a bound has no gradient; projected gradient descent has one).
    """

    def coefficients(self, raw: Tensor) -> Tensor:
        """The same numbers."""
        return raw

    def raw(self, coefficients: Tensor) -> Tensor:
        """The same numbers."""
        return coefficients

    @staticmethod
    @torch.no_grad()
    def project(raw: Tensor, low: float, high: float) -> None:
        """Clamp in place."""
        raw.clamp_(low, high)


class SigmoidAlpha(Parametrisation):
    r"""Coefficients :math:`\sigma(\alpha)` in (0, 1)."""

    low, high = 0.0, 1.0

    def coefficients(self, raw: Tensor) -> Tensor:
        """The logistic function."""
        return raw.sigmoid()

    def raw(self, coefficients: Tensor) -> Tensor:
        """The logit, at least 1e-6 away from the bounds."""
        return coefficients.clamp(EDGE, 1.0 - EDGE).logit()


class TanhAlpha(Parametrisation):
    r"""Coefficients :math:`\tanh(\alpha)` in (-1, 1).

    Reference:
        SuperMerge, https://arxiv.org/abs/2412.10416, section 3.
    """

    low, high = -1.0, 1.0

    def coefficients(self, raw: Tensor) -> Tensor:
        """The hyperbolic tangent."""
        return raw.tanh()

    def raw(self, coefficients: Tensor) -> Tensor:
        """Its inverse, at least 1e-6 away from the bounds."""
        return coefficients.clamp(-1.0 + EDGE, 1.0 - EDGE).atanh()


class Softmax(Parametrisation):
    """Shares: no coefficient is negative and their sum over the sources is 1."""

    low, high = 0.0, 1.0

    def coefficients(self, raw: Tensor) -> Tensor:
        """The softmax over the last dimension."""
        return raw.softmax(dim=-1)

    def raw(self, coefficients: Tensor) -> Tensor:
        """Logarithms of the shares of the coefficients in their sum; none is below 1e-6."""
        return normalised(coefficients).clamp(min=EDGE).log()


PARAMETRISATIONS: dict[str, Parametrisation] = {
    "projected_lambda": ProjectedLambda(),
    "sigmoid_alpha": SigmoidAlpha(),
    "tanh_alpha": TanhAlpha(),
    "softmax": Softmax(),
    "simplex_softmax_scaled": Softmax(),
}
"""By name; the magnitude of ``simplex_softmax_scaled`` is a parameter beside the free numbers."""
