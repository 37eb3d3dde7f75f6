"""The truth of every pair is proven: weights moved by it give the same function."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_wsl.state.remap import Entry, WeightMap

from .pairs.pair import Pair, randomise, shapes_of
from .pairs.registry import PAIRS

TOLERANCE = 1e-4
WITHOUT_EFFECT = ("k_proj.bias", "wk.bias")
"""Without rotary embeddings the softmax does not see a bias of the keys."""

each_pair = pytest.mark.parametrize("pair", PAIRS, ids=[pair.name for pair in PAIRS])


def _call(model: nn.Module, inputs: Any) -> Any:
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _load(pair: Pair, source: nn.Module, target: nn.Module, truth: WeightMap) -> None:
    missing, unexpected = target.load_state_dict(truth.apply(source.state_dict()), strict=False)
    parameters = dict(target.named_parameters(remove_duplicate=False))
    assert not unexpected
    assert not [name for name in missing if name in parameters and not name.startswith(pair.new_in_target or "\0")]


def _strengthen(module: nn.Module) -> None:
    """Gains away from zero, so that no tensor is drowned by the gains above it."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.dim() == 1 and name.endswith(("weight", "scale", "gamma", "layer_scale_parameter")):
                tensor.copy_(tensor.abs() + 0.5)


def _built(pair: Pair, change: Any = None) -> tuple[nn.Module, nn.Module]:
    """Both tiny models after the truth, perhaps changed, moved the weights."""
    torch.manual_seed(0)
    source, target = pair.source(True).eval(), pair.target(True).eval()  # noqa: FBT003
    randomise(source, seed=1)
    randomise(target, seed=2)
    _strengthen(source)
    truth = pair.truth(shapes_of(source), shapes_of(target))
    _load(pair, source, target, change(truth, source.state_dict()) if change else truth)
    return source, target


@torch.no_grad()
def _outputs(pair: Pair, source: nn.Module, target: nn.Module) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    inputs = pair.inputs()
    given, taken = (inputs["source"], inputs["target"]) if isinstance(inputs, dict) else (inputs, inputs)
    return pair.output(_call(source, given)), pair.output(_call(target, taken))


def _error(pair: Pair, source: nn.Module, target: nn.Module) -> float:
    """Relative error of the target's output."""
    expected, got = _outputs(pair, source, target)
    assert expected.isfinite().all()
    return float((got - expected).norm() / expected.norm())


def _swap_two(truth: WeightMap, state: dict[str, Tensor]) -> WeightMap:
    """The sources of the first two interchangeable weights of one shape are swapped."""
    seen: dict[Any, Entry] = {}
    for entry in truth:
        if not entry.targets[0].endswith(("weight", "scale")) or "proj" in entry.targets[0]:
            continue
        kind = (tuple(state[name].shape for name in entry.sources), entry.operations)
        first = seen.setdefault(kind, entry)
        if first.sources != entry.sources and not torch.equal(state[first.sources[0]], state[entry.sources[0]]):
            swapped = {first: replace(first, sources=entry.sources), entry: replace(entry, sources=first.sources)}
            return WeightMap(tuple(swapped.get(each, each) for each in truth))
    raise AssertionError("no two weights of one shape")


@each_pair
def test_the_truth_gives_the_same_function(pair: Pair) -> None:
    assert _error(pair, *_built(pair)) <= TOLERANCE


@each_pair
def test_a_swapped_pair_of_entries_gives_another_function(pair: Pair) -> None:
    assert _error(pair, *_built(pair, _swap_two)) > 10 * TOLERANCE


@each_pair
def test_every_entry_of_the_truth_has_an_effect(pair: Pair) -> None:
    source, target = _built(pair)
    made = pair.truth(shapes_of(source), shapes_of(target)).targets()
    state = target.state_dict()
    for name in made:
        if not state[name].is_floating_point() or (name.endswith(WITHOUT_EFFECT) and not pair.name.startswith("qwen2")):
            continue
        right = state[name].clone()
        with torch.no_grad():
            state[name].copy_(right.flip(0) * 1.5 + 0.1)
            assert _error(pair, source, target) > 10 * TOLERANCE, name
            state[name].copy_(right)


@each_pair
def test_the_truth_covers_the_target_at_real_size(pair: Pair) -> None:
    with torch.device("meta"):
        source, target = pair.source(False), pair.target(False)  # noqa: FBT003
    made = pair.truth(shapes_of(source), shapes_of(target)).apply(source.state_dict())
    shapes = shapes_of(target)
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == {name: shapes[name] for name in made}
    parameters = {name for name, _ in target.named_parameters(remove_duplicate=False)}
    statistics = {name for name in shapes if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    left = {name for name in parameters | statistics if not name.startswith(pair.new_in_target or "\0")}
    assert left == set(made)
