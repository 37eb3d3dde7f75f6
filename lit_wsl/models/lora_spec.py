"""What a low-rank adapter is: which layers, which rank, which form."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_wsl.errors import ConfigError, did_you_mean

_INITIALISATIONS = ("gaussian", "orthogonal", "pissa", "olora")
_PISSA_STEPS = re.compile(r"pissa_niter_[1-9]\d*")
_EMBEDDING_MODES = ("standard", "lora")


@dataclass(frozen=True)
class LoraSpec:
    """Which layers get a low-rank adapter, and its form."""

    rank: int = 8
    """Rank of every adapter without a rank of its own below, at least 0; 0 adapts nothing."""
    lora_alpha: float = 16.0
    """Numerator of the scaling ``lora_alpha / r`` by the rank ``r`` of the layer, above 0."""
    target_modules: list[str] | str | None = None
    """Names of the adapted layers, matched on the last path components; a string is a regular expression
    on the full path, or ``all-linear``. None takes every linear layer inside an attention block: one with
    ``attn`` or ``attention`` in the path above it."""
    attn_lora_rank: int | None = None
    """Rank of the named layers inside attention blocks, in place of ``rank``; 0 leaves them out."""
    embedding_mode: Literal["standard", "lora"] = "standard"
    """``lora`` puts an adapter on the input embedding."""
    embedding_rank: int | None = None
    """Rank of that adapter, in place of ``rank``; 0 leaves it out."""
    exclude_modules: list[str] = field(default_factory=lambda: ["pooler.dense"])
    """Ends of the paths of layers left out although ``target_modules`` names them; those absent do not matter.
    Mean pooling never reads BERT's pooler, so an adapter there would get no gradient."""
    dropout: float = 0.0
    """Dropout on the adapter's input, in [0, 1); an embedding's input, which is ids, has none."""
    use_rslora: bool = False
    """Scale by ``lora_alpha / sqrt(r)`` instead of ``lora_alpha / r``."""
    use_dora: bool = False
    """Learn the magnitude of each output separately (DoRA)."""
    init_lora_weights: bool | str = True
    """True starts at the base model's function, so do ``gaussian`` and ``orthogonal``; False does not. ``pissa``,
    ``pissa_niter_N`` and ``olora`` start at it too, but move part of the base weights of linear layers into the
    adapter: a checkpoint can hold that, a PEFT directory cannot."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of single layers, in place of all of the above: a regular expression on the end of the path to the rank,
    as in PEFT."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """The same for ``lora_alpha``."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: If a field is out of range.
        """
        self._check_ranks()
        if not 0 < self.lora_alpha < math.inf:
            raise ConfigError(f"`0 < lora_alpha < inf` must hold, got {self.lora_alpha}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"`0 <= dropout < 1` must hold, got {self.dropout}.")
        if self.target_modules is not None and not self.target_modules:
            raise ConfigError("`target_modules` must name at least one layer, got none; leave it out for attention.")
        name = self.init_lora_weights
        if not isinstance(name, bool) and name not in _INITIALISATIONS and not _PISSA_STEPS.fullmatch(name):
            raise ConfigError(
                f"init_lora_weights must be true, false, {', '.join(_INITIALISATIONS)} or pissa_niter_N, got {name!r}."
            )

    def _check_ranks(self) -> None:
        for name in ("rank", "attn_lora_rank", "embedding_rank"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"`{name} >= 0` must hold, got {value}.")
        for pattern, rank in self.rank_pattern.items():
            if rank < 1:
                raise ConfigError(f"`rank_pattern > 0` must hold, got {rank} for {pattern!r}; use `exclude_modules`.")
        for pattern, alpha in self.alpha_pattern.items():
            if not 0 < alpha < math.inf:
                raise ConfigError(f"`0 < alpha_pattern < inf` must hold, got {alpha} for {pattern!r}.")
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"Pattern {pattern!r} is no regular expression: {error}.") from error
        if self.embedding_mode not in _EMBEDDING_MODES:
            hint = did_you_mean(str(self.embedding_mode), _EMBEDDING_MODES)
            raise ConfigError(f"Unknown embedding_mode {self.embedding_mode!r}. {hint}")
        if self.embedding_mode == "standard" and self.embedding_rank:
            raise ConfigError(
                f"embedding_rank {self.embedding_rank} adapts nothing under `embedding_mode: standard`; "
                "set `embedding_mode: lora`, or leave the rank out."
            )

    @property
    def attention_rank(self) -> int:
        """Rank of the named layers inside attention blocks, 0 for none."""
        return self.rank if self.attn_lora_rank is None else self.attn_lora_rank

    @property
    def input_embedding_rank(self) -> int:
        """Rank of the adapter on the input embedding, 0 for none."""
        if self.embedding_mode == "standard":
            return 0
        return self.rank if self.embedding_rank is None else self.embedding_rank

    @property
    def is_empty(self) -> bool:
        """Whether no layer of any model is adapted: the standard model."""
        others = 0 if self.target_modules is None else self.rank  # by default only attention is named
        return not (self.attention_rank or others or self.input_embedding_rank)

    @property
    def changes_base(self) -> bool:
        """Whether the initialisation moves part of the base weights into the adapter."""
        return str(self.init_lora_weights).startswith(("pissa", "olora"))


def active_spec(lora: LoraSpec | Mapping[str, Any] | None) -> LoraSpec | None:
    """The specification, also from a plain mapping as a checkpoint holds it; None if it adapts nothing.

    Raises:
        ConfigError: If a field is out of range.
    """
    spec = LoraSpec(**lora) if isinstance(lora, Mapping) else lora
    return None if spec is None or spec.is_empty else spec
