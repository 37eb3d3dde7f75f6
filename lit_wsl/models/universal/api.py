"""Universal state dicts without Lightning: fold any model's adapters, load any weights into any model."""

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from lit_wsl.models.universal.dialects import module_layers, state_layers
from lit_wsl.models.universal.fold import MergedDtype, check_representable, fold_state, tied_groups
from lit_wsl.models.universal.foreign import align
from lit_wsl.models.universal.layout import Layout
from lit_wsl.models.universal.peft_layers import peft_containers, peft_layers
from lit_wsl.models.universal.scales import Scale, scale_rule
from lit_wsl.models.universal.sidecar import SideCar, unpack
from lit_wsl.models.universal.unfold import Unfolded, unfold_state
from lit_wsl.state.adapters import AdapterConfig
from lit_wsl.state.formats import strip_wrappers, unwrap
from lit_wsl.state.locate import model_path
from lit_wsl.state.reader import TORCH_SUFFIXES, open_state, read_torch_file

_ADAPTED = re.compile(r"(^|\.)(lora_(embedding_)?[aA](\.|$)|modules_to_save\.)")
"""Marks a key of an adapted model."""
_PARALLEL = "module."
"""What data parallel wrappers put in front of every name."""
_PEFT_MODEL = "base_model.model."


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_universal` did; names are paths of adapted layers."""

    restored: frozenset[str]
    """Layers that go on with the checkpoint's factors."""
    fresh: frozenset[str]
    """Layers whose adapters start anew on the merged weight."""
    missing: tuple[str, ...] = ()
    """Plain keys that the checkpoint lacks; only without ``strict``."""
    unexpected: tuple[str, ...] = ()
    """Keys of the checkpoint that the model lacks and that were left out; only without ``strict``."""


def find_layout(module: nn.Module) -> Layout:
    """The adapted layers of a model, in every known dialect.

    Raises:
        CheckpointError: If a layer cannot be folded into plain weights.
    """
    return Layout([*peft_layers(module), *module_layers(module)], peft_containers(module))


def check_adapters(module: nn.Module) -> Layout:
    """The adapted layers of a model, of which a plain checkpoint can be made.

    Raises:
        CheckpointError: If a layer cannot be folded, or tied weights are adapted one without the other.
    """
    layout = find_layout(module)
    check_representable(module, layout)
    return layout


def get_merged_state_dict(
    source: nn.Module | Mapping[str, Tensor] | str | Path,
    lora: Scale | None = None,
    *,
    merged_dtype: MergedDtype = "auto",
) -> dict[str, Tensor]:
    r"""The plain state dict of a model: every adapter folded into its weight, :math:`W = W_0 + s\,BA`, in float64.

    It loads into the model without adapters with ``load_state_dict(strict=True)``. The source is not changed;
    tensors that no adapter touches are shared with it.

    Args:
        source: A model with LoRA layers of PEFT, nanoGPT's kind (``main_weight``), litgpt or torchtune; the state
            dict of one; or a file of it.
        lora: Settings of the adapters in a bare state dict, which does not say its scale.
        merged_dtype: Dtype of folded weights: ``auto`` is the base's, but float32 where that has 16 bits, since a
            small update does not survive rounding to them; ``base``, or ``float32``.

    Raises:
        CheckpointError: If a layer cannot be folded, the scale is unknown, or a merged weight is not finite.
    """
    if isinstance(source, nn.Module):
        source = _inside_parallel(source)
        return fold_state(source.state_dict(), find_layout(source), tied_groups(source), merged_dtype).state
    state, _ = read_state(source)
    return fold_foreign(state, lora, merged_dtype)


def load_universal(
    module: nn.Module,
    source: Mapping[str, Tensor] | str | Path,
    *,
    lora: Scale | None = None,
    strict: bool = True,
) -> LoadReport:
    """Load any checkpoint into a model, whatever adapters either of them has.

    Args:
        module: A plain model, or one with adapters of a known dialect; changed in place.
        source: State dict, torch or safetensors file, sharded directory, Lightning checkpoint. A universal
            checkpoint's side-car gives layers of the same configuration their factors back; other adapters start
            fresh on the merged weights.
        lora: Settings of unmerged adapters in a source that does not say their scale.
        strict: Whether keys that do not fit are an error; otherwise the report names what was missing.

    Raises:
        CheckpointError: If a key or shape does not fit, or the source is damaged.
    """
    module = _inside_parallel(module)
    state, saved = read_state(source)
    where = str(source) if isinstance(source, str | Path) else "The state dict"
    unfolded = remap_state(module, state, saved, lora=lora, strict=strict, where=where)
    module.load_state_dict(unfolded.state, strict=True)
    return LoadReport(unfolded.restored, unfolded.fresh, unfolded.missing, unfolded.unexpected)


def remap_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    saved: SideCar | None = None,
    *,
    current: Mapping[str, Tensor] | None = None,
    lora: Scale | None = None,
    strict: bool = True,
    where: str = "The checkpoint",
) -> Unfolded:
    """The state dict to give to ``module.load_state_dict``, from any state dict.

    Args:
        module: The model that will load it.
        state: Any state dict of that architecture.
        saved: Its side-car.
        current: State dict of the module, if not what it gives itself; keys of plain tensors may be on ``meta``.
        lora: Settings of unmerged adapters in ``state``.
        strict: Whether keys that do not fit are an error.
        where: What is being loaded, for messages.

    Raises:
        CheckpointError: If a key or shape does not fit.
    """
    layout = find_layout(module)
    own = dict(module.state_dict() if current is None else current)
    raw_keys = {strip_wrappers(key): key for key in own}
    state = {strip_wrappers(key): tensor for key, tensor in state.items()}
    if not all(raw.startswith(_PARALLEL) for raw in raw_keys):
        state = without_prefix(state, _PARALLEL)
    by_raw, extra = _split({raw: own[key] for raw, key in raw_keys.items()})
    state, given = _split(state)
    unmerged = _unmerged(state, by_raw, layout, lora)
    if unmerged is not None:
        unfolded = Unfolded(unmerged, frozenset(layout.layers))
    else:
        wanted = {name: tuple(t.shape) for raw, t in by_raw.items() if (name := layout.plain(raw)) is not None}
        plain = _without_ignored(module, align(fold_foreign(state, lora), wanted), wanted)
        unfolded = unfold_state(plain, by_raw, layout, saved, tied_groups(module), strict=strict, where=where)
    full = unfolded.state | {raw: given.get(raw, value) for raw, value in extra.items()}
    return replace(unfolded, state={raw_keys[raw]: value for raw, value in full.items()})


def _split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a state dict, and the other objects (`get_extra_state`), which no adapter concerns."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in state.items() if key not in tensors}


def _unmerged(
    state: Mapping[str, Tensor], current: Mapping[str, Tensor], layout: Layout, lora: Scale | None
) -> dict[str, Tensor] | None:
    """An unmerged state dict of this very adapter configuration under the model's raw names, else None."""
    if not layout or len(state) != len(current) or not any(_ADAPTED.search(key) for key in state):
        return None
    shapes = {key: tuple(tensor.shape) for key, tensor in current.items()}
    state = align(state, shapes)
    scale = scale_rule(lora)
    parts = [(layer.name, part) for layer in layout for part in layer.parts]
    if lora is not None and any(part.scale != scale(name, part.rank) for name, part in parts):
        return None
    if {key: tuple(t.shape) for key, t in state.items()} != shapes:
        return None
    if lora is None and parts:
        warnings.warn(
            f"The state dict has unmerged LoRA factors and does not say their scale; this model's is taken "
            f"({parts[0][1].scale:g} for {parts[0][0]}). Pass `lora` to `lit_wsl.load_universal` to say it.",
            stacklevel=2,
        )
    return state


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """``state`` without a prefix that every key has; as it is if one has it not."""
    shared = all(key.startswith(prefix) for key in state)
    return {key.removeprefix(prefix) if shared else key: tensor for key, tensor in state.items()}


def _inside_parallel(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DataParallel | DistributedDataParallel) else module


def read_state(source: Mapping[str, Tensor] | str | Path) -> tuple[dict[str, Tensor], SideCar]:
    """The state dict of any source, and its side-car.

    Raises:
        CheckpointError: If the source is damaged or holds no state dict.
    """
    if isinstance(source, Mapping):
        return unwrap(source, "The state dict"), unpack(source)
    path = model_path(source)
    if path.is_file() and path.suffix in TORCH_SUFFIXES:
        content: Any = read_torch_file(path)
        return unwrap(content, str(path)), unpack(content) if isinstance(content, Mapping) else SideCar()
    reader = open_state(path)
    return {strip_wrappers(name): reader.read(name) for name in reader.keys()}, SideCar()


def fold_foreign(
    state: Mapping[str, Tensor], lora: Scale | None = None, merged_dtype: MergedDtype = "auto"
) -> dict[str, Tensor]:
    """A bare state dict with the factors of any dialect folded in; as it is when it has none."""
    if not any(_ADAPTED.search(key) for key in state):
        return dict(state)
    state = {strip_wrappers(key): tensor for key, tensor in state.items() if isinstance(tensor, Tensor)}
    state = without_prefix(without_prefix(state, _PARALLEL), _PEFT_MODEL)
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    turned = isinstance(lora, AdapterConfig) and lora.fan_in_fan_out
    layers = state_layers(shapes, scale_rule(lora), squares_turned=turned)
    return fold_state(state, Layout(layers), merged_dtype=merged_dtype).state


def _without_ignored(module: nn.Module, plain: dict[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """``plain`` without what files hold for nothing: keys that transformers names, buffers that the model saves not."""
    unsaved = {strip_wrappers(name) for name, _ in module.named_buffers(remove_duplicate=False)} - set(wanted)
    plain = {key: tensor for key, tensor in plain.items() if key not in unsaved}
    patterns = {
        pattern
        for part in module.modules()
        for pattern in getattr(part, "_keys_to_ignore_on_load_unexpected", None) or ()
    }
    ignored = re.compile("|".join(sorted(patterns))) if patterns else None
    return {key: t for key, t in plain.items() if key in wanted or ignored is None or not ignored.search(key)}
