"""The PEFT directory of a backbone's adapters, whatever library trained them.

Reference:
    https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_wsl.errors import CheckpointError
from lit_wsl.models.adapter_base import check_base
from lit_wsl.models.adapter_site import Site
from lit_wsl.models.adapter_source import WHOLE, AdapterSource, base_tensors, read_adapters
from lit_wsl.models.architecture import parameter_shapes
from lit_wsl.models.checkpoint import Checkpoint
from lit_wsl.models.export_plan import Plan, Planned, Request, keep, recast, with_head
from lit_wsl.models.lora_targets import peft_targets
from lit_wsl.state.adapter_layers import rank_patterns
from lit_wsl.state.adapters import PREFIX, Adapter

_CAUSAL = ("ForCausalLM", "LMHeadModel")


def plan_adapter(checkpoint: Checkpoint, request: Request) -> Plan:
    """The adapters as one PEFT adapter, with the scale and rank of every layer.

    Raises:
        CheckpointError: If the checkpoint keeps no adapters, their base is unknown or another, or PEFT cannot
            express them.
    """
    source = read_adapters(checkpoint, request.backbone)
    base_name = _base_name(checkpoint, request.base)
    base = check_base(
        base_tensors(source),
        source.model,
        parameter_shapes(source.model),
        base_name,
        where=f"{source.where}: its adapters",
        remedy=f"{WHOLE} and use that as the base",
    )
    made = {name: Site(name, layer, source) for name, layer in source.layers.items()}
    _check_expressible(source.where, made)
    tensors: dict[str, Planned] = {}
    shifted = any(site.shifted for site in made.values())
    for site in made.values():
        tensors |= site.tensors(shifted=shifted)
    tensors |= dict(_copied(source))
    config = _config(source, made, base_name)
    plan = Plan(
        recast(tensors, request.dtype),
        stem="adapter_model",
        sharded=False,
        texts={"adapter_config.json": json.dumps(config, indent=2, sort_keys=True)},
        read_from=base.files(),
        check=lambda directory: _check_reads(directory, made),
    )
    outside = {key: t for key, t in source.state.items() if not key.startswith(source.backbone.prefix)}
    return with_head(plan, checkpoint, outside, request.dtype)


def _base_name(checkpoint: Checkpoint, base: str | None) -> str:
    spec = base if base is not None else checkpoint.hyper_parameters().get("model")
    if isinstance(spec, str) and spec:
        return spec
    what = "started from random weights" if isinstance(spec, Mapping) else "does not say what base it started from"
    raise CheckpointError(f"{checkpoint.path} {what}; pass `--base DIR`, or {WHOLE} and use that as the base.")


def _check_expressible(where: str, made: Mapping[str, Site]) -> None:
    """Refuse what one PEFT configuration cannot say of all layers at once."""
    sites = list(made.values())
    plain = [site.name for site in sites if not site.layer.magnitude]
    if plain and len(plain) < len(sites):
        raise CheckpointError(f"{where}: PEFT has DoRA on all layers or none, and {plain[0]} has none; {WHOLE}.")
    embeddings = [site.name for site in sites if site.embedding]
    if embeddings and any(site.shifted for site in sites):
        raise CheckpointError(f"{where}: PEFT has no `lora_bias` beside the embedding {embeddings[0]}; {WHOLE}.")
    unknown = [site.name for site in sites if site.layer.transposed and not (site.embedding or site.turned)]
    if unknown:
        raise CheckpointError(f"{where}: {unknown[0]} is stored the other way round than PEFT expects; {WHOLE}.")


def _copied(source: AdapterSource) -> Iterator[tuple[str, Planned]]:
    """The layers that were trained whole."""
    for name in source.copies:
        inside = f"{source.backbone.prefix}{name}."
        for key, tensor in source.state.items():
            if key.startswith(inside):
                yield f"{PREFIX}{key.removeprefix(source.backbone.prefix)}", keep(tensor)


def _config(source: AdapterSource, made: Mapping[str, Site], base_name: str) -> dict[str, Any]:
    usual, ranks = rank_patterns({name: site.rank for name, site in made.items()})
    alphas = {name: _whole(site.scale * site.rank) for name, site in made.items()}
    alpha = max(alphas.values(), key=list(alphas.values()).count)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if type(source.model).__name__.endswith(_CAUSAL) else None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": usual,
        "rank_pattern": ranks,
        "lora_alpha": alpha,
        "alpha_pattern": {f"^{re.escape(name)}": value for name, value in alphas.items() if value != alpha},
        "target_modules": peft_targets(made, source.model),
        "modules_to_save": sorted(source.copies) or None,
        "lora_dropout": 0.0,
        "fan_in_fan_out": any(site.turned for site in made.values()),
        "bias": "none",
        "lora_bias": any(site.shifted for site in made.values()),
        "use_rslora": False,
        "use_dora": any(site.layer.magnitude for site in made.values()),
        "init_lora_weights": True,
    }


def _whole(value: float) -> float | int:
    return round(value) if abs(value - round(value)) < 1e-9 * abs(value) else value


def _check_reads(directory: Path, made: Mapping[str, Site]) -> None:
    """Read the directory as a merge does, and compare the scale of every layer."""
    adapter = Adapter(directory)
    wrong = [name for name, site in made.items() if abs(adapter.config.scale(name) - site.scale) > 1e-9 * site.scale]
    if wrong:
        raise CheckpointError(f"{directory}: {wrong[0]} has another scale than in the checkpoint; {WHOLE}.")
