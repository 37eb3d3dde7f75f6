"""Consensus merging: keep the entries that the TALL masks of enough tasks want."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.method import MergeContext, MergeMethod, register
from lit_wsl.tensors.fusion import weighted_sum
from lit_wsl.tensors.masks import tall_masks


@register("tall_mask", "consensus")
@dataclass(frozen=True)
class TallMask(MergeMethod):
    r"""Adds the task vectors up and drops the entries that fewer than so many tasks want.

    A task wants an entry if :math:`|\Delta_t| > \sigma |\Delta_\Sigma - \Delta_t|` with :math:`\Delta_\Sigma` the sum
    of all task vectors and :math:`\sigma` the ``strictness`` (lambda in the paper): the TALL mask. The update is the
    mean, or the sum, of the task vectors times lambda at the entries that at least ``tasks`` tasks want, and zero
    elsewhere. With 1 it drops what no task wants, with 2 also what one task alone does.

    Variants: this is Consensus task arithmetic, a single model; localising, which gives each task its own mask, is
    not a merge. The authors choose the strictness of each task on validation data; here all have one. Theirs is
    ``combine: sum`` with the scaling coefficient as lambda.

    Reference:
        TALL masks and Consensus Merging, https://arxiv.org/abs/2405.07813, and its code,
        https://github.com/nik-dim/tall_masks.
    """

    least: ClassVar[int] = 2
    keeps_identical: ClassVar[bool] = False

    strictness: float = 0.4
    """Factor in the mask, at least 0; the larger, the fewer entries."""
    tasks: int = 2
    """Fewest tasks that must want an entry, from 1 to the number of sources."""
    combine: Literal["mean", "sum"] = "mean"
    """Whether the sum of the task vectors is divided by their number."""
    lam: float = 1.0
    """Factor on the merged update; any finite number."""

    def __post_init__(self) -> None:
        if self.strictness < 0.0:
            raise ConfigError(f"`strictness >= 0` must hold for 'tall_mask', got {self.strictness}.")
        if self.tasks < 1:
            raise ConfigError(f"`tasks >= 1` must hold for 'tall_mask', got {self.tasks}.")

    def check_sources(self, count: int) -> None:
        """Refuse to ask for more tasks than there are sources.

        Raises:
            ConfigError: If nothing could be kept, or there are too few sources.
        """
        super().check_sources(count)
        if self.tasks > count:
            raise ConfigError(f"'tall_mask' wants {self.tasks} tasks to agree, got {count} sources; lower `tasks`.")

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The combination of the task vectors where enough tasks want it, times lambda."""
        total = weighted_sum(stack, torch.ones(len(stack)))
        wanted = tall_masks(stack, total, self.strictness).sum(0) >= self.tasks
        return total.mul_(wanted).mul_(self.lam / len(stack) if self.combine == "mean" else self.lam)
