"""Spherical interpolation between two models."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.gram import GramMethod
from lit_wsl.merging.method import register
from lit_wsl.tensors.sphere import arc


@register("slerp")
@dataclass(frozen=True)
class Slerp(GramMethod):
    r"""Interpolates between the weights of two models along the arc from one to the other.

    With :math:`\theta` the angle between the two, over each whole parameter, the merged weights are
    :math:`\frac{\sin((1-t)\theta)}{\sin\theta} \theta_1 + \frac{\sin(t\theta)}{\sin\theta} \theta_2`. Lengths are not
    normalised. A parameter that is zero in one model, or opposite, goes along the straight line.

    Variants: mergekit's first model is its ``base_model``. It takes the straight line beyond a cosine of 0.9995, which
    models tuned from one base often exceed: ``max_cosine`` 1 keeps to the arc. It also takes a zero parameter
    as if it were at a right angle, which gives :math:`\sin(t \pi / 2)` of the other instead of :math:`t`.

    Reference:
        Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
    """

    needs_base: ClassVar[bool] = False
    space: ClassVar[Literal["delta", "weight"]] = "weight"
    least: ClassVar[int] = 2
    most: ClassVar[int | None] = 2
    is_symmetric: ClassVar[bool] = False

    t: float = 0.5
    """Place on the arc, in [0, 1]: 0 is the first model, 1 the second."""
    max_cosine: float = 0.9995
    """Models of a larger cosine, either way, are interpolated on the straight line; in [0, 1]."""

    def __post_init__(self) -> None:
        for name, value in (("t", self.t), ("max_cosine", self.max_cosine)):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"`0 <= {name} <= 1` must hold for 'slerp', got {value}.")

    def mix(self, inner: Tensor) -> Tensor:
        """The point at ``t``."""
        return arc(inner, self.t, self.max_cosine)
