"""Verification: both models run; what is right is proven, what is wrong is caught, named and mended."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lit_wsl.errors import ConfigError
from lit_wsl.mapper import MappingResult, WeightMapper
from lit_wsl.mapper.complete import assemble
from lit_wsl.mapper.units import Unit
from tests.mapper.pairs.held_out import HELD_OUT
from tests.mapper.pairs.pair import Pair
from tests.mapper.pairs.registry import PAIRS

ALL = {pair.name: pair for pair in (*PAIRS, *HELD_OUT)}


@pytest.fixture
def models(request) -> tuple[Pair, nn.Module, nn.Module]:
    pair = ALL[request.param]
    return pair, pair.source(True), pair.target(True)


@pytest.mark.parametrize("models", ALL, indirect=True)
def test_every_pair_is_proven_at_the_first_reading(models):
    pair, source, target = models
    verification = WeightMapper(source, target).suggest_mapping().verify(pair.inputs(), output=pair.output)
    assert verification.is_proven
    assert verification.error <= 1e-4
    assert verification.first_divergence is None
    assert verification.tried == 1
    assert min(match.score for match in verification.result.matches) >= 0.9


def _units(result: MappingResult) -> list[Unit]:
    return list({id(match.unit): match.unit for match in result.matches if match.unit is not None}.values())


def _twins(result: MappingResult) -> list[tuple[Unit, Unit]]:
    """Pairs of matches whose targets could be exchanged, without those of tied tensors."""
    tied = {*result.source.aliases, *result.source.aliases.values()}
    units = [unit for unit in _units(result) if not tied & {module.label for module in unit.sources}]
    kept = {id(unit) for unit in units}
    pairs = [(unit, rival.other) for unit in units for rival in unit.rivals if id(rival.other) in kept]
    found = {frozenset((id(one), id(other))): (one, other) for one, other in pairs}
    same = [(a, b) for a, b in found.values() if a.sources[0].shapes() == b.sources[0].shapes()]
    return [(a, b) for a, b in same if list(a.forms) == list(b.forms)]


def _exchanged(result: MappingResult, one: Unit, other: Unit) -> MappingResult:
    """The mapping with two matches that have each other's targets."""
    change = {id(one): replace(one, targets=other.targets), id(other): replace(other, targets=one.targets)}
    units = [change.get(id(unit), unit) for unit in _units(result)]
    return replace(result, matches=tuple(assemble(units, result.source, result.target)))


@pytest.mark.parametrize("models", ["vit timm→hf", "resnet timm→hf", "gpt2 hf→litgpt", "llama hf→meta"], indirect=True)
def test_a_swap_in_any_template_is_caught_and_mended(models):
    pair, source, target = models
    result = WeightMapper(source, target).suggest_mapping()
    twins = _twins(result)
    assert twins
    for one, other in twins:
        wrong = _exchanged(result, one, other)
        assert wrong.recipes != result.recipes
        verification = wrong.verify(pair.inputs(), output=pair.output)
        assert verification.tried > 1, (one.sources[0].label, other.sources[0].label)
        assert verification.is_proven
        assert verification.result.recipes == result.recipes
        assert _evidence(verification.result) == _evidence(result)
        assert not any(match.alternatives for match in verification.result.matches)


def _evidence(result: MappingResult) -> list[tuple[float, ...]]:
    parts = ("shape", "name", "hierarchy", "order", "total")
    return [tuple(round(getattr(match.scores, part), 9) for part in parts) for match in result.matches]


@pytest.mark.parametrize(
    "models",
    ["neox hf→litgpt", "llama hf→meta", "llama hf→torchtune", "mixtral hf→litgpt", "llama litgpt→hf", "resnet timm→hf"],
    indirect=True,
)
def test_without_names_the_outputs_settle_order_heads_and_twins(models):
    pair, source, target = models
    blind = WeightMapper(source, target).suggest_mapping(threshold=0.0, strategy="shape_only")
    verification = blind.verify(pair.inputs(), output=pair.output)
    assert verification.is_proven
    assert verification.tried > 1
    assert verification.result.recipes != blind.recipes


def test_the_evidence_is_that_of_what_was_settled():
    """Twins in another order of registration: before the run order speaks for each match, after it against them."""

    class Twins(nn.Module):
        def __init__(self, *names: str) -> None:
            super().__init__()
            for name in names:
                setattr(self, name, nn.Linear(6, 6))
            self.used = sorted(names)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for name in self.used:
                x = torch.tanh(getattr(self, name)(x))
            return x

    before = WeightMapper(Twins("a", "b"), Twins("d", "c")).suggest_mapping()
    proof = before.verify(torch.randn(5, 6))
    assert proof.is_proven
    assert (before.get_mapping()["a.weight"], proof.result.get_mapping()["a.weight"]) == ("d.weight", "c.weight")
    assert before.get_score_breakdown("a.weight").order == 1.0
    assert proof.result.get_score_breakdown("a.weight").order < 0.5
    assert before.get_score_breakdown("a.weight").confidence < proof.result.get_score_breakdown("a.weight").confidence


@pytest.mark.parametrize("models", ["resnet timm→hf"], indirect=True)
def test_validate_outputs_settles_the_mapping(models):
    pair, source, target = models
    mapper = WeightMapper(source, target, dummy_input=pair.inputs())
    result = mapper.suggest_mapping(validate_outputs=True, strategy="shape_only", threshold=0.0)
    assert result.verify(pair.inputs()).tried == 1
    with pytest.raises(ConfigError, match="dummy_input"):
        WeightMapper(source, target).suggest_mapping(validate_outputs=True)


class Net(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
        self.second = nn.Sequential(nn.Linear(8, 8), activation, nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_a_difference_that_no_reading_explains_is_named():
    verification = WeightMapper(Net(nn.ReLU()), Net(nn.Tanh())).suggest_mapping().verify(torch.randn(5, 6))
    assert not verification.is_proven
    assert verification.error > 1e-2
    assert verification.first_divergence == "second.2"  # the first with weights behind the other activation


def test_the_models_are_left_as_they_were():
    source, target = Net(nn.ReLU()).train(), Net(nn.ReLU()).eval()
    source.first.eval()
    target.second[0].train()
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in (source, target)]
    modes = [[module.training for module in model.modules()] for model in (source, target)]
    result = WeightMapper(source, target).suggest_mapping()
    assert result.verify(torch.randn(5, 6)).is_proven
    with pytest.raises(ConfigError, match="source model does not run"):
        result.verify(torch.randn(5, 7))
    for model, state, mode in zip((source, target), before, modes, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert [module.training for module in model.modules()] == mode
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_cannot_run_is_refused():
    net = Net(nn.ReLU())
    with pytest.raises(ConfigError, match="both models must run"):
        WeightMapper.from_state_dict(net.state_dict(), net).suggest_mapping().verify(torch.randn(2, 6))
    with torch.device("meta"):
        empty = Net(nn.ReLU())
    with pytest.raises(ConfigError, match="target model is on the meta device"):
        WeightMapper(net, empty).suggest_mapping().verify(torch.randn(2, 6))
    with pytest.raises(ConfigError, match="target model does not run"):
        WeightMapper(net, Net(nn.ReLU())).suggest_mapping().verify(
            {"source": torch.randn(2, 6), "target": torch.randn(2, 9)}
        )


def test_every_output_counts():
    """Two towers: a swap inside the second must not hide behind the first output."""

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
            self.right = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.left(x), self.right(x)

    result = WeightMapper(Towers(), Towers()).suggest_mapping()
    by_source = {unit.sources[0].label: unit for unit in _units(result)}
    wrong = _exchanged(result, by_source["right.0.weight"], by_source["right.2.weight"])
    verification = wrong.verify(torch.randn(3, 4))
    assert verification.tried > 1
    assert verification.is_proven
