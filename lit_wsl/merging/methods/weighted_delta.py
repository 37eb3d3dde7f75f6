"""Interpolation between task vectors."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.method import LinearMethod, register
from lit_wsl.merging.shares import check_positive

SIMPLEX_TOLERANCE = 1e-6
"""How far the sum of shares may be from 1."""


@register("weighted_delta")
@dataclass(frozen=True)
class WeightedDelta(LinearMethod):
    r"""Interpolates linearly between task vectors (for full models: between the parameters).

    The update is :math:`\Delta = \lambda \Delta_1 + (1 - \lambda) \Delta_2`; adapters may differ in rank and scale.
    With ``weights``, which must lie on the simplex, it is :math:`\sum_t w_t \Delta_t` of any number of sources.

    Reference:
        WiSE-FT, https://arxiv.org/abs/2109.01903, section 3 (interpolation of weights, there with the zero-shot
        model as the other end). PEFT's ``linear`` combination mixes the factors instead, as ``weighted`` does.
    """

    needs_base: ClassVar[bool] = False
    least: ClassVar[int] = 2
    is_symmetric: ClassVar[bool] = False
    per_source: ClassVar[tuple[str, ...]] = ("weights",)

    lam: float = 0.5
    """Share of the first of two sources, in [0, 1]; the second has the rest."""
    weights: tuple[float, ...] | None = None
    """Shares of all sources, at least 0 and of sum 1, in the place of ``lambda``."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam <= 1.0:
            raise ConfigError(f"`0 <= lambda <= 1` must hold for {self.name!r}, got {self.lam}.")
        check_positive(self.name, "weights", self.weights)
        if self.weights is not None and abs(math.fsum(self.weights) - 1.0) > SIMPLEX_TOLERANCE:
            raise ConfigError(
                f"`weights` of {self.name!r} must sum to 1, got {math.fsum(self.weights)}; "
                "`weighted_delta_n` takes any weights."
            )

    def check_sources(self, count: int) -> None:
        """Refuse a number of sources that the shares are not for.

        Raises:
            ConfigError: If there are more than two without weights, or not one weight for each.
        """
        if self.weights is None and count != 2:
            raise ConfigError(f"Method {self.name!r} merges exactly 2 sources, got {count}; give more their `weights`.")
        super().check_sources(count)

    def coefficients(self, sources: int) -> Tensor:
        """The weights, or ``lambda`` and ``1 - lambda``."""
        return torch.tensor(self.weights or (self.lam, 1.0 - self.lam), dtype=torch.float64)
