"""EMR: the unified task vector, of elected signs and largest magnitudes."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lit_wsl.merging.method import MergeContext, MergeMethod, register
from lit_wsl.tensors.consensus import elect_sign


@register("emr")
@dataclass(frozen=True)
class Emr(MergeMethod):
    r"""Elects a sign per entry and gives it the largest magnitude among the sources that have it.

    The update is :math:`\lambda \, \gamma \odot \max_t \{|\Delta_t| : \operatorname{sign} \Delta_t = \gamma\}` with
    :math:`\gamma` the sign of the sum: the unified vector of EMR-Merging. Its masks and rescalers, one for each
    task, are left out, since one model cannot have several; what the paper measures needs them.

    Variants: the authors' code and FusionBench elect minus where an entry balances exactly; here it is dropped.

    Reference:
        EMR-Merging, https://arxiv.org/abs/2405.17461 (elect).
    """

    caution: ClassVar[str] = (
        "`emr` writes the unified vector alone; the masks and rescalers of EMR-Merging are per task and cannot be "
        "used in one model."
    )

    lam: float = 1.0
    """Factor on the unified vector; any finite number."""

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The unified vector, times lambda."""
        sign = elect_sign(stack)
        return (stack * sign).amax(0).clamp_(min=0).mul_(sign).mul_(self.lam)
