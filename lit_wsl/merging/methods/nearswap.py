"""One model moved towards another where they are near."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.method import MergeContext, MergeMethod, register


@register("nearswap")
@dataclass(frozen=True)
class NearSwap(MergeMethod):
    r"""Moves every entry of the first source towards the second, by no more than t.

    Where the two differ by t or less the entry becomes the second's; elsewhere it moves by t:
    :math:`\theta = \operatorname{clamp}(\theta_2, \theta_1 - t, \theta_1 + t)`. The base cancels out, so entries of
    task vectors are treated alike.

    Variants: mergekit writes the same as an interpolation by :math:`\min(1, t / |\theta_1 - \theta_2|)`, and calls
    the first source its ``base_model``.

    Reference:
        QuartetAnemoi, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001, model card (t = 0.0001).
    """

    needs_base: ClassVar[bool] = False
    least: ClassVar[int] = 2
    most: ClassVar[int | None] = 2
    is_symmetric: ClassVar[bool] = False
    is_homogeneous: ClassVar[bool] = False

    t: float = 1e-4
    """Farthest that an entry moves; positive."""

    def __post_init__(self) -> None:
        if not self.t > 0.0:
            raise ConfigError(f"`t > 0` must hold for 'nearswap', got {self.t}.")

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The second source, held within ``t`` of the first."""
        first, second = stack
        return torch.clamp(second, min=first - self.t, max=first + self.t)
