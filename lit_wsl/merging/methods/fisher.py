"""Fisher merging: every entry goes to the sources that depend on it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.method import MergeContext, MergeMethod, register
from lit_wsl.merging.shares import check_positive, shares_of


@register("fisher")
@dataclass(frozen=True)
class Fisher(MergeMethod):
    r"""Averages every entry with the Fisher information of each source as its weight.

    :math:`\Delta = \sum_t w_t F_t \Delta_t / \sum_t w_t F_t` in each entry, where :math:`F_t` is the diagonal of the
    Fisher information, gathered on the data of the source, and no less than ``floor``. The base cancels out, so task
    vectors may stand for the weights. Parameters without gathered information take the mean, weighted by :math:`w_t`.

    Variants: in a merge of models the information of each source is divided by its root mean square over the model:
    one that has learned its data well has next to no gradients there, and would have next to no say. The authors'
    code divides by the norm. Its floor of 1e-6 holds before that, and by default for the first model alone. Where no
    source has more than the floor the entry is the weighted mean; with ``floor: 0`` that holds where there is none.

    Reference:
        Fisher merging, https://arxiv.org/abs/2111.09832, section 3.
    """

    needs_base: ClassVar[bool] = False
    data: ClassVar[Literal["none", "fisher", "gram"]] = "fisher"
    per_source: ClassVar[tuple[str, ...]] = ("weights",)

    weights: tuple[float, ...] | None = None
    """One weight per source, in their order; equal by default."""
    floor: float = 1e-6
    """Least information of an entry, not negative; in a merge of models, as a share of the root mean square."""

    def __post_init__(self) -> None:
        check_positive(self.name, "weights", self.weights)
        if self.floor < 0.0:
            raise ConfigError(f"`floor >= 0` must hold for 'fisher', got {self.floor}.")

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Mean of the task vectors, weighted entry by entry."""
        shares = shares_of(self.weights, len(stack)).to(stack.dtype).unsqueeze(1)
        if context.data is None:
            return (shares * stack).sum(0)
        parts = shares * context.data.clamp(min=self.floor)
        total = parts.sum(0)
        return (parts.div_(total).where(total > 0, shares) * stack).sum(0)
