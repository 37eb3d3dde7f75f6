"""Write PEFT adapter directories: the tensors under PEFT's names, and the configuration that gives them meaning."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_wsl.state.adapter_layers import rank_patterns
from lit_wsl.state.adapters import PREFIX
from lit_wsl.state.writer import write_tensors
from lit_wsl.tensors.lora import LoraFactors


def write_adapter(
    directory: Path, updates: Mapping[str, tuple[LoraFactors, bool]], *, base_model: str = "", task_type: str | None
) -> None:
    """Write a PEFT adapter directory whose scale is 1 everywhere.

    Args:
        directory: Existing directory.
        updates: Module path to its factors and whether the module is an embedding.
        base_model: Recorded as ``base_model_name_or_path``.
        task_type: Recorded as ``task_type``.
    """
    tensors: dict[str, Tensor] = {}
    for module, (factors, embedding) in updates.items():
        tensors.update(peft_factors(module, factors, embedding=embedding))
    write_tensors(directory / "adapter_model.safetensors", tensors)
    ranks = {module: factors.rank for module, (factors, _) in updates.items()}
    turned = any(f.transposed for f, embedding in updates.values() if not embedding)
    config = peft_config(ranks, sorted(updates), base_model=base_model, task_type=task_type, fan_in_fan_out=turned)
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def peft_config(
    ranks: Mapping[str, int], targets: list[str] | str, *, base_model: str, task_type: str | None, **settings: Any
) -> dict[str, Any]:
    """What ``adapter_config.json`` says of an adapter whose scale is 1 everywhere.

    Args:
        ranks: Every adapted module or parameter with its rank.
        targets: What ``target_modules`` says.
        base_model: Recorded as ``base_model_name_or_path``.
        task_type: Recorded as ``task_type``.
        settings: Other settings.
    """
    usual, unusual = rank_patterns(ranks)
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model or None,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": unusual,
        "alpha_pattern": unusual,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "fan_in_fan_out": False,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    } | settings


def peft_factors(module: str, factors: LoraFactors, *, embedding: bool) -> dict[str, Tensor]:
    """The tensors of one module under PEFT's names, the scale inside ``B``, float32."""
    A, B = factors.A.float(), factors.B.float() * factors.scale
    if embedding:
        return {f"{PREFIX}{module}.lora_embedding_A": A, f"{PREFIX}{module}.lora_embedding_B": B}
    if len(factors.shape) > 2:
        A = A.reshape(factors.rank, *factors.shape[1:])
        B = B.reshape(*B.shape, *[1] * (len(factors.shape) - 2))
    names = (f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight")
    return {names[0]: A.contiguous(), names[1]: B.contiguous()}
