"""Reinforced agent merging: changes of one source alone stay whole, shared ones are averaged."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.method import MergeContext, MergeMethod, Scan, register
from lit_wsl.tensors.fusion import agreeing_mean


class _SharingScan(Scan):
    """How many changed entries of each source are its own, and how many are shared."""

    def __init__(self, sources: int, epsilon: float) -> None:
        self._epsilon = epsilon
        self._own = torch.zeros(sources, dtype=torch.int64)
        self._shared = torch.zeros(sources, dtype=torch.int64)

    def update(self, stack: Tensor) -> None:
        """Count the changes of one block, shape ``(T, n)``."""
        changed = stack.abs() > self._epsilon
        is_shared = changed.sum(0) > 1
        self._own += (changed & ~is_shared).sum(1)
        self._shared += (changed & is_shared).sum(1)

    def end_pass(self) -> bool:
        """True: a single pass is enough."""
        return True

    def result(self) -> Tensor:
        """Shared changes over own changes of each source, shape ``(T,)``, float64; own counts as at least one."""
        return self._shared.double() / self._own.clamp(min=1)


@register("ram")
@dataclass(frozen=True)
class Ram(MergeMethod):
    r"""Averages each entry over the sources that change it; what one source alone changes stays whole, or grows.

    A source changes an entry if its magnitude there is above ``epsilon``; lesser changes are dropped. What source t
    alone changes is multiplied by :math:`1 + r \min(\rho_t, \alpha)`, with :math:`\rho_t` the number of its shared
    changes over that of its own in the parameter, to make up for what averaging takes from the shared ones.

    Variants: r = 0, the default, is RAM; r = 0.1 with alpha = 0.2 is mergekit's ``ramplus_tl``, the variant of RAM+
    that counts in each parameter by itself, as here.

    Reference:
        Reinforced Agent Merging, https://arxiv.org/abs/2601.13572; formulas of mergekit's ``ram`` and
        ``ramplus_tl``.
    """

    is_homogeneous: ClassVar[bool] = False
    keeps_identical: ClassVar[bool] = False

    epsilon: float = 1e-5
    """Largest magnitude that is no change, at least 0."""
    r: float = 0.0
    """Strength of the growth of own changes, at least 0."""
    alpha: float = 0.2
    """Largest ratio of shared to own changes that counts, at least 0."""

    def __post_init__(self) -> None:
        for name in ("epsilon", "r", "alpha"):
            if getattr(self, name) < 0.0:
                raise ConfigError(f"`{name} >= 0` must hold for 'ram', got {getattr(self, name)}.")

    def scan_tensor(self, sources: int) -> Scan | None:
        """Own and shared changes per parameter, where they matter."""
        return _SharingScan(sources, self.epsilon) if self.r > 0.0 else None

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Mean over the sources that change an entry, own changes grown."""
        changed = stack.abs() > self.epsilon
        mean = agreeing_mean(stack, changed, torch.ones(len(stack)))
        if self.r == 0.0:
            return mean
        growth = 1.0 + self.r * context.statistics.clamp(max=self.alpha)
        own = changed & (changed.sum(0) == 1)
        return mean.mul_(torch.where(own, growth.to(stack).unsqueeze(-1), 1.0).amax(0))
