"""Random input for running two models: described on the command line, or guessed from the first layer."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_wsl.errors import ConfigError, WrongUsage

_DESCRIBED = re.compile(r"(?:(\w+):)?(\w+)\[([\d,]*)\]")
_TOKENS = (2, 8)
_IMAGE_SIZE = (224, 224)
_IDS = 8
"""Integers are below this number, which every vocabulary holds."""


def described_input(texts: Sequence[str]) -> Any:
    """Tensors from descriptions: ``int64[2,8]`` by position, ``input_ids:int64[2,8]`` by name.

    Raises:
        WrongUsage: If a description cannot be read, or only some have names.
    """
    parts = [_described(text) for text in texts]
    named = [name for name, _ in parts if name]
    if named and len(set(named)) < len(parts):
        raise WrongUsage("--dummy_input: name all tensors, each once, or none of them.")
    if named:
        return dict(parts)
    tensors = tuple(tensor for _, tensor in parts)
    return tensors if len(tensors) > 1 else tensors[0]


def guessed_input(source: nn.Module, target: nn.Module) -> Tensor:
    """Token ids, an image or features, as the first layer of both models takes them.

    Raises:
        ConfigError: If it cannot be told, or they differ.
    """
    first = [layer for layer in (_first_layer(source), _first_layer(target)) if layer is not None]
    kinds = {_kind(layer) for layer in first}
    sizes = {size for size in (_image_size(source), _image_size(target)) if size is not None}
    is_image = len(kinds) == 1 and isinstance(first[0], nn.Conv2d)
    if len(kinds) != 1 or (is_image and len(sizes) > 1):
        what = "cannot be told" if not kinds else "differs"
        raise ConfigError(f"What the models take {what}; describe it: `--dummy_input 'float32[1,3,224,224]'`.")
    dtype, shape = kinds.pop()
    return _random(dtype, (*shape, *(sizes or {_IMAGE_SIZE}).pop()) if is_image else shape)


def _described(text: str) -> tuple[str, Tensor]:
    match = _DESCRIBED.fullmatch(text.replace(" ", ""))
    dtype = getattr(torch, match[2], None) if match else None
    if match is None or not isinstance(dtype, torch.dtype):
        raise WrongUsage(f"--dummy_input: {text!r} cannot be read; write `int64[2,8]` or `input_ids:int64[2,8]`.")
    return match[1] or "", _random(dtype, tuple(int(size) for size in match[3].split(",") if size))


def _random(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(_IDS, shape, generator=generator).to(dtype)


def _first_layer(model: nn.Module) -> nn.Module | None:
    """The first layer that says what a model takes; an output layer may be registered before the embedding."""
    layers = list(model.modules())
    special = (layer for layer in layers if isinstance(layer, (nn.Embedding, nn.Conv2d)))
    return next(special, None) or next((layer for layer in layers if isinstance(layer, nn.Linear)), None)


def _kind(layer: nn.Module) -> tuple[torch.dtype, tuple[int, ...]]:
    """Dtype and shape of its input; height and width of an image are left out."""
    if isinstance(layer, nn.Conv2d):
        return torch.float32, (1, layer.in_channels)
    return (torch.float32, (2, layer.in_features)) if isinstance(layer, nn.Linear) else (torch.int64, _TOKENS)


def _image_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width that a model's configuration states."""
    size = getattr(getattr(model, "config", None), "image_size", None)
    known = getattr(model, "pretrained_cfg", None)
    if size is None and isinstance(known, dict):
        size = tuple(known.get("input_size", ()))[1:]
    if isinstance(size, (tuple, list)) and len(size) == 2:
        return int(size[0]), int(size[1])
    return (size, size) if isinstance(size, int) else None
