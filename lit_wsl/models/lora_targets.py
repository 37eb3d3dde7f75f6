"""Which layers of a model a specification adapts, with which rank, and how PEFT is told so."""

import re
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.models.lora_spec import LoraSpec
from lit_wsl.state.adapter_layers import module_targets, path_ends
from lit_wsl.state.adapters import by_pattern

_ATTENTION = re.compile("attn|attention", re.IGNORECASE)
_LINEAR = (nn.Linear, Conv1D)
_ALL_LINEAR = "all-linear"


def adapted_layers(model: nn.Module, spec: LoraSpec) -> dict[str, int]:
    """Full name of every adapted layer, in the order of the model, to the rank of its adapter.

    Args:
        model: A model without adapters.
        spec: A specification that is not empty.

    Raises:
        ConfigError: If a name or rank of ``spec`` has no layer to act on.
    """
    ranks = dict.fromkeys(_named_layers(model, spec), spec.rank)
    attention = [name for name in ranks if _in_attention(name)]
    ranks.update(dict.fromkeys(attention, spec.attention_rank))
    if spec.attn_lora_rank and not attention:
        raise ConfigError(
            f"attn_lora_rank {spec.attn_lora_rank}: `lora` names no layer inside an attention block of "
            f"{type(model).__name__}; use `rank`."
        )
    if spec.embedding_mode == "lora":
        ranks[_input_embedding(model, spec)] = spec.input_embedding_rank
    ranks = {name: by_pattern(spec.rank_pattern, name, rank) for name, rank in ranks.items()}
    layers = {name: ranks[name] for name, _ in model.named_modules() if ranks.get(name)}
    if not layers:
        raise ConfigError(
            f"`lora` adapts no layer of {type(model).__name__}: target_modules {spec.target_modules!r} without "
            f"exclude_modules {spec.exclude_modules!r} and without ranks of 0 leave none. "
            f"{did_you_mean(str(spec.target_modules), _last_components(model))}"
        )
    return layers


def peft_targets(layers: Iterable[str], model: nn.Module) -> list[str] | str:
    """``target_modules`` for PEFT that match exactly these layers: short ends of paths, else one pattern."""
    return module_targets(layers, (name for name, _ in model.named_modules()))


def _named_layers(model: nn.Module, spec: LoraSpec) -> list[str]:
    """Names that ``target_modules`` matches and ``exclude_modules`` does not."""
    targets = spec.target_modules
    if targets is None:
        matched = [name for name in _linear_layers(model) if _in_attention(name)]
    elif isinstance(targets, str) and targets.lower() == _ALL_LINEAR:
        matched = _all_but_output(model)
    elif isinstance(targets, str):
        try:
            matched = [name for name, _ in model.named_modules() if name and re.fullmatch(targets, name)]
        except re.error as error:
            raise ConfigError(f"target_modules {targets!r} is no regular expression: {error}.") from error
    else:
        _check_names(model, targets)
        matched = [name for name, _ in model.named_modules() if _ends_in(name, targets)]
    return [name for name in matched if not _ends_in(name, spec.exclude_modules)]


def _check_names(model: nn.Module, targets: list[str]) -> None:
    known = {end for name, _ in model.named_modules() if name for end in path_ends(name)}
    for target in targets:
        if target not in known:
            hint = did_you_mean(target.rpartition(".")[2], _last_components(model))
            raise ConfigError(f"target_modules: no layer {target!r} in {type(model).__name__}. {hint}")


def _input_embedding(model: Any, spec: LoraSpec) -> str:
    """Name of the input embedding."""
    try:
        embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    except NotImplementedError:
        embedding = None
    name = next((name for name, module in model.named_modules() if module is embedding), None)
    if name is None:
        raise ConfigError(f"embedding_mode lora: {type(model).__name__} has no input embedding; use `standard`.")
    if spec.input_embedding_rank and _ends_in(name, spec.exclude_modules):
        raise ConfigError(f"embedding_mode lora adapts {name!r}, which exclude_modules leaves out; drop one of them.")
    return name


def _linear_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if name and isinstance(module, _LINEAR)]


def _all_but_output(model: nn.Module) -> list[str]:
    """Every linear layer except the one that gives the logits of a language model, as PEFT has it."""
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return [name for name in _linear_layers(model) if model.get_submodule(name) is not output]


def _last_components(model: nn.Module) -> set[str]:
    return {name.rpartition(".")[2] for name in _linear_layers(model)}


def _in_attention(name: str) -> bool:
    return any(_ATTENTION.search(part) for part in name.split(".")[:-1])


def _ends_in(name: str, ends: Iterable[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)
