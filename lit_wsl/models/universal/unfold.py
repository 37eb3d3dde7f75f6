"""Plain state dict to the raw state dict of a model, whatever adapters that model has."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.fold import same_tensor, shifted
from lit_wsl.models.universal.layout import AdaptedLayer, Layout
from lit_wsl.models.universal.sidecar import SideCar
from lit_wsl.tensors.lora import add_updates, checksum, row_norms, scale_rows

_LISTED = 20
"""So many keys of a kind are named in an error."""


@dataclass(frozen=True)
class Unfolded:
    """A raw state dict, and where its adapters come from."""

    state: dict[str, Tensor]
    """Raw keys, one for every key of the model."""
    restored: frozenset[str] = frozenset()
    """Layers that go on with the factors of the checkpoint."""
    fresh: frozenset[str] = frozenset()
    """Layers whose adapters start anew on the merged weight."""
    missing: tuple[str, ...] = ()
    """Plain keys that the checkpoint lacks; the model's own values stand in ``state``."""
    unexpected: tuple[str, ...] = ()
    """Keys of the checkpoint that the model lacks."""


@dataclass
class Misfits:
    """Keys that do not fit, by kind."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def message(self, where: str) -> str:
        """What does not fit, with the remedy."""
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.mismatched))
        listed = "; ".join(
            f"{len(keys)} {kind}: {', '.join(keys[:_LISTED])}{', …' if len(keys) > _LISTED else ''}"
            for kind, keys in kinds
            if keys
        )
        return (
            f"{where} does not fit this model ({listed}). Load it into the architecture it was saved from, "
            "or map it with `lit-wsl map`."
        )


@torch.no_grad()
def unfold_state(
    plain: Mapping[str, Tensor],
    current: Mapping[str, Tensor],
    layout: Layout,
    saved: SideCar | None = None,
    ties: Iterable[list[str]] = (),
    *,
    strict: bool = True,
    where: str = "The checkpoint",
) -> Unfolded:
    """Give every raw key of a model its tensor from a plain state dict.

    Layers whose adapters the side-car keeps get them back bit by bit. The others keep their own, fresh
    adapters, and a base weight under which these change nothing: ``W - scale * B @ A``, and for DoRA row lengths of
    ``W``.

    Args:
        plain: Plain keys.
        current: The model's state dict without wrapper components; tensors of plain keys may be on ``meta``.
        layout: The model's adapted layers.
        saved: Side-car of ``plain``.
        ties: Groups of the model's raw keys that name one parameter.
        strict: Whether keys that do not fit are an error; a shape that does not fit always is.
        where: What is being loaded, for messages.

    Raises:
        CheckpointError: If a key or a shape does not fit, or the model ties weights that differ in ``plain``.
    """
    saved = saved or SideCar()
    plain = _with_tied(plain, layout, ties, where)
    given = {layer.name for layer in layout if layout.plain(layer.weight) in plain or not layer.parts}
    restored = saved.same_layers(layout, current) & given
    restored -= _stale(layout, restored, plain, saved, where)
    fresh = {layer.name for layer in layout if layer.parts} & given - restored
    state, misfits = _assign(plain, current, layout, saved, restored)
    if misfits.mismatched or (strict and misfits):
        raise CheckpointError(misfits.message(where))
    for layer in layout:
        if layer.name in restored and layer.weight not in saved.base:
            _take_out(layer, state, saved)
        elif layer.name in fresh:
            _start_fresh(layer, state)
    return Unfolded(state, frozenset(restored), frozenset(fresh), tuple(misfits.missing), tuple(misfits.unexpected))


def _assign(
    plain: Mapping[str, Tensor], current: Mapping[str, Tensor], layout: Layout, saved: SideCar, restored: set[str]
) -> tuple[dict[str, Tensor], Misfits]:
    """Each raw key its tensor as it stands in the checkpoint, or the model's own."""
    state: dict[str, Tensor] = {}
    misfits, used = Misfits(), set()
    for key, own in current.items():
        layer, name = layout.owner(key), layout.plain(key)
        kept = layer is not None and layer.name in restored
        if name is None:
            state[key] = _kept(saved.adapters, key, own) if kept else own
            continue
        used.add(name)
        if name not in plain:
            misfits.missing.append(name)
            state[key] = own
        elif plain[name].shape != own.shape:
            misfits.mismatched.append(f"{name} ({tuple(plain[name].shape)} here, {tuple(own.shape)} in the model)")
        else:
            state[key] = _kept(saved.base, key, plain[name]) if kept else plain[name]
    misfits.unexpected += [name for name in plain if name not in used]
    return state, misfits


def _stale(layout: Layout, restored: set[str], plain: Mapping[str, Tensor], saved: SideCar, where: str) -> set[str]:
    """Layers whose merged weight was changed after it was saved, so that the side-car belongs to another function."""
    names = {layer.name: [str(layout.plain(key)) for key in (layer.weight, layer.bias)] for layer in layout}
    stale = {
        layer
        for layer in restored
        for key in names[layer]
        if key in saved.sums and key in plain and checksum(plain[key]) != saved.sums[key]
    }
    if stale:
        warnings.warn(
            f"{where}: the weights of {len(stale)} layers, among them {min(stale)}, were changed after saving; "
            "their adapters start fresh on the weights as they are.",
            stacklevel=2,
        )
    return stale


def _kept(saved: Mapping[str, Tensor], key: str, other: Tensor) -> Tensor:
    """The side-car's tensor if it has one of that shape, else ``other``."""
    return saved[key] if key in saved and saved[key].shape == other.shape else other


def _start_fresh(layer: AdaptedLayer, state: dict[str, Tensor]) -> None:
    """A base weight, bias and DoRA magnitude under which the layer's own adapters change nothing."""
    weight = state[layer.weight]
    if _is_zero(layer, state):
        moved = weight
    else:
        updates = layer.updates(state, tuple(weight.shape))
        moved = add_updates(weight, updates, weight.dtype, sign=-1.0)
        state[layer.weight] = moved
        if layer.magnitude:
            moved = add_updates(moved, updates, torch.float64)
    if any(part.shift for part in layer.parts):
        state[layer.bias] = shifted(layer, state, sign=-1.0).to(state[layer.bias].dtype)
    if layer.magnitude:
        own = state[layer.magnitude]
        state[layer.magnitude] = row_norms(moved, transposed=layer.transposed).to(own.dtype).reshape(own.shape)


def _is_zero(layer: AdaptedLayer, state: Mapping[str, Tensor]) -> bool:
    return all(not state[part.A].any() or not state[part.B].any() for part in layer.parts)


def _take_out(layer: AdaptedLayer, state: dict[str, Tensor], saved: SideCar) -> None:
    """The base weight that the merged one was made from, up to rounding: ``W - scale * B @ A``."""
    if not layer.parts:
        return
    weight = state[layer.weight]
    merged = weight
    if layer.magnitude:
        factor = saved.norms[layer.name] / state[layer.magnitude].double().flatten()
        merged = scale_rows(weight, factor, transposed=layer.transposed)
    state[layer.weight] = add_updates(merged, layer.updates(state, tuple(weight.shape)), weight.dtype, sign=-1.0)
    if any(part.shift for part in layer.parts):
        state[layer.bias] = shifted(layer, state, sign=-1.0).to(state[layer.bias].dtype)


def _with_tied(
    plain: Mapping[str, Tensor], layout: Layout, ties: Iterable[list[str]], where: str
) -> Mapping[str, Tensor]:
    """``plain`` with every name of a tied tensor, of which a file usually holds one."""
    full = dict(plain)
    for group in ties:
        keys = [key for raw in group if (key := layout.plain(raw)) is not None]
        given = [key for key in keys if key in full]
        for other in given[1:]:
            if not same_tensor(full[given[0]], full[other]):
                raise CheckpointError(
                    f"{where}: {given[0]} and {other} differ, but this model ties them; untie it "
                    "(`untie_embeddings: true`, or `tie_word_embeddings=False`)."
                )
        for key in keys:
            if given and key not in full:
                full[key] = full[given[0]]
    return full
