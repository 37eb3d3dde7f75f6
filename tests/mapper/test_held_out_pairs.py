"""The truths of the held-out pairs make models that compute the same."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.mapper.pairs.held_out import HELD_OUT
from tests.mapper.pairs.pair import Pair, randomise, shapes_of

pairs = pytest.mark.parametrize("pair", HELD_OUT, ids=lambda pair: pair.name.split(":")[0])

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def call(module: nn.Module, given: Any) -> Any:
    return module(*given) if isinstance(given, tuple) else module(given)


def is_new(pair: Pair, name: str) -> bool:
    return name.startswith(pair.new_in_target) if pair.new_in_target else False


@pairs
def test_truth_keeps_the_function(pair: Pair) -> None:
    source, target = pair.source(True).eval(), pair.target(True).eval()
    randomise(source)
    randomise(target, seed=1)
    made = pair.truth(shapes_of(source), shapes_of(target)).apply(source.state_dict())
    buffers = {name for name, _ in target.named_buffers()}
    missing, unexpected = target.load_state_dict(made, strict=False)
    assert unexpected == []
    assert [name for name in missing if name not in buffers and not is_new(pair, name)] == []
    torch.manual_seed(0)
    given = pair.inputs()
    both = (given["source"], given["target"]) if isinstance(given, dict) else (given, given)
    with torch.no_grad():
        expected, got = (pair.output(call(model, x)) for model, x in zip((source, target), both, strict=True))
    assert got.shape == expected.shape
    assert (got - expected).norm() <= 1e-4 * expected.norm()
    assert expected.std() > 0


@pairs
def test_truth_covers_the_real_target(pair: Pair) -> None:
    with torch.device("meta"):
        source, target = pair.source(False), pair.target(False)
    shapes = shapes_of(target)
    weights = pair.truth(shapes_of(source), shapes)
    made = weights.apply(source.state_dict())
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == {name: shapes[name] for name in made}
    wanted = {name for name, _ in target.named_parameters(remove_duplicate=False) if not is_new(pair, name)}
    assert wanted | {name for name in shapes if name.endswith(STATISTICS)} <= set(made)
