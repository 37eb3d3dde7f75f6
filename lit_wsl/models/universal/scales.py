"""How strongly the factors of a bare state dict count, which the state dict itself does not say."""

import math
from dataclasses import replace

from lit_wsl.errors import CheckpointError
from lit_wsl.models.lora_spec import LoraSpec
from lit_wsl.models.universal.dialects import ScaleRule
from lit_wsl.state.adapters import AdapterConfig

Scale = LoraSpec | AdapterConfig | float
"""How strongly the factors of a bare state dict count: the settings they were trained with, or the scale itself."""


def scale_rule(lora: Scale | None) -> ScaleRule:
    """Scale of every adapter under the settings given; without settings the rule refuses any adapter."""
    if isinstance(lora, LoraSpec):
        return lambda name, rank: lora.lora_alpha / (math.sqrt(rank) if lora.use_rslora else rank)
    if isinstance(lora, AdapterConfig):
        return lambda name, rank: _configured_scale(lora, name, rank)
    if lora is not None:
        return lambda name, rank: float(lora)

    def unknown(name: str, rank: int) -> float:
        raise CheckpointError(
            f"{name} has LoRA factors of rank {rank} whose scale the state dict does not say; pass "
            "`lora=LoraSpec(...)` to `lit_wsl.get_merged_state_dict` or `lit_wsl.load_universal`."
        )

    return unknown


def _configured_scale(config: AdapterConfig, name: str, rank: int) -> float:
    """Scale of a layer by its configuration, whose rank must be that of the factors."""
    per_alpha = replace(config, lora_alpha=1.0, alpha_pattern={}).scale(name)
    expected = rank ** (-0.5 if config.use_rslora else -1.0)
    if not math.isclose(per_alpha, expected):
        raise CheckpointError(
            f"{name} has LoRA factors of rank {rank}, but the configuration gives it another rank, so its scale is "
            "unknown; pass the configuration that the adapter was trained with."
        )
    return config.scale(name)
