"""Spherical interpolation between two task vectors, by weights."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lit_wsl.merging.gram import GramMean
from lit_wsl.merging.method import register
from lit_wsl.tensors.sphere import arc


@register("nuslerp")
@dataclass(frozen=True)
class NuSlerp(GramMean):
    r"""Interpolates between two task vectors along the arc from one to the other, by their weights.

    The place on the arc is :math:`t = w_2 / (w_1 + w_2)`, the angle that of each whole parameter's task vectors, and
    the formula that of ``slerp``, with the straight line for parallel, opposite and zero task vectors alone.

    Variants: mergekit with a ``base_model`` and ``nuslerp_flatten``. Without a base it interpolates the weights, which
    ``slerp`` does with ``max_cosine`` 1; angles row by row (``nuslerp_flatten: false``) are not offered. It takes a
    zero task vector as if it were at a right angle, and weights that sum to zero as equal; these are refused here,
    like negative ones.

    Reference:
        Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
    """

    least: ClassVar[int] = 2
    most: ClassVar[int | None] = 2

    def mix(self, inner: Tensor) -> Tensor:
        """The point at the second source's share."""
        return arc(inner, float(self.shares(2)[1]))
