"""LoRA through PEFT: one specification, injected into any model, saved as a PEFT directory.

Reference:
    LoRA, https://arxiv.org/abs/2106.09685; rsLoRA, https://arxiv.org/abs/2312.03732;
    DoRA, https://arxiv.org/abs/2402.09353; PiSSA, https://arxiv.org/abs/2404.02948;
    OLoRA, https://arxiv.org/abs/2406.01775.
"""

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.models.adapter_base import check_live_base
from lit_wsl.models.lora_spec import LoraSpec as LoraSpec
from lit_wsl.models.lora_spec import active_spec as active_spec
from lit_wsl.models.lora_targets import adapted_layers, peft_targets
from lit_wsl.models.sharded import gathered
from lit_wsl.state.adapter_layers import rank_patterns
from lit_wsl.state.adapters import HEAD_FILE, PREFIX, Adapter
from lit_wsl.state.publish import published_directory
from lit_wsl.state.writer import write_tensors

_ADAPTER = "default"


def inject_lora(model: nn.Module, spec: LoraSpec) -> None:
    """Freeze ``model`` and put trainable adapters into the layers that ``spec`` names, in place.

    An empty specification leaves the model as it is, trainable.

    Raises:
        ConfigError: If ``spec`` names what the model does not have, a layer that can have no such adapter, or an
            embedding that is tied.
    """
    if spec.is_empty:
        return
    layers = adapted_layers(model, spec)
    _check_initialisation(model, spec, layers)
    _check_ties(model, layers)
    config = _peft_config(model, spec, layers)
    model.requires_grad_(False)
    try:
        with warnings.catch_warnings():
            # What matters of the first is refused above; the second is set for the layers at hand.
            warnings.filterwarnings("ignore", message=r"Model has `tie_word_embeddings=True`")
            warnings.filterwarnings("ignore", message=r"fan_in_fan_out is set to")
            inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    except ValueError as error:
        raise ConfigError(
            f"target_modules {spec.target_modules!r} do not fit {type(model).__name__}: {error}"
        ) from error


def load_adapter(model: nn.Module, spec: LoraSpec, directory: Path) -> None:
    """Put the trained factors of a PEFT directory into the adapters of ``model``, in place.

    Tensors that the directory holds whole are not looked at.

    Args:
        model: A model that went through ``inject_lora``.
        spec: What it was injected with.
        directory: What :func:`save_adapter` or PEFT wrote.

    Raises:
        CheckpointError: If the directory is no adapter, or of another form than ``spec``.
    """
    adapter = Adapter(Path(directory))
    factors = [key for key in adapter.state.keys() if ".lora_" in key]
    state = {key.removeprefix(PREFIX): adapter.state.read(key) for key in factors}
    _check_form(model, spec, adapter)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    differing = sorted(set(expected) ^ set(state)) or [k for k in state if state[k].shape != expected[k].shape]
    if differing:
        raise CheckpointError(f"{directory} does not fit the `lora` settings at {differing[0]!r}; make them agree.")
    set_peft_model_state_dict(model, state)


def _check_form(model: nn.Module, spec: LoraSpec, adapter: Adapter) -> None:
    """Refuse an adapter that scales a layer otherwise, or is of another kind."""
    config = adapter.config
    scalings = {name: m.scaling[_ADAPTER] for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    differing = [name for name, scaling in scalings.items() if config.scale(name) != scaling]
    if differing or (config.use_rslora, config.use_dora) != (spec.use_rslora, spec.use_dora):
        name = next(iter(differing or scalings))
        raise CheckpointError(
            f"{adapter.directory} has rank {config.r}, lora_alpha {config.lora_alpha:g}, rsLoRA {config.use_rslora}, "
            f"DoRA {config.use_dora} and scales {name!r} by {config.scale(name):g}; the `lora` settings scale it by "
            f"{scalings[name]:g}, rsLoRA {spec.use_rslora}, DoRA {spec.use_dora}; make them agree."
        )


def check_saveable(spec: LoraSpec) -> None:
    """Refuse to save adapters whose initialisation changed the base weights.

    Raises:
        CheckpointError: If it did.
    """
    if spec.changes_base:
        raise CheckpointError(
            f"The factors of init_lora_weights {spec.init_lora_weights!r} fit no unchanged base, so no adapter can be "
            "saved; keep a checkpoint and run `lit-wsl export CKPT --format hf`."
        )


def save_adapter(
    model: nn.Module,
    spec: LoraSpec,
    directory: Path,
    base_model: str,
    head: Mapping[str, Tensor] | None = None,
    head_metadata: Mapping[str, str] | None = None,
    *,
    unread: tuple[str, ...] = (),
    write: bool = True,
) -> None:
    """Write the adapters of ``model`` as a PEFT directory, published whole.

    Where the weights are sharded every process must call it.

    Args:
        model: A model that went through ``inject_lora``.
        spec: What it was injected with.
        directory: Gets ``adapter_config.json`` and ``adapter_model.safetensors``; an earlier one is replaced.
        base_model: Where the base model is, written to ``base_model_name_or_path``; nothing is compared with an
            empty one.
        head: Tensors of a task head, written to ``head.safetensors`` beside the adapters: the base model has
            no place for them, so neither PEFT nor a merge of backbones must meet them among the adapters.
        head_metadata: Metadata of that file.
        unread: Beginnings of the names of layers that no output depends on, so that the base may have others there.
        write: Whether this process writes, or only contributes its shards.

    Raises:
        CheckpointError: If the weights under the adapters are not those of the base, or the directory cannot be
            written or holds something else.
    """
    check_saveable(spec)
    if base_model:
        check_live_base(model, base_model, unread)
    # The base of an adapted embedding is no part of the adapter, though PEFT would add it.
    state = gathered(get_peft_model_state_dict(model, save_embedding_layers=False), keep=write)
    head = None if head is None else gathered(head, keep=write)
    if not write:
        return
    factors = {f"{PREFIX}{name}": tensor for name, tensor in state.items()}
    with published_directory(Path(directory), overwrite=True) as scratch:
        write_tensors(scratch / "adapter_model.safetensors", factors)
        (scratch / "adapter_config.json").write_text(_config_json(model, base_model), encoding="utf-8")
        if head is not None:
            write_tensors(scratch / HEAD_FILE, head, head_metadata)


def _peft_config(model: nn.Module, spec: LoraSpec, layers: Mapping[str, int]) -> LoraConfig:
    usual, patterns = rank_patterns(layers)
    return LoraConfig(
        r=usual,
        rank_pattern=patterns,
        lora_alpha=spec.lora_alpha,
        alpha_pattern=dict(spec.alpha_pattern),
        target_modules=peft_targets(layers, model),
        lora_dropout=spec.dropout,
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
        init_lora_weights=spec.init_lora_weights,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in layers),
    )


def _config_json(model: Any, base_model: str) -> str:
    """The configuration as PEFT writes it, with sorted keys and sets so that equal runs give equal bytes."""
    config = copy.deepcopy(model.peft_config[_ADAPTER])
    config.base_model_name_or_path = base_model
    config.inference_mode = True
    # PEFT leaves here what the last layer needed.
    adapted = [module for module in model.modules() if isinstance(module, LoraLayer)]
    config.fan_in_fan_out = any(isinstance(module.get_base_layer(), Conv1D) for module in adapted)
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=_jsonable) + "\n"


def _jsonable(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def _check_initialisation(model: nn.Module, spec: LoraSpec, layers: Mapping[str, int]) -> None:
    """Refuse to change base weights where that would not leave the function as it was."""
    if not spec.changes_base:
        return
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    for name in layers:
        layer = model.get_submodule(name)
        if spec.init_lora_weights == "olora" and isinstance(layer, Conv1D):
            raise ConfigError(f"init_lora_weights olora does not fit the Conv1D layer {name!r}; use `pissa`.")
        weight = getattr(layer, "weight", None)
        sharing = owners.get(id(weight), []) if not isinstance(layer, nn.Embedding) else []
        if len(sharing) > 1:
            raise ConfigError(
                f"init_lora_weights {spec.init_lora_weights} would change the weight of {name!r}, which "
                f"{next(other for other in sharing if other != name)!r} shares; untie them, or leave {name!r} out."
            )


def _check_ties(model: Any, layers: Mapping[str, int]) -> None:
    """Refuse an adapter on the input embedding where the output embedding shares the weight and gets none."""
    if getattr(model, "get_output_embeddings", None) is None:
        return
    output = model.get_output_embeddings()
    if output is None or output.weight is not model.get_input_embeddings().weight:
        return
    embedding = model.get_input_embeddings()
    if any(model.get_submodule(name) is embedding for name in layers):
        raise ConfigError(
            f"embedding_mode lora: the output embedding of {type(model).__name__} shares the weight of the input "
            "embedding, so no plain checkpoint could hold the result; set `untie_embeddings: true`, which "
            "`CausalLMModule` has, or `embedding_mode: standard`."
        )
