"""Laws of every mapping: identity, renaming, order of registration, hash seeds, shapes, unequal models."""

import json
import os
import re
import string
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel

from lit_wsl.mapper import MappingResult, WeightMap, WeightMapper
from lit_wsl.mapper.mapper import MODES, STRATEGIES
from tests.mapper.pairs.compare import differences
from tests.mapper.pairs.held_out import HELD_OUT
from tests.mapper.pairs.pair import Pair, Shapes, shapes_of
from tests.mapper.pairs.registry import PAIRS

ALL = [*PAIRS, *HELD_OUT]
BY_NAME = {pair.name.split(":")[0]: pair for pair in ALL}
UNLIKE = ("resnet timm→hf", "bert hf→renamed", "gpt2 hf→nanogpt", "llama hf→meta", "swin_t", "mixer_b16", "unet")
each_pair = pytest.mark.parametrize("pair", ALL, ids=list(BY_NAME))


@cache
def tiny(name: str) -> tuple[nn.Module, nn.Module]:
    """Both models of a pair, small and without data."""
    with torch.device("meta"):
        return BY_NAME[name].source(True), BY_NAME[name].target(True)


def models(pair: Pair) -> tuple[nn.Module, nn.Module]:
    return tiny(pair.name.split(":")[0])


def assert_fits(result: MappingResult, source: nn.Module, target: nn.Module) -> None:
    """Every recipe runs, makes tensors of the target only, each once, in its shape."""
    made, shapes = result.apply(source.state_dict()), shapes_of(target)
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == {name: shapes.get(name) for name in made}
    assert len(result.recipes.targets()) == len(set(result.recipes.targets()))


def scores(result: MappingResult) -> dict[str, float]:
    return {target: match.score for match in result.matches for target in match.entry.targets}


# A model onto itself


@each_pair
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_model_is_copied_onto_itself(pair: Pair, strategy: str) -> None:
    for model in models(pair):
        result = WeightMapper(model, model).suggest_mapping(strategy=strategy)
        found = differences(_identity(result.target.names()), result.recipes, result.source.aliases)
        assert found.wrong == found.spurious == ()
        assert found.missing == () or strategy == "conservative"


def _identity(names: list[str]) -> WeightMap:
    return WeightMap.from_json(
        {"version": 1, "entries": [{"sources": [name], "operations": [], "targets": [name]} for name in names]}
    )


@each_pair
def test_only_twins_leave_a_model_unsure_of_itself(pair: Pair) -> None:
    """Each unsure match names another target of the same shape."""
    for model in models(pair):
        shapes = shapes_of(model)
        for match in WeightMapper(model, model).suggest_mapping().matches:
            if match.score < 0.9:
                assert match.alternatives
                assert all(other in shapes for other in match.alternatives)


# Shapes


@each_pair
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_recipe_gives_the_shape_of_its_target(pair: Pair, mode: str, strategy: str) -> None:
    source, target = models(pair)
    mapper = WeightMapper(source, target, buffer_matching_mode=mode)
    for threshold in (None, 0.0, 0.5, 0.9):
        result = mapper.suggest_mapping(threshold, strategy=strategy)
        assert_fits(result, source, target)
        assert all(score >= result.threshold for score in scores(result).values())


@each_pair
def test_no_target_without_a_truth_is_made(pair: Pair) -> None:
    source, target = models(pair)
    result = WeightMapper(source, target).suggest_mapping()
    truth = pair.truth(shapes_of(source), shapes_of(target))
    assert differences(truth, result.recipes, result.source.aliases).spurious == ()


@pytest.mark.parametrize("one", UNLIKE)
@pytest.mark.parametrize("two", UNLIKE)
def test_unlike_models_share_little(one: str, two: str) -> None:
    if one == two:
        return
    source, target = tiny(one)[0], tiny(two)[1]
    for mode in MODES:
        result = WeightMapper(source, target, buffer_matching_mode=mode).suggest_mapping(threshold=0.0)
        assert_fits(result, source, target)


@pytest.mark.parametrize("other", ["bert hf→renamed", "gpt2 hf→nanogpt", "llama hf→meta", "roberta_base"])
def test_a_convolutional_network_gives_a_transformer_nothing(other: str) -> None:
    result = WeightMapper(tiny("resnet timm→hf")[0], tiny(other)[1]).suggest_mapping()
    assert not [match.entry for match in result.matches if match.score >= 0.9]
    assert len(result.recipes.targets()) <= 0.15 * len(result.target.weights)


# Names that say nothing


def _renamed(shapes: Shapes, words: dict[str, str]) -> dict[str, tuple[int, ...]]:
    return {".".join(words.get(part, part) for part in name.split(".")): shape for name, shape in shapes.items()}


def _path_words(shapes: Shapes) -> list[str]:
    """Words of paths, save the kinds of tensor that every model shares, and numbers."""
    kinds = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    parts = {part for name in shapes for part in name.split(".")}
    return sorted(part for part in parts if part not in kinds and not part.isdigit())


RENAMED = (
    "vit timm→hf",
    "resnet timm→hf",
    "gpt2 hf→nanogpt",
    "llama hf→meta",
    "bert hf→renamed",
    "mixer_b16",
    "t5_small",
    "clip hf→open_clip",
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(RENAMED), data=st.data())
def test_random_names_mislead_nobody(name: str, data: st.DataObject) -> None:
    """No recipe of a wrong shape, and no wrong one that is sure of itself."""
    source, target = tiny(name)
    shapes = shapes_of(target)
    words = _path_words(shapes)
    made = data.draw(
        st.lists(
            st.text(string.ascii_lowercase, min_size=6, max_size=9),
            min_size=len(words),
            max_size=len(words),
            unique=True,
        )
    )
    new = dict(zip(words, made, strict=True))
    renamed = _renamed(shapes, new)
    result = WeightMapper(source_params=shapes_of(source), target_params=renamed).suggest_mapping(threshold=0.0)
    back = dict(zip(renamed, shapes, strict=True))
    applied = result.apply(source.state_dict())
    assert {key: tuple(tensor.shape) for key, tensor in applied.items()} == {key: renamed[key] for key in applied}
    truth = BY_NAME[name].truth(shapes_of(source), shapes)
    aliases = WeightMapper(source, target).source.aliases
    recipes = WeightMap.from_json(_with_targets(result.recipes.to_json(), back))
    false = differences(truth, recipes, aliases).false()
    sure = {back[key]: score for key, score in scores(result).items()}
    assert {key: sure[key] for key in false if sure[key] >= 0.9} == {}


def _with_targets(recipes: dict, names: dict[str, str]) -> dict:
    entries = [{**entry, "targets": [names[name] for name in entry["targets"]]} for entry in recipes["entries"]]
    return {**recipes, "entries": entries}


@pytest.mark.parametrize("name", RENAMED)
@pytest.mark.parametrize("side", ["source", "target"])
def test_other_order_of_registration_misleads_nobody(name: str, side: str) -> None:
    source, target = (shapes_of(model) for model in tiny(name))
    truth = BY_NAME[name].truth(source, target)
    aliases = WeightMapper(*tiny(name)).source.aliases
    for seed in range(3):
        chosen = source if side == "source" else target
        keys = [list(chosen)[at] for at in torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))]
        mixed = {key: chosen[key] for key in keys}
        params = (mixed, target) if side == "source" else (source, mixed)
        result = WeightMapper(source_params=params[0], target_params=params[1]).suggest_mapping(threshold=0.0)
        false = differences(truth, result.recipes, aliases).false()
        sure = scores(result)
        assert {key: sure[key] for key in false if sure[key] >= 0.9} == {}


# The same bytes


SCRIPT = """
import json, sys
from pathlib import Path
from lit_wsl.mapper import WeightMapper
folder = Path(sys.argv[1])
for at, (source, target) in enumerate(json.loads((folder / "pairs.json").read_text())):
    for mode in ("exclude", "lenient"):
        mapper = WeightMapper(source_params=source, target_params=target, buffer_matching_mode=mode)
        result = mapper.suggest_mapping(threshold=0.0)
        print(json.dumps(result.recipes.to_json()), result.get_mapping_with_scores(), result.get_unmatched())
        print([(match.alternatives, match.note) for match in result.matches])
        mapper.export_mapping_report(folder / f"{sys.argv[2]}.json")
        print((folder / f"{sys.argv[2]}.json").read_text())
"""


def test_hash_seeds_change_no_byte(tmp_path: Path) -> None:
    pairs = [[shapes_of(model) for model in models(pair)] for pair in ALL[::5]]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    (tmp_path / "script.py").write_text(SCRIPT)
    said = set()
    for seed in range(5):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(Path.cwd())}
        command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), f"report{seed}"]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
        said.add(re.sub(r"report\d", "report", run.stdout))
    assert len(said) == 1
    assert len(said.pop()) > 50_000


def test_a_second_mapping_is_the_first_again() -> None:
    mapper = WeightMapper(*tiny("swin_t"))
    assert mapper.suggest_mapping().matches == mapper.suggest_mapping().matches


# Unequal models


def bert(depth: int = 4, width: int = 32, vocabulary: int = 60) -> BertModel:
    with torch.device("meta"):
        return BertModel(
            BertConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=4,
                intermediate_size=4 * width,
                max_position_embeddings=16,
            )
        )


@pytest.mark.parametrize(("one", "two"), [(12, 24), (24, 12)])
def test_of_lists_of_other_length_the_first_blocks_match_unsurely(one: int, two: int) -> None:
    source, target = bert(one), bert(two)
    result = WeightMapper(source, target).suggest_mapping()
    assert_fits(result, source, target)
    shared = min(one, two)
    assert {match.entry.sources for match in result.matches} == {match.entry.targets for match in result.matches}
    for match in result.matches:
        assert match.entry.sources == match.entry.targets
        block = re.search(r"encoder\.layer\.(\d+)\.", match.entry.targets[0])
        if block:
            assert int(block[1]) < shared
            assert match.score <= 0.5
            assert "longer" in match.note
            assert match.is_ambiguous
        else:
            assert match.score >= 0.9
    left = result.get_unmatched()["source" if one > two else "target"]
    assert len(left) == 12 * 16
    assert len(result.get_low_confidence_matches()) == 12 * 16


def test_a_wider_model_gets_nothing_and_every_reason_names_both_shapes() -> None:
    result = WeightMapper(bert(), bert(width=64)).suggest_mapping(threshold=0.0)
    assert result.matches == ()
    for name, reason in result.get_unmatched().items():
        assert reason.count("32") + reason.count("128") >= 1, name
        assert reason.count("64") + reason.count("256") >= 1, name


def test_a_resized_vocabulary_costs_the_embedding_alone() -> None:
    result = WeightMapper(bert(), bert(vocabulary=70)).suggest_mapping()
    embedding = "embeddings.word_embeddings.weight"
    assert result.get_unmatched() == {embedding: "its shape (60, 32) differs from the target's (70, 32)"}
    assert result.get_unmatched()["target"] == [embedding]
    assert all(match.entry.sources == match.entry.targets and match.score >= 0.9 for match in result.matches)


def test_layers_of_unequal_shape_are_not_stacked() -> None:
    source = {
        f"layers.{at}.{name}": (width,) if name == "gamma" else (width, 3)
        for at, width in enumerate((4, 6, 6, 6))
        for name in ("gamma", "fc.weight")
    }
    assert not WeightMapper(source_params=source, target_params={"q.weight": (4, 4)}).suggest_mapping(0.0).matches
