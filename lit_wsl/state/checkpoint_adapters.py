"""The adapters that a training checkpoint carries beside its merged weights, as a PEFT adapter.

``checkpoint["lit_wsl_universal"]`` describes every adapted layer by a text, its signature: the layer's path, the
tensors of its updates, their scales. Here these become PEFT's names and settings, so that one reader knows what they
mean; layers of other libraries, several adapters of a layer and fused projections become one pair of factors.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_wsl.errors import CheckpointError
from lit_wsl.state.adapters import Adapter, AdapterConfig
from lit_wsl.state.formats import unwrap
from lit_wsl.state.names import NameResolver
from lit_wsl.state.quantised import packed_of
from lit_wsl.state.reader import MemoryReader, StateReader, read_torch_file
from lit_wsl.tensors.lora import fold

_KEY, _VERSION = "lit_wsl_universal", "1"
_SAME = 0.01
"""Share of its norm by which a weight may differ from the base's through rounding."""

_LAYER = {"name": str, "base": str, "magnitude": str, "transposed": bool, "parts": list}
_PART = {"A": str, "B": str, "shift": str, "A_turned": bool, "scale": int | float, "start": int}
"""What a signature says of a layer, and of each of its updates."""


@dataclass(frozen=True)
class _Layer:
    """An adapted layer as its signature tells."""

    signature: Mapping[str, Any]
    path: str
    """Path of the layer in the plain model."""

    @property
    def parts(self) -> list[Mapping[str, Any]]:
        """Low-rank updates; none for a layer that was copied to be trained whole."""
        return list(self.signature["parts"])

    @property
    def is_embedding(self) -> bool:
        return any("lora_embedding_" in part["A"] or part["A_turned"] for part in self.parts)

    def has(self, name: str) -> bool:
        """Whether a plain name is of this layer."""
        return name.startswith(f"{self.path}.")


def adapter_of_checkpoint(path: Path, base: StateReader | None, resolver: NameResolver | None) -> Adapter:
    """The adapters of a checkpoint that a module of ours saved.

    Parameters that training changed outside of the adapters are taken over whole; they are found by comparing the
    checkpoint with the base.

    Args:
        path: The checkpoint.
        base: The base model; without one only adapted layers are known.
        resolver: The base's names.

    Raises:
        CheckpointError: If the checkpoint keeps no factors, or was trained on another base.
    """
    content = read_torch_file(path)
    saved = _side_car(content, path)
    state = unwrap(content, str(path))
    layers = _layers(saved, path)
    tensors: dict[str, Tensor] = {}
    scales: dict[str, tuple[int, float]] = {}
    for layer in layers:
        if layer.parts:
            scales[layer.path] = _add_factors(layer, saved["adapters"], state, tensors, path)
    if not scales:
        raise CheckpointError(f"{path} has no low-rank adapters; pass it with `--models`.")
    found = resolver.resolve(state) if resolver else {}
    tensors |= _trained_whole(layers, state, base, found)
    adapter = Adapter(path, _config(layers, scales), MemoryReader(tensors, str(path), [path]))
    if base is not None:
        for layer in layers:
            if layer.parts:
                _check_same_base(layer, adapter, saved.get("base", {}), state, base, found)
    return adapter


def _side_car(content: Any, path: Path) -> Mapping[str, Any]:
    meta = content.get(_KEY) if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        raise CheckpointError(f"{path} carries no adapters beside its weights; pass it with `--models`.")
    layers, version = meta.get("layers", {}), meta.get("version")
    packed = layers.get("state_dict", {}) if isinstance(layers, Mapping) else {}
    if not isinstance(packed, Mapping) or not isinstance(packed.get("adapters", {}), Mapping):
        raise CheckpointError(f"{path}: its description of adapters is damaged; save it again.")
    if not isinstance(version, str) or version != _VERSION or not packed.get("adapters"):
        raise CheckpointError(
            f"{path} keeps no factors of its adapters (side-car {meta.get('sidecar', 'none')!r}, version "
            f"{version!r}); pass it with `--models`, or train with `sidecar: exact`."
        )
    return packed


def _layers(saved: Mapping[str, Any], path: Path) -> list[_Layer]:
    try:
        signatures = [json.loads(text) for text in saved["signatures"].values()]
        for one in signatures:
            _check_told(one, _LAYER)
            for part in one["parts"]:
                _check_told(part, _PART)
        return [_Layer(one, _plain(one["name"], saved)) for one in signatures]
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its description of adapters is damaged ({error!r}); save it again.") from error


def _check_told(told: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    for name, kind in kinds.items():
        if not isinstance(told[name], kind):
            raise TypeError(f"`{name}` is {told[name]!r}")


def _plain(name: str, saved: Mapping[str, Any]) -> str:
    """Path of a layer without the paths inside of containers such as a ``PeftModel``."""
    for path, inner in saved.get("containers", {}).items():
        outer = f"{path}." if path else ""
        name = re.sub(rf"^{re.escape(f'{outer}{inner}.')}", outer, name)
    return name


def _add_factors(
    layer: _Layer, adapters: Mapping[str, Tensor], state: Mapping[str, Tensor], tensors: dict[str, Tensor], path: Path
) -> tuple[int, float]:
    """Put the tensors of a layer under PEFT's names; returns rank and scale."""
    try:
        height = state[f"{layer.path}.weight"].shape[1 if layer.signature["transposed"] else 0]
        pairs = [_pair(part, adapters, height) for part in layer.parts]
        magnitude = adapters[layer.signature["magnitude"]] if layer.signature["magnitude"] else None
        shifts = [(part["scale"], adapters[part["shift"]]) for part in layer.parts if part["shift"]]
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error} of the adapter of {layer.path!r}; save it again.") from error
    except (IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the adapter of {layer.path!r} is damaged ({error}); save it again.") from error
    scale = float(layer.parts[0]["scale"])
    A, B = pairs[0]
    if len(pairs) > 1:
        A = torch.cat([down.float() for down, _ in pairs])
        B = torch.cat([up.float() * part["scale"] for part, (_, up) in zip(layer.parts, pairs, strict=True)], dim=1)
        shifts, scale = [(1.0, sum((s * t.float() for s, t in shifts), start=torch.zeros(())))] if shifts else [], 1.0
    ends = ("lora_embedding_A", "lora_embedding_B") if layer.is_embedding else ("lora_A.weight", "lora_B.weight")
    tensors |= {f"{layer.path}.{ends[0]}": A, f"{layer.path}.{ends[1]}": B}
    if magnitude is not None:
        tensors[f"{layer.path}.lora_magnitude_vector"] = magnitude
    if shifts:
        tensors[f"{layer.path}.lora_B.bias"] = shifts[0][1]
    return A.shape[0], scale


def _pair(part: Mapping[str, Any], adapters: Mapping[str, Tensor], height: int) -> tuple[Tensor, Tensor]:
    """Factors of one update of all rows of a weight, zero where the update has none."""
    A, B = adapters[part["A"]].detach(), adapters[part["B"]].detach()
    A = A.T if part["A_turned"] else A
    A = A[slice(*part["A_rows"])] if part["A_rows"] else A
    B = B[slice(*part["B_rows"])] if part["B_rows"] else B
    if len(B) == height:
        return A, B
    full = B.new_zeros(height, *B.shape[1:])
    full[part["start"] : part["start"] + len(B)] = B
    return A, full


def _trained_whole(
    layers: list[_Layer], state: Mapping[str, Tensor], base: StateReader | None, found: Mapping[str, str]
) -> dict[str, Tensor]:
    """Parameters outside of low-rank layers that differ from the base's, and those that it lacks."""
    adapted = {f"{layer.path}.weight" for layer in layers if layer.parts}
    shifted = {f"{layer.path}.bias" for layer in layers if any(part["shift"] for part in layer.parts)}
    rest = {name: tensor for name, tensor in state.items() if name not in adapted | shifted}
    if base is None:
        copies = [layer for layer in layers if layer.signature["base"].startswith("modules_to_save.")]
        return {name: tensor for name, tensor in rest.items() if any(layer.has(name) for layer in copies)}
    packed = packed_of(base)
    return {
        name: tensor
        for name, tensor in rest.items()
        if name not in found or (found[name] not in packed and not _is_equal(tensor, base.read(found[name])))
    }


def _is_equal(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one up to the rounding of the narrower dtype."""
    narrow = tensor.dtype if tensor.dtype.itemsize <= other.dtype.itemsize else other.dtype
    return tensor.shape == other.shape and torch.equal(tensor.to(narrow), other.to(narrow))


def _check_same_base(
    layer: _Layer,
    adapter: Adapter,
    kept: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    base: StateReader,
    found: Mapping[str, str],
) -> None:
    """Refuse factors that belong on other weights than the base's, as after an initialisation that changes these."""
    weight = f"{layer.path}.weight"
    raw = ".".join(part for part in (layer.signature["name"], layer.signature["base"], "weight") if part)
    if weight not in found or found[weight] in packed_of(base) or (raw not in kept and layer.signature["magnitude"]):
        return
    stored = base.read(found[weight]).float()
    if raw in kept:
        before = kept[raw].float()
    else:
        before = state[weight].float() - fold(adapter.factors(weight, tuple(stored.shape)))
    gap = torch.linalg.vector_norm(before - stored) if before.shape == stored.shape else torch.inf
    if gap > _SAME * torch.linalg.vector_norm(stored):
        raise CheckpointError(
            f"{adapter.directory}: the adapter of {layer.path!r} was trained on other weights than the base's (as with "
            "`init_lora_weights: pissa`); pass the checkpoint with `--models`."
        )


def _config(layers: list[_Layer], scales: Mapping[str, tuple[int, float]]) -> AdapterConfig:
    turned = any(layer.signature["transposed"] and not layer.is_embedding for layer in layers)
    return AdapterConfig(
        r=1,
        lora_alpha=1.0,
        fan_in_fan_out=turned,
        rank_pattern={f"^{re.escape(name)}": rank for name, (rank, _) in scales.items()},
        alpha_pattern={f"^{re.escape(name)}": rank * scale for name, (rank, scale) in scales.items()},
    )
