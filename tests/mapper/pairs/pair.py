"""What a pair is, and how its truth is proven."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_wsl.state.remap import WeightMap

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Pair:
    """Two architectures that compute the same function, and the map between their weights.

    Builders take ``tiny``: True gives a copy small enough to run in a second (as many kinds of layers, few and narrow),
    False the real size (call it under ``torch.device("meta")``).
    """

    name: str
    source: Callable[[bool], nn.Module]
    target: Callable[[bool], nn.Module]
    truth: Callable[[Shapes, Shapes], WeightMap]
    """From the shapes of both state dicts (parameters and buffers) to the true map of all parameters and
    persistent statistics of the target that have a counterpart. Entries in canonical form; see `canonical form`."""
    inputs: Callable[[], Any]
    """Random input for the tiny pair: a tensor, or a dict with `source` and `target` where both differ."""
    output: Callable[[Any], Tensor] = lambda out: out
    """The tensor to compare, from what either model returns."""
    new_in_target: tuple[str, ...] = ()
    """Beginnings of target names that no source tensor makes (a vision tower on a language model)."""


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Random parameters and statistics, so that no two tensors may stand for one another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            random = torch.randn(tensor.shape, generator=generator) * 0.3
            tensor.copy_(random.abs() + 0.5 if name.endswith("running_var") else random)
