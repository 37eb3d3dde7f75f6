"""Weighted sum of adapters cut to the rank of one."""

from collections.abc import Sequence
from dataclasses import dataclass

from lit_wsl.errors import ConfigError
from lit_wsl.merging.method import register
from lit_wsl.merging.methods.lora_cat import LoraCat
from lit_wsl.tensors.lora import LoraFactors
from lit_wsl.tensors.lowrank import compress


@register("lora_svd")
@dataclass(frozen=True)
class LoraSvd(LoraCat):
    r"""Adds weighted adapters up and keeps the best approximation of a given rank.

    The update is the truncated singular value decomposition of :math:`\sum_t w_t s_t B_t A_t`, found from small
    matrices without forming the dense sum. Full models have no factors: their task vectors are added up and nothing
    is cut.

    Variants: this is PEFT's ``add_weighted_adapter`` with ``combination_type: svd``, which decomposes the dense sum
    and has the same fault with rsLoRA and DoRA as for ``lora_cat``. PEFT's rank is that of the largest adapter, here
    that of the largest at this parameter, where patterns make ranks differ. ``svd_clamp`` is left out.
    """

    rank: int | None = None
    """Largest rank of the result; the largest rank of the sources by default."""

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"`rank >= 1` must hold for 'lora_svd', got {self.rank}.")

    def merge_factors(self, factors: Sequence[LoraFactors]) -> list[LoraFactors]:
        """One pair of factors, the best of that rank."""
        rank = self.rank or max(f.rank for f in factors)
        return [compress(super().merge_factors(factors), rank)[0]]
