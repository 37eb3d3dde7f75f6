"""The truths of the held-out pairs are proven: the models they make compute the same, and every entry shows."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.held_out import HELD_OUT
from tests.mapper.pairs.pair import Pair, randomise, shapes_of

pairs = pytest.mark.parametrize("pair", HELD_OUT, ids=lambda pair: pair.name.split(":")[0])

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
INVISIBLE = re.compile(
    r"attention\.k_proj\.bias|self_attn\.k_proj\.bias|\.Wk\.bias|to_k\.bias|token_mixing\.Dense_1\.bias|mask_emb"
)
"""What no output tells: masks of training, biases of keys (softmax cancels them), biases that all channels share."""


def call(module: nn.Module, given: Any) -> Any:
    return module(*given) if isinstance(given, tuple) else module(given)


def enliven(module: nn.Module) -> None:
    """Random weights of a size that lets a signal through to the end of a deep net, where 0.3 would drown it."""
    for name, tensor in module.state_dict().items():
        if name.endswith("weight"):
            many = tensor.dim() > 1
            tensor.mul_((2 * len(tensor) / tensor.numel()) ** 0.5 / 0.3) if many else tensor.add_(1)


def is_new(pair: Pair, name: str) -> bool:
    return bool(pair.new_in_target) and name.startswith(pair.new_in_target)


def moved(pair: Pair) -> tuple[nn.Module, nn.Module, WeightMap]:
    """A random source, the target with its weights, and the truth."""
    source, target = pair.source(True).eval(), pair.target(True).eval()
    randomise(source)
    randomise(target, seed=1)
    with torch.no_grad():
        enliven(source)
    truth = pair.truth(shapes_of(source), shapes_of(target))
    buffers = {name for name, _ in target.named_buffers()}
    missing, unexpected = target.load_state_dict(truth.apply(source.state_dict()), strict=False)
    assert unexpected == []
    assert [name for name in missing if name not in buffers and not is_new(pair, name)] == []
    return source, target, truth


def inputs(pair: Pair) -> tuple[Any, Any]:
    torch.manual_seed(0)
    given = pair.inputs()
    return (given["source"], given["target"]) if isinstance(given, dict) else (given, given)


def distance(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pairs
@torch.no_grad()
def test_truth_keeps_the_function(pair: Pair) -> None:
    source, target, _ = moved(pair)
    given, taken = inputs(pair)
    expected, got = pair.output(call(source, given)), pair.output(call(target, taken))
    assert got.shape == expected.shape
    assert expected.std() > 0.1
    assert distance(got, expected) <= 1e-5


@pairs
@torch.no_grad()
def test_every_entry_shows_in_the_function(pair: Pair) -> None:
    _, target, truth = moved(pair)
    _, taken = inputs(pair)
    expected, state = pair.output(call(target, taken)), target.state_dict()
    for name in truth.targets():
        if not state[name].is_floating_point() or INVISIBLE.search(name):
            continue
        before = state[name].clone()
        state[name].add_(torch.rand_like(before) * 0.3)
        assert distance(pair.output(call(target, taken)), expected) > 1e-4, name
        state[name].copy_(before)


@pairs
def test_truth_covers_the_real_target(pair: Pair) -> None:
    with torch.device("meta"):
        source, target = pair.source(False), pair.target(False)
    shapes = shapes_of(target)
    made = pair.truth(shapes_of(source), shapes).apply(source.state_dict())
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == {name: shapes[name] for name in made}
    wanted = {name for name, _ in target.named_parameters(remove_duplicate=False) if not is_new(pair, name)}
    assert wanted | {name for name in shapes if name.endswith(STATISTICS)} <= set(made)
