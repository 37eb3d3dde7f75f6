"""Interpolation between two task vectors."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.method import LinearMethod, register


@register("weighted_delta")
@dataclass(frozen=True)
class WeightedDelta(LinearMethod):
    r"""Interpolates linearly between two task vectors (for full models: between the parameters).

    The update is :math:`\Delta = \lambda \Delta_1 + (1 - \lambda) \Delta_2`; adapters may differ in rank and scale.

    Reference:
        WiSE-FT, https://arxiv.org/abs/2109.01903, section 3 (interpolation of weights, there with the zero-shot
        model as the other end). PEFT's ``linear`` combination mixes the factors instead, as ``weighted`` does.
    """

    needs_base: ClassVar[bool] = False
    least: ClassVar[int] = 2
    most: ClassVar[int | None] = 2
    is_symmetric: ClassVar[bool] = False

    lam: float = 0.5
    """Share of the first source, in [0, 1]; the second has the rest."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.lam <= 1.0:
            raise ConfigError(f"`0 <= lambda <= 1` must hold for {self.name!r}, got {self.lam}.")

    def coefficients(self, sources: int) -> Tensor:
        """``lambda`` and ``1 - lambda``."""
        return torch.tensor([self.lam, 1.0 - self.lam], dtype=torch.float64)
