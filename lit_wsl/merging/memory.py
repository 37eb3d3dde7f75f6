"""Models, state dicts and adapters in memory as sources of a merge; a spec names them by their content."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from lit_wsl.errors import ConfigError, MergeError
from lit_wsl.state.adapters import PREFIX, Adapter, adapter_config
from lit_wsl.state.formats import strip_wrappers, unwrap
from lit_wsl.state.reader import MemoryReader, StateReader
from lit_wsl.state.writer import as_bytes

STEM = "memory-"
"""What the names of things in memory begin with."""
FIELDS = ("adapters", "models", "deltas")
"""Fields of a spec that list sources."""


class AdapterPair(NamedTuple):
    """An adapter without a directory: its tensors by PEFT's names, and its settings."""

    state: Mapping[str, Tensor]
    config: Mapping[str, Any]


Held = Mapping[str, AdapterPair | Mapping[str, Tensor]]
"""What is merged from memory, by the name that stands for it in a spec."""
NOTHING: Held = {}


def set_aside(fields: Mapping[str, Any]) -> tuple[dict[str, Any], Held]:
    """Replace what is in memory among the fields of a spec by names, which follow from the content.

    Args:
        fields: Fields of a spec. Sources and ``base`` may be modules or state dicts; a source may also be a PEFT model,
            or a pair of an adapter's state dict and its configuration.

    Returns:
        The fields with names alone, and what each name stands for.

    Raises:
        ConfigError: If something is neither a path nor any of these.
        MergeError: If an adapter cannot be taken out of its model.
    """
    held: dict[str, AdapterPair | Mapping[str, Tensor]] = {}

    def name(field: str, thing: Any) -> str:
        if isinstance(thing, str | Path):
            return str(thing)
        content = _content(field, thing)
        called = f"{STEM}{_digest(content)}"
        held[called] = content
        return called

    plain = dict(fields)
    for field in FIELDS:
        if isinstance(fields.get(field), list | tuple):
            plain[field] = [name(field, thing) for thing in fields[field]]
    if fields.get("base") is not None:
        plain["base"] = name("base", fields["base"])
    return plain, held


def held_state(held: Held, name: str) -> StateReader | None:
    """A reader of what a name stands for, if it stands for a state dict in memory."""
    content = held.get(name)
    return None if content is None or isinstance(content, AdapterPair) else MemoryReader(content, name)


def held_adapter(held: Held, name: str) -> Adapter | None:
    """The adapter that a name stands for, if it does.

    Raises:
        CheckpointError: If it cannot be folded.
    """
    content = held.get(name)
    if not isinstance(content, AdapterPair):
        return None
    where = Path(name)
    return Adapter(where, adapter_config(content.config, where), MemoryReader(content.state, name), stacked=True)


def _content(field: str, thing: Any) -> AdapterPair | Mapping[str, Tensor]:
    if isinstance(thing, nn.Module):
        if hasattr(thing, "peft_config") and field != "base":
            return _adapter_of(thing)
        return _on_cpu(unwrap(thing.state_dict(), f"A {type(thing).__name__} in `{field}`"))
    if isinstance(thing, Mapping):
        return _on_cpu(unwrap(thing, f"A state dict in `{field}`"))
    if isinstance(thing, tuple) and len(thing) == 2 and all(isinstance(part, Mapping) for part in thing):
        return AdapterPair(_on_cpu(thing[0]), thing[1])
    kinds = "a path, a module, a state dict, or a pair of an adapter's state dict and its configuration"
    raise ConfigError(f"`{field}` takes {kinds}; got a {type(thing).__name__}.")


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in state.items()}


def _adapter_of(model: nn.Module) -> AdapterPair:
    """The active adapter of a model that PEFT changed."""
    configs: Any = model.peft_config
    active = getattr(model, "active_adapters", None) or list(configs)
    active = [active] if isinstance(active, str) else list(active() if callable(active) else active)
    if len(active) != 1 or active[0] not in configs:
        raise MergeError(
            f"A {type(model).__name__} has {len(active)} active adapters ({', '.join(active) or 'none'}); "
            "activate the one to be merged with `set_adapter`, and pass them one after another."
        )
    given = configs[active[0]]
    config = dict(given if isinstance(given, Mapping) else given.to_dict())
    pair = AdapterPair(_on_cpu(dict(_adapter_tensors(model, active[0], str(config.get("bias", "none"))))), config)
    _check_scales(model, active[0], config)
    return pair


def _adapter_tensors(model: nn.Module, adapter: str, bias: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of one adapter in a live model, under the names that PEFT saves them by."""
    state = {strip_wrappers(name): tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    adapted = {name.partition(".lora_")[0] for name in state if ".lora_" in name}
    for name, tensor in state.items():
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part.startswith("lora_") or part == "modules_to_save"), None)
        if at is not None:
            if parts[at + 1] == adapter:  # the adapter's name is not saved, nor that of the wrapper of a whole module
                yield ".".join([*parts[: at + parts[at].startswith("lora_")], *parts[at + 2 :]]), tensor
        elif parts[-1] == "bias" and "original_module" not in parts:
            module = name.removesuffix(".bias").removesuffix(".base_layer")
            if bias == "all" or (bias == "lora_only" and module in adapted):
                yield f"{module}.bias", tensor


def _check_scales(model: nn.Module, adapter: str, config: Mapping[str, Any]) -> None:
    """Refuse a model whose scales are not those that its configuration gives."""
    settings = adapter_config(config, Path(f"A {type(model).__name__}"))
    for path, module in model.named_modules():
        scaling = getattr(module, "scaling", None)
        if not isinstance(scaling, Mapping) or adapter not in scaling:
            continue
        name = strip_wrappers(path).removeprefix(PREFIX)
        if hasattr(module, "parameter_name"):  # wraps one of `target_parameters`, maybe around another
            name = f"{name.replace('.base_layer', '')}.{module.parameter_name}"
        if abs(scaling[adapter] - settings.scale(name)) > 1e-6 * abs(settings.scale(name)):
            raise MergeError(
                f"{name!r} scales its adapter by {scaling[adapter]:g}, its configuration by {settings.scale(name):g}; "
                "undo `set_scale`, or give the method weights."
            )


def _digest(content: AdapterPair | Mapping[str, Tensor]) -> str:
    """What two contents share only if they are equal."""
    state = content.state if isinstance(content, AdapterPair) else content
    digest = hashlib.sha256()
    if isinstance(content, AdapterPair):
        digest.update(json.dumps(content.config, sort_keys=True, default=_told).encode())
    for name in sorted(state):
        tensor = state[name]
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(as_bytes(tensor))
    return digest.hexdigest()[:16]


def _told(value: Any) -> Any:
    """A setting that JSON has no form for; sets come in an order of their own in every process."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
