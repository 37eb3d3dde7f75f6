"""Start from a trained adapter: its layers, ranks and scales, and the tensors that it holds whole."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_wsl.errors import CheckpointError, did_you_mean
from lit_wsl.models.lora import LoraSpec, inject_lora, load_adapter
from lit_wsl.models.lora_targets import peft_targets
from lit_wsl.state.adapters import Adapter


def start_from_adapter(model: nn.Module, spec: LoraSpec | None, directory: Path) -> LoraSpec:
    """Put the adapter of a PEFT directory into ``model``, in place, for training to go on from it.

    Tensors that the adapter holds whole take the place of the model's, and stay as they are.

    Args:
        model: A model without adapters.
        spec: What the adapter must be; None takes the adapter's own form.
        directory: What ``lit-wsl compare``, PEFT or a run wrote.

    Returns:
        The specification of the adapters that the model has now.

    Raises:
        CheckpointError: If the directory is no adapter, or not one of this model or form.
        ConfigError: If a layer can have no such adapter here.
    """
    adapter = Adapter(directory)
    if spec is None:
        spec = adapter_spec(model, adapter)
    load_values(model, adapter)
    inject_lora(model, spec)
    load_adapter(model, spec, directory)
    return spec


def adapter_spec(model: nn.Module, adapter: Adapter) -> LoraSpec:
    """The form of an adapter: its layers, their ranks and scales.

    Raises:
        CheckpointError: If it adapts a layer that the model lacks.
    """
    modules = {name for name, _ in model.named_modules()}
    layers = _adapted(adapter)
    for layer in layers:
        if layer not in modules:
            last = layer.rpartition(".")[2]
            near = [name for name in modules if name.rpartition(".")[2] == last] or list(modules)
            raise CheckpointError(
                f"{adapter.directory} adapts {layer!r}, which {type(model).__name__} lacks; give its base as `model`. "
                f"{did_you_mean(layer, sorted(near)[:50])}"
            )
    config = adapter.config
    return LoraSpec(
        rank=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=peft_targets(layers, model),
        exclude_modules=[],
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
    )


def _adapted(adapter: Adapter) -> list[str]:
    """Paths of the layers with factors, those that repeat a tied one included."""
    keys = (adapter.plain(key) for key in adapter.state.keys())
    return list(dict.fromkeys(key.split(".lora_")[0] for key in keys if ".lora_" in key))


@torch.no_grad()
def load_values(model: nn.Module, adapter: Adapter) -> None:
    """Give a model without adapters the tensors that an adapter holds whole.

    Raises:
        CheckpointError: If the model lacks one, or has it in another shape.
    """
    state: Mapping[str, Tensor] = model.state_dict()
    for name, site in adapter.sites.items():
        if not site.value:
            continue
        value = adapter.state.read(site.value)
        if name not in state:
            raise CheckpointError(f"{adapter.directory} holds {name!r}, which {type(model).__name__} lacks.")
        if state[name].shape != value.shape:
            raise CheckpointError(
                f"{adapter.directory} holds {name!r} of shape {tuple(value.shape)}, the model has "
                f"{tuple(state[name].shape)}; for another vocabulary save the base with "
                "`resize_token_embeddings` and give that as `model`."
            )
        state[name].copy_(value)
