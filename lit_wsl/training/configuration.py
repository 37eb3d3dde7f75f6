"""What a checkpoint says of its run: as plain values, which any reader may load."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedModel

import lit_wsl
from lit_wsl.models.architecture import unsharded_class
from lit_wsl.models.universal.layout import Layout, join
from lit_wsl.state.formats import strip_wrappers

_LEAVES = (int, float, bool, type(None), Tensor, torch.dtype, torch.device)
_ANY = "*"
"""Stands for the name of any tensor."""


def run_configuration(module: LightningModule, layout: Layout) -> dict[str, Any]:
    """Description of a module for JSON: its class, hyperparameters, adapted layers and transformers inside it."""
    return {
        "lit_wsl": lit_wsl.__version__,
        "torch": torch.__version__,
        "module": f"{type(module).__module__}.{type(module).__qualname__}",
        "hyper_parameters": _jsonable(dict(module.hparams)),
        "backbones": _backbones(module, layout),
        "adapted": {layer.name: [[part.rank, part.scale] for part in layer.parts] for layer in layout},
    }


def _backbones(module: nn.Module, layout: Layout) -> list[dict[str, Any]]:
    """Every transformers model inside a module that stands in no other one, by its path in the plain state dict."""
    found: list[dict[str, Any]] = []
    for path, part in module.named_modules():
        name = _plain_path(path, layout) if isinstance(part, PreTrainedModel) else None
        if name is None or any(name.startswith(f"{known['name']}.") or not known["name"] for known in found):
            continue
        config = _jsonable(part.config.to_diff_dict())
        found.append({"name": name, "class": unsharded_class(part).__name__, "config": config})
    return found


def _plain_path(path: str, layout: Layout) -> str | None:
    """Path of a module once PEFT's containers are gone; None for one that only an adapter has."""
    plain = layout.plain(join(strip_wrappers(path), _ANY))
    return None if plain is None else plain.removesuffix(_ANY).removesuffix(".")


def make_plain(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Values that ``torch.load(weights_only=True)`` accepts: paths become text, sets lists, dataclasses mappings.

    What cannot be expressed so, such as a function, is left out with a warning.
    """
    plain = {key: _plain(value) for key, value in values.items()}
    lost = [key for key, value in plain.items() if value is _LOST]
    if lost:
        rank_zero_warn(f"{what}: {', '.join(map(str, lost))} cannot be kept in a checkpoint as plain values; left out.")
    return {key: value for key, value in plain.items() if value is not _LOST}


_LOST = object()


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, np.generic):  # before the leaves: a `float64` is a `float`, and the safe loader refuses it
        return value.item()
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, _LEAVES):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        inner: Any = {_plain_key(key): _plain(entry) for key, entry in value.items()}
        return _LOST if _LOST in inner or any(entry is _LOST for entry in inner.values()) else inner
    if isinstance(value, list | tuple | set | frozenset):
        items = [_plain(entry) for entry in value]
        return _LOST if any(entry is _LOST for entry in items) else items
    return _LOST


def _plain_key(key: Any) -> Any:
    plain = _plain(key)
    return tuple(plain) if isinstance(plain, list) else plain


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
