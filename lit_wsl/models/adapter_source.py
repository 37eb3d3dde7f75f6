"""The adapters of a backbone as a checkpoint holds them, and the tensors that were under them."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_wsl.errors import CheckpointError
from lit_wsl.models.adapter_base import BaseTensor, rounding
from lit_wsl.models.architecture import as_stored, make_architecture
from lit_wsl.models.checkpoint import Backbone, Checkpoint, choose_backbone
from lit_wsl.models.universal.layout import AdaptedLayer, Layout
from lit_wsl.models.universal.sidecar import SideCar
from lit_wsl.models.universal.unfold import unfold_state
from lit_wsl.tensors.lora import scale_rows

WHOLE = "export `--format hf`"
"""What helps where no adapter can be written."""
_SAVED = "modules_to_save."


@dataclass(frozen=True)
class AdapterSource:
    """The adapters of one backbone."""

    where: str
    backbone: Backbone
    model: PreTrainedModel
    state: Mapping[str, Tensor]
    saved: SideCar
    layout: Layout

    def name(self, layer: AdaptedLayer) -> str:
        """Path of a layer inside the plain backbone."""
        plain = str(self.layout.plain(layer.weight)).removesuffix(".weight")
        return plain.removeprefix(self.backbone.prefix)

    @cached_property
    def layers(self) -> dict[str, AdaptedLayer]:
        """Layers with active adapters, by their paths in the backbone."""
        return {self.name(layer): layer for layer in self._inside() if layer.parts}

    @cached_property
    def copies(self) -> dict[str, AdaptedLayer]:
        """Layers that were copied to be trained whole."""
        return {self.name(layer): layer for layer in self._inside() if layer.base.startswith(_SAVED)}

    def _inside(self) -> list[AdaptedLayer]:
        return [layer for layer in self.layout if str(self.layout.plain(layer.weight)).startswith(self.backbone.prefix)]


def read_adapters(checkpoint: Checkpoint, name: str | None) -> AdapterSource:
    """The adapters of the backbone of that name, or of the only one.

    Raises:
        CheckpointError: If the checkpoint keeps none.
        ConfigError: If there are several backbones, or none of that name.
    """
    where = str(checkpoint.path)
    if not checkpoint.is_universal:
        raise CheckpointError(f"{where} is no universal checkpoint and tells of no adapters; {WHOLE} or `safetensors`.")
    if checkpoint.is_sharded:
        raise CheckpointError(
            f"{where} keeps its factors in shards; {WHOLE}, or resume from it with "
            "`save_distributed_checkpoint: false` and export what that run saves."
        )
    backbone = choose_backbone(checkpoint, name)
    saved, layout = checkpoint.sidecar(), checkpoint.layout()
    source = AdapterSource(where, backbone, make_architecture(backbone, where), checkpoint.state(), saved, layout)
    if not source.layers:
        raise CheckpointError(f"{where}: {backbone.name or 'the model'} has no low-rank adapters; {WHOLE}.")
    lost = [key for layer in source.layers.values() for key in layer.tensors() if _is_lost(key, source)]
    if lost:
        raise CheckpointError(
            f"{where} keeps no factors (side-car {checkpoint.meta.get('sidecar', 'none')!r}, {lost[0]} is missing); "
            f"{WHOLE}, or train with `sidecar: factors`."
        )
    return source


def _is_lost(key: str, source: AdapterSource) -> bool:
    plain = source.layout.plain(key)
    return key not in source.saved.adapters if plain is None else plain not in source.state


def base_tensors(source: AdapterSource) -> Iterator[BaseTensor]:
    """The tensors under the adapters."""
    layers, copies, prefix = source.layers, source.copies, source.backbone.prefix
    inner = {n.removeprefix(prefix): t for n, t in source.state.items() if n.startswith(prefix)}
    for name, tensor in as_stored(inner, source.model, source.where).items():
        path, _, leaf = name.rpartition(".")
        copied = next((copy for copy in copies if name.startswith(f"{copy}.")), None)
        if path in layers and leaf in ("weight", "bias"):
            yield _before(name, layers[path], leaf, source)
        elif copied is not None:
            rest = name.removeprefix(copied)
            original = source.saved.adapters.get(f"{copies[copied].name}.original_module{rest}", tensor)
            yield BaseTensor(name, original, copied=True)
        else:
            yield BaseTensor(name, tensor)


@torch.no_grad()
def _before(name: str, layer: AdaptedLayer, leaf: str, source: AdapterSource) -> BaseTensor:
    """The layer's tensor before folding, as it was where the side-car has it."""
    raw = layer.weight if leaf == "weight" else layer.bias
    merged = source.state[str(source.layout.plain(raw))]
    if leaf == "bias" and not any(part.shift for part in layer.parts):
        return BaseTensor(name, merged)
    base = _unfolded(layer, source)[raw]
    if raw in source.saved.base:
        return BaseTensor(name, base, lambda: rounding(base))
    return BaseTensor(name, base, lambda: _taken_out(merged, base, layer, leaf, source), widened=True)


@torch.no_grad()
def _taken_out(merged: Tensor, base: Tensor, layer: AdaptedLayer, leaf: str, source: AdapterSource) -> Tensor:
    """How far folding and taking out may have moved each entry of the base."""
    moved = merged.double()
    if layer.magnitude and leaf == "weight":
        factor = source.saved.norms[layer.name] / source.saved.adapters[layer.magnitude].double().flatten()
        moved = scale_rows(merged, factor.abs(), transposed=layer.transposed)
    precision = torch.finfo(merged.dtype).eps
    return precision * (moved.abs() + base.double().abs()) + torch.finfo(torch.float32).tiny


def _unfolded(layer: AdaptedLayer, source: AdapterSource) -> dict[str, Tensor]:
    """The layer's tensors by raw keys, as the run had them.

    Raises:
        CheckpointError: If the merged weight is no longer what base and factors give.
    """
    current = {key: source.saved.adapters[key] for key in layer.tensors() if key in source.saved.adapters}
    plain = {}
    for key in (layer.weight, layer.bias):
        name = str(source.layout.plain(key))
        if name in source.state:
            plain[name] = current[key] = source.state[name]
    alone = Layout([layer], source.layout.containers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that weights were changed is an error here
        unfolded = unfold_state(plain, current, alone, source.saved, where=source.where)
    if layer.name not in unfolded.restored:
        raise CheckpointError(
            f"{source.where}: the weights of {layer.name} were changed after saving, so its adapter no longer gives "
            f"them; {WHOLE}."
        )
    return unfolded.state
