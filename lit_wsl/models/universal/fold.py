"""Raw state dict to plain state dict: every adapter folded into its weight."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.layout import AdaptedLayer, Layout, join
from lit_wsl.state.formats import strip_wrappers
from lit_wsl.tensors.lora import add_updates, checksum, is_finite, row_norms, scale_rows

MergedDtype = Literal["auto", "base", "float32"]
"""Dtype of folded weights: the base's, float32, or (auto) the base's but float32 where that has 16 bits."""


@dataclass(frozen=True)
class Folded:
    """A plain state dict, and what it takes to undo the folding."""

    state: dict[str, Tensor]
    """Plain keys, merged weights."""
    adapters: dict[str, Tensor] = field(default_factory=dict)
    """Raw keys: tensors that the plain model lacks."""
    base: dict[str, Tensor] = field(default_factory=dict)
    """Raw keys: weights and biases before folding."""
    norms: dict[str, Tensor] = field(default_factory=dict)
    """Layer to the row lengths of ``W0 + B A``, float64, for DoRA."""
    sums: dict[str, list[int]] = field(default_factory=dict)
    """Plain keys: :func:`checksum` of every merged tensor."""


@torch.no_grad()
def fold_state(
    state: Mapping[str, Tensor],
    layout: Layout,
    ties: Iterable[list[str]] = (),
    merged_dtype: MergedDtype = "auto",
) -> Folded:
    """Fold every adapter in float64; ``state`` and its tensors stay as they are.

    Args:
        state: State dict of an adapted model; wrapper components in its keys are stripped.
        layout: Its adapted layers.
        ties: Groups of raw keys that name one parameter.
        merged_dtype: See :data:`MergedDtype`.

    Returns:
        The plain state dict. Tensors that no adapter changes are those of ``state``.

    Raises:
        CheckpointError: If a merged weight is not finite, or tied weights would differ.
    """
    state = {strip_wrappers(key): tensor for key, tensor in state.items()}
    folded = Folded({})
    for key, tensor in state.items():
        plain = layout.plain(key)
        if plain is None:
            folded.adapters[key] = tensor
        else:
            folded.state[plain] = tensor
    for layer in layout:
        if layer.parts:
            _check_whole(layer, state)
            _fold_layer(layer, layout, state, folded, merged_dtype)
    _check_ties(folded.state, layout, ties)
    return folded


def _check_whole(layer: AdaptedLayer, state: Mapping[str, Tensor]) -> None:
    lost = [key for key in layer.tensors() if key not in state]
    if lost:
        raise CheckpointError(
            f"{layer.name}: the state dict lacks {', '.join(lost)}, so its adapter cannot be folded; "
            "save the whole state dict."
        )


def _fold_layer(
    layer: AdaptedLayer, layout: Layout, state: Mapping[str, Tensor], folded: Folded, merged_dtype: MergedDtype
) -> None:
    base = state[layer.weight]
    dtype = dtype_of_merged(base.dtype, merged_dtype)
    updates = layer.updates(state, tuple(base.shape))
    if layer.magnitude:
        moved = add_updates(base, updates, torch.float64)
        norms = row_norms(moved, transposed=layer.transposed)
        factor = state[layer.magnitude].detach().cpu().double().flatten() / norms
        merged = scale_rows(moved, factor, transposed=layer.transposed).to(dtype)
        folded.norms[layer.name] = norms
    else:
        merged = add_updates(base, updates, dtype)
    _keep(folded, layout, layer.weight, base, merged)
    if any(part.shift for part in layer.parts):
        _keep(folded, layout, layer.bias, state[layer.bias], shifted(layer, state).to(dtype))


def _keep(folded: Folded, layout: Layout, raw: str, base: Tensor, merged: Tensor) -> None:
    """Put a merged tensor, if it is finite, in the place of its base."""
    plain = str(layout.plain(raw))
    if not is_finite(merged):
        raise CheckpointError(
            f"{plain} merged with its adapter is not finite; lower the learning rate, "
            "or go back to an earlier checkpoint."
        )
    folded.state[plain] = merged
    folded.base[raw] = base
    folded.sums[plain] = checksum(merged)


def shifted(layer: AdaptedLayer, state: Mapping[str, Tensor], sign: float = 1.0) -> Tensor:
    """The layer's bias plus ``sign`` times what its adapters add to it, float64, on the CPU."""
    return state[layer.bias].detach().cpu().double() + sign * shift_of(layer, state)


def shift_of(layer: AdaptedLayer, state: Mapping[str, Tensor]) -> Tensor:
    """What the biases of the up projections add to the layer's bias, float64, on the CPU."""
    return sum(
        (part.scale * state[part.shift].detach().cpu().double() for part in layer.parts if part.shift),
        start=torch.zeros((), dtype=torch.float64),
    )


def dtype_of_merged(base: torch.dtype, merged_dtype: MergedDtype) -> torch.dtype:
    """Dtype in which a weight of dtype ``base`` is stored after folding."""
    if merged_dtype == "float32" or (merged_dtype == "auto" and base.itemsize < 4):
        return torch.float32
    return base


def tied_groups(root: nn.Module) -> list[list[str]]:
    """Groups of raw names that are one and the same parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(strip_wrappers(name))
    return [names for names in groups.values() if len(names) > 1]


def check_representable(root: nn.Module, layout: Layout) -> None:
    """Refuse, before any training, adapters whose folded weights a plain model could not hold.

    Raises:
        CheckpointError: If one of several tied weights is adapted without the others.
    """
    parameters = {strip_wrappers(n): p for n, p in root.named_parameters(remove_duplicate=False)}
    for group in tied_groups(root):
        names = [_trained(key, layout) for key in group]
        owners = [layer for key in names if (layer := layout.owner(key)) and _changes(layer, key)]
        weights = {id(parameters[key]) for key in names}
        if owners and (len(owners) < len(group) or len(weights) > 1 or not _share_factors(owners, parameters)):
            raise CheckpointError(
                f"{' and '.join(str(layout.plain(key)) for key in names)} are one tied tensor, and "
                f"{owners[0].name} is adapted by itself: no plain checkpoint can hold that. Untie them "
                "(`untie_embeddings: true`, or `tie_word_embeddings=False`), adapt both with PEFT's "
                "`ensure_weight_tying`, or adapt neither."
            )


def _changes(layer: AdaptedLayer, key: str) -> bool:
    """Whether training a layer changes the tensor of a raw key."""
    return key == layer.weight if layer.parts else layer.base.startswith("modules_to_save")


def _trained(key: str, layout: Layout) -> str:
    """The raw key that stands in the plain model for ``key``: of a copy to be trained, not of its original."""
    layer = layout.owner(key)
    original = join(layer.name, "original_module.") if layer else ""
    if layer is None or layer.base == "original_module" or not key.startswith(original):
        return key
    return join(layer.name, layer.base, key.removeprefix(original))


def _share_factors(layers: list[AdaptedLayer], parameters: Mapping[str, Tensor]) -> bool:
    """Whether all layers read the same memory, as PEFT's ``ensure_weight_tying`` makes them."""
    places = {
        frozenset(parameters[key].untyped_storage().data_ptr() for part in layer.parts for key in (part.A, part.B))
        for layer in layers
    }
    return len(places) == 1


def _check_ties(plain: Mapping[str, Tensor], layout: Layout, ties: Iterable[list[str]]) -> None:
    for group in ties:
        names = [layout.plain(_trained(raw, layout)) for raw in group]
        keys = [name for name in names if name is not None and name in plain]
        for other in keys[1:]:
            if not same_tensor(plain[keys[0]], plain[other]):
                raise CheckpointError(
                    f"{keys[0]} and {other} are tied but differ after merging; untie them, or adapt both "
                    "(PEFT's `ensure_weight_tying`)."
                )


def same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same memory, or hold equal values up to the rounding of one fold."""
    if one.shape != other.shape:
        return False
    if one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() and one.stride() == other.stride():
        return one.storage_offset() == other.storage_offset()
    return torch.allclose(one.double().cpu(), other.double().cpu(), rtol=1e-6, atol=1e-9)
