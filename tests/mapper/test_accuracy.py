"""Every pair at real size: recipes against the truth, with modules and with names and shapes alone."""

from functools import cache

import pytest
import torch
from torch import nn

from lit_wsl.mapper import MappingResult, WeightMapper
from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.compare import Differences, differences
from tests.mapper.pairs.held_out import HELD_OUT
from tests.mapper.pairs.pair import Pair, shapes_of
from tests.mapper.pairs.registry import PAIRS

ALL = [*PAIRS, *HELD_OUT]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
each_pair = pytest.mark.parametrize("pair", ALL, ids=lambda pair: pair.name.split(":")[0])


@cache
def real(at: int) -> tuple[nn.Module, nn.Module]:
    """Both models of a pair, without data."""
    with torch.device("meta"):
        return ALL[at].source(False), ALL[at].target(False)


@cache
def aliases_of(at: int) -> dict[str, str]:
    """Names of tied tensors of the source to the first of their names."""
    first: dict[int, str] = {}
    tensors = real(at)[0].state_dict(keep_vars=True).items()
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


@cache
def truth_of(at: int) -> WeightMap:
    """The true map of a pair, statistics included."""
    source, target = real(at)
    return ALL[at].truth(shapes_of(source), shapes_of(target))


def judged(at: int, result: MappingResult) -> WeightMap:
    """The part of the truth that makes what the mapper took for parameters and statistics of the target."""
    kept = {weight.name for weight in result.target.weights if weight.kind != "buffer"}
    return WeightMap(tuple(entry for entry in truth_of(at) if kept.issuperset(entry.targets)))


@cache
def mapped(at: int, mode: str, *, is_named_only: bool) -> tuple[MappingResult, Differences]:
    """The mapping of a pair, however unsure, and what is false in it."""
    source, target = real(at)
    if is_named_only:
        mapper = WeightMapper(
            source_params=shapes_of(source), target_params=shapes_of(target), buffer_matching_mode=mode
        )
    else:
        mapper = WeightMapper(source, target, buffer_matching_mode=mode)
    result = mapper.suggest_mapping(threshold=0.0)
    return result, differences(judged(at, result), result.recipes, aliases_of(at))


def scores(result: MappingResult) -> dict[str, float]:
    """Confidence of every target that is made."""
    return {target: match.score for match in result.matches for target in match.entry.targets}


def is_parameter(result: MappingResult, name: str) -> bool:
    """Whether a name of the target is a parameter."""
    return any(weight.name == name and weight.kind == "parameter" for weight in result.target.weights)


@each_pair
def test_every_parameter_is_made_as_the_truth_says(pair: Pair) -> None:
    _, false = mapped(ALL.index(pair), "exclude", is_named_only=False)
    assert not false


@each_pair
@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_statistics_follow_their_modules(pair: Pair, mode: str) -> None:
    result, false = mapped(ALL.index(pair), mode, is_named_only=False)
    made = set(result.recipes.targets())
    assert not [name for name in truth_of(ALL.index(pair)).targets() if name.endswith(STATISTICS) and name not in made]
    assert false.missing == false.wrong == ()
    assert {name for name in false.spurious if is_parameter(result, name)} == set()


@each_pair
def test_names_and_shapes_alone_are_never_surely_wrong(pair: Pair) -> None:
    result, false = mapped(ALL.index(pair), "exclude", is_named_only=True)
    sure = scores(result)
    assert {name: sure[name] for name in false.false() if sure[name] >= 0.9} == {}


@each_pair
def test_recipes_give_the_shapes_of_the_target(pair: Pair) -> None:
    source, target = real(ALL.index(pair))
    result, _ = mapped(ALL.index(pair), "exclude", is_named_only=False)
    shapes = shapes_of(target)
    made = result.apply(source.state_dict())
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == {name: shapes[name] for name in made}


def test_most_pairs_are_exact_from_names_and_shapes_alone() -> None:
    false = {pair.name: mapped(at, "exclude", is_named_only=True)[1] for at, pair in enumerate(ALL)}
    inexact = [name for name, found in false.items() if found]
    assert len(ALL) - len(inexact) >= 35, inexact


@pytest.mark.parametrize("is_named_only", [False, True])
def test_sure_matches_are_right(*, is_named_only: bool) -> None:
    """Calibration: of matches at 0.9 and above at least 99 % are right."""
    sure = right = 0
    for at in range(len(ALL)):
        result, false = mapped(at, "exclude", is_named_only=is_named_only)
        found = {name for name, score in scores(result).items() if score >= 0.9}
        sure += len(found)
        right += len(found - false.false())
    assert right >= 0.99 * sure, f"{right} of {sure}"
    assert sure > 0.8 * sum(len(truth_of(at)) for at in range(len(ALL))), "confidence says nothing if few are sure"
