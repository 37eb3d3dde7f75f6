"""The mapper as its users call it: options and their errors, sources of every kind, and what a result can do."""

import json
import pickle
import struct
import time
from contextlib import nullcontext
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.mapper import WeightMap, WeightMapper
from lit_wsl.mapper.mapper import MODES, STRATEGIES

GIB = 1 << 30


def net(classes: int = 5) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )


class Renamed(nn.Module):
    """The same, with names."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


NAMES = {"0": "conv", "1": "norm", "4": "head"}
EXPECTED = {f"{old}.{leaf}": f"{new}.{leaf}" for old, new in NAMES.items() for leaf in ("weight", "bias")}


# Options


@pytest.mark.parametrize("mode", ["exclud", "", "EXCLUDE", None])
def test_an_unknown_mode_lists_the_three(mode: str) -> None:
    with pytest.raises(ConfigError, match=", ".join(MODES)):
        WeightMapper(net(), net(), buffer_matching_mode=mode)


def test_an_unknown_strategy_lists_all() -> None:
    with pytest.raises(ConfigError, match=f"{', '.join(STRATEGIES)}.*Did you mean 'greedy'"):
        WeightMapper(net(), net()).suggest_mapping(strategy="greedyy")


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_threshold_lies_between_zero_and_one(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        WeightMapper(net(), net()).suggest_mapping(threshold)


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan"), float("inf")])
def test_a_tolerance_is_a_share(tolerance: float) -> None:
    with pytest.raises(ConfigError, match="shape_tolerance"):
        WeightMapper(net(), net(), shape_tolerance=tolerance)


@pytest.mark.parametrize("side", ["source", "target"])
def test_each_side_is_given_once(side: str) -> None:
    other = {f"{'target' if side == 'source' else 'source'}_module": net()}
    with pytest.raises(ConfigError, match=f"`{side}_module` or `{side}_params`; neither"):
        WeightMapper(**other)
    with pytest.raises(ConfigError, match=f"`{side}_module` or `{side}_params`; both"):
        WeightMapper(**other, **{f"{side}_module": net(), f"{side}_params": {"a": (1,)}})


def test_a_state_dict_is_no_module() -> None:
    with pytest.raises(ConfigError, match="`source_module` is a .*source_params"):
        WeightMapper(net().state_dict(), net())


@pytest.mark.parametrize("params", [3, 2.5, [("a", (1,))]])
def test_wrong_types_of_params_are_told(params: object) -> None:
    with pytest.raises(ConfigError, match=f"got {type(params).__name__}"):
        WeightMapper(source_params=params, target_module=net())


@pytest.mark.parametrize("empty", [nn.ReLU(), {}])
def test_a_model_without_tensors_is_refused(empty: object) -> None:
    given = {"source_module": empty} if isinstance(empty, nn.Module) else {"source_params": empty}
    with pytest.raises(ConfigError, match="no tensors"):
        WeightMapper(target_module=net(), **given)


@pytest.mark.parametrize("value", ["text", None, 3, (1, "2"), (-1,), (True,)])
def test_an_entry_that_is_no_tensor_is_named(value: object) -> None:
    with pytest.raises(ConfigError, match="'epoch' is a .*leave it out"):
        WeightMapper.from_state_dict({"0.weight": (8, 3, 3, 3), "epoch": value}, net())


def test_a_lazy_module_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'0.weight' has no shape yet; run the lazy module once"):
        WeightMapper(nn.Sequential(nn.LazyLinear(3)), net())


@pytest.mark.parametrize("pairs", [[("a",)], [("a", "b", "c")], [("", "b")], [("a", 3)]])
def test_incompatible_pairs_are_pairs_of_names(pairs: list) -> None:
    with pytest.raises(ConfigError, match="pairs of names"):
        WeightMapper(net(), net(), incompatible_pairs=pairs)


@pytest.mark.parametrize("weights", [{"names": 1.0}, {"name": -1.0}, {"name": float("nan")}, {"name": 0.0}, {}])
def test_weights_are_of_known_parts_and_not_all_zero(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="weights"):
        WeightMapper(net(), net()).suggest_mapping(weights=weights)


def test_validation_needs_an_input() -> None:
    with pytest.raises(ConfigError, match="dummy_input"):
        WeightMapper(net(), net()).suggest_mapping(validate_outputs=True)


# Sources


def test_all_kinds_of_source_give_the_same_recipes(tmp_path: Path) -> None:
    source, target = net(), Renamed()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "model.ckpt")
    shapes = {name: tuple(tensor.shape) for name, tensor in source.state_dict().items()}
    mappers = [
        WeightMapper(source, target),
        WeightMapper.from_state_dict(source.state_dict(), target),
        WeightMapper.from_state_dict(shapes, target),
        WeightMapper.from_checkpoint(tmp_path / "model.safetensors", target),
        WeightMapper.from_checkpoint(str(tmp_path), target),
        WeightMapper.from_checkpoint(tmp_path / "model.ckpt", target),
    ]
    assert [mapper.suggest_mapping().get_mapping() for mapper in mappers] == [EXPECTED] * len(mappers)


def sparse_checkpoint(path: Path) -> None:
    """A safetensors file of one gigabyte that occupies no disk."""
    header = json.dumps({"fc.weight": {"dtype": "F32", "shape": [1 << 14, 1 << 14], "data_offsets": [0, GIB]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + GIB)


def test_only_the_header_of_a_checkpoint_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    sparse_checkpoint(path)
    with torch.device("meta"):
        target = nn.ModuleDict({"head": nn.Linear(1 << 14, 1 << 14, bias=False)})
    WeightMapper.from_checkpoint(path, target)
    begin = time.perf_counter()
    mapper = WeightMapper.from_checkpoint(path, target)
    assert time.perf_counter() - begin < 0.2
    assert mapper.suggest_mapping(threshold=0.0).get_mapping() == {"fc.weight": "head.weight"}


def test_only_the_header_of_a_torch_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"fc.weight": torch.zeros(1 << 12, 1 << 10)}, path)
    begin = time.perf_counter()
    mapper = WeightMapper.from_checkpoint(path, target_params={"fc.weight": (1 << 12, 1 << 10)})
    assert time.perf_counter() - begin < 0.5
    assert mapper.source.weights[0].shape == (1 << 12, 1 << 10)


class Bomb:
    """Code that a pickle would run."""

    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('the pickle ran')",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Bomb()}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb()))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match=name):
            WeightMapper.from_checkpoint(tmp_path / name, net())


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    if suffix == "pt":
        torch.save(net().state_dict(), path)
    else:
        save_file(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="model"):
        WeightMapper.from_checkpoint(path, net())


def test_a_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    for at in (1, 2):
        save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / f"model-0000{at}-of-00002.safetensors")
    with pytest.raises(CheckpointError):
        WeightMapper.from_checkpoint(tmp_path, target_params={"fc.weight": (2, 2)})


def test_a_missing_file_is_told() -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        WeightMapper.from_checkpoint("nowhere.safetensors", net())


def test_heads_are_read_beside_the_weights(llama_dir: Path) -> None:
    config = json.loads((Path(llama_dir) / "config.json").read_text())
    mapper = WeightMapper.from_checkpoint(llama_dir, target_params=llama_dir)
    assert mapper.source.heads == config["num_attention_heads"]
    assert mapper.source.kv_heads == config["num_key_value_heads"]
    assert mapper.source.is_tied
    result = mapper.suggest_mapping()
    assert all(match.entry.sources == match.entry.targets for match in result.matches)


# Names of wrappers, tied weights


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.", "_fsdp_wrapped_module."])
def test_wrappers_do_not_matter(prefix: str) -> None:
    wrapped = {prefix + name: tensor for name, tensor in Renamed().state_dict().items()}
    made = WeightMapper.from_state_dict(wrapped, Renamed()).suggest_mapping().get_mapping()
    assert made == {f"{prefix}{name}": name for name in EXPECTED.values()}


class Tied(nn.Module):
    """An output layer that shares the embedding."""

    def __init__(self, *, is_tied: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.norm = nn.LayerNorm(4)
        self.lm_head = nn.Linear(4, 11, bias=False)
        if is_tied:
            self.lm_head.weight = self.embed.weight


@pytest.mark.parametrize("is_source_tied", [False, True])
@pytest.mark.parametrize("is_target_tied", [False, True])
def test_tied_weights_are_made_under_every_name(is_source_tied: bool, is_target_tied: bool) -> None:  # noqa: FBT001
    source, target = Tied(is_tied=is_source_tied), Tied(is_tied=is_target_tied)
    result = WeightMapper(source, target).suggest_mapping()
    made = result.apply(source.state_dict())
    assert set(made) == set(target.state_dict())
    assert torch.equal(made["embed.weight"], source.embed.weight)
    assert torch.equal(made["lm_head.weight"], source.lm_head.weight)


# Choices of the user


def test_incompatible_pairs_are_not_matched() -> None:
    def made(*pairs: tuple[str, str]) -> dict[str, str]:
        mapper = WeightMapper(net(), Renamed(), incompatible_pairs=pairs)
        return mapper.suggest_mapping(threshold=0.0).get_mapping()

    assert made() == EXPECTED
    assert "4.weight" not in made(("4.*", "head.*"))
    assert "4.weight" not in made(("head.*", "4.*"))
    assert "4.weight" not in made(("4.weight", "head"))
    assert made(("5.*", "head.*")) == EXPECTED


def test_weights_are_scaled() -> None:
    mapper = WeightMapper(net(), Renamed())
    one = mapper.suggest_mapping(weights={"shape": 1, "name": 1, "hierarchy": 1, "order": 1})
    two = mapper.suggest_mapping(weights={"shape": 9, "name": 9, "hierarchy": 9, "order": 9})
    assert one.get_mapping_with_scores() == two.get_mapping_with_scores()
    assert one.get_score_breakdown("0.weight").total <= 1.0


def test_conservative_keeps_what_is_likely() -> None:
    mapper = WeightMapper(source_params={"a": (3,), "b": (3,)}, target_params={"x": (3,), "y": (3,)})
    assert mapper.suggest_mapping(strategy="conservative").threshold == 0.75
    assert mapper.suggest_mapping(0.9, strategy="conservative").threshold == 0.9
    assert all(match.score >= 0.75 for match in mapper.suggest_mapping(strategy="conservative").matches)


def test_best_match_is_another_name_of_optimal() -> None:
    mapper = WeightMapper(net(), Renamed())
    assert mapper.suggest_mapping(strategy="best_match").matches == mapper.suggest_mapping().matches


def test_shape_tolerance_names_near_misses_and_maps_none() -> None:
    source, target = {"fc.weight": (10, 10)}, {"head.weight": (10, 11)}
    for tolerance, is_named in ((0.0, False), (0.05, False), (0.1, True), (0.5, True)):
        mapper = WeightMapper(None, None, tolerance, source_params=source, target_params=target)
        unmatched = mapper.suggest_mapping(threshold=0.0).get_unmatched()
        assert ("(10, 11)" in unmatched["fc.weight"]) is is_named
        assert unmatched["target"] == ["head.weight"]


# The order of execution


class Twins(nn.Module):
    """Equal layers, registered in one order and run in another."""

    def __init__(self, registered: str, run: str) -> None:
        super().__init__()
        for name in registered.split():
            self.register_module(name, nn.Linear(4, 4))
        self.run = run.split()

    def forward(self, x: Tensor) -> Tensor:
        for name in self.run:
            x = torch.tanh(self.get_submodule(name)(x))
        return x


def test_the_order_of_execution_counts_more_than_that_of_registration() -> None:
    source, target = Twins("ab cd ef", "ab cd ef"), Twins("zu yv xw", "xw zu yv")
    registered = WeightMapper(source, target).suggest_mapping(threshold=0.0).get_mapping()
    run = WeightMapper(source, target, dummy_input=torch.randn(2, 4)).suggest_mapping(threshold=0.0).get_mapping()
    assert [registered[f"{name}.weight"] for name in source.run] == ["zu.weight", "yv.weight", "xw.weight"]
    assert [run[f"{name}.weight"] for name in source.run] == ["xw.weight", "zu.weight", "yv.weight"]


@pytest.mark.parametrize("size", [4, 5])
def test_models_keep_their_modes_also_when_the_input_fails(size: int) -> None:
    source, target = Twins("ab cd", "ab cd"), Twins("xw zu", "xw zu")
    source.train()
    source.ab.eval()
    target.eval()
    target.zu.train()
    before = [[child.training for child in model.modules()] for model in (source, target)]
    fails = pytest.raises(ConfigError, match="does not run on the dummy input")
    with fails if size == 5 else nullcontext():
        WeightMapper(source, target, dummy_input=torch.randn(2, size))
    assert [[child.training for child in model.modules()] for model in (source, target)] == before
    assert not any(child._forward_pre_hooks for model in (source, target) for child in model.modules())


# Results


def test_a_filtered_result_agrees_with_itself() -> None:
    shapes = {"a.weight": (3, 4), "b.weight": (3, 4), "norm.weight": (7,), "odd.weight": (9, 9)}
    target = {"x.weight": (3, 4), "y.weight": (3, 4), "norm.weight": (7,), "rest.weight": (2, 2)}
    result = WeightMapper(source_params=shapes, target_params=target).suggest_mapping(threshold=0.0)
    for least in (0.0, 0.5, 0.9, 0.9999, 1.0):
        kept = result.filter_by_score(least)
        made = kept.get_mapping()
        assert all(score >= least for _, score in kept.get_mapping_with_scores().values())
        assert set(kept.recipes.sources()) == set(made)
        assert set(kept.recipes.targets()) == set(made.values())
        unmatched = kept.get_unmatched()
        assert set(unmatched) == set(unmatched["source"]) == set(shapes) - set(made)
        assert set(unmatched["target"]) == set(target) - set(made.values())
        assert kept.coverage == len(made) / len(shapes)
        assert kept.threshold == least
    assert "below 1" in result.filter_by_score(1.0).get_unmatched()["a.weight"]


def test_unmatched_is_a_dictionary_that_also_gives_both_sides() -> None:
    unmatched = WeightMapper(net(), Renamed(6)).suggest_mapping().get_unmatched()
    assert list(unmatched) == unmatched["source"] == ["4.weight", "4.bias"]
    assert unmatched["target"] == ["head.weight", "head.bias"]
    assert len(unmatched) == 2
    assert all(unmatched.values())
    with pytest.raises(KeyError):
        unmatched["sauce"]


def test_low_confidence_matches_are_those_below() -> None:
    result = WeightMapper(net(), Renamed()).suggest_mapping(threshold=0.0)
    scored = result.get_mapping_with_scores()
    assert result.get_low_confidence_matches(1.01) == scored
    assert result.get_low_confidence_matches(0.0) == {}
    assert result.get_low_confidence_matches() == {name: pair for name, pair in scored.items() if pair[1] < 0.7}


def test_a_saved_result_is_read_and_applied_and_turned_back(tmp_path: Path) -> None:
    source, target = net(), Renamed()
    result = WeightMapper(source, target, buffer_matching_mode="strict").suggest_mapping()
    result.save(tmp_path / "map.json")
    assert WeightMap.load(tmp_path / "map.json") == result.recipes
    made = result.apply(source.state_dict())
    target.load_state_dict(made)
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(target.eval()(x), source.eval()(x))
    back = result.inverse().apply(made)
    assert back.keys() == source.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in source.state_dict().items())


def test_a_breakdown_is_of_mapped_tensors_and_in_bounds() -> None:
    mapper = WeightMapper(net(), Renamed())
    parts = mapper.get_score_breakdown("0.weight")
    for part in (parts.shape, parts.name, parts.hierarchy, parts.order, parts.total, parts.confidence):
        assert 0.0 <= part <= 1.0
    with pytest.raises(ConfigError, match="'0.weigh' is not mapped. Did you mean '0.weight'"):
        mapper.get_score_breakdown("0.weigh")


def test_a_result_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        WeightMapper(net(), net()).suggest_mapping().threshold = 0.5


def test_the_mapper_answers_for_its_last_mapping(tmp_path: Path) -> None:
    mapper = WeightMapper(net(), Renamed(6))
    assert mapper.get_mapping_dict() == {name: new for name, new in EXPECTED.items() if name[0] != "4"}
    mapper.suggest_mapping(threshold=1.0)
    assert mapper.get_mapping_dict() == {}
    assert len(mapper.get_unmatched()) == 6
    mapper.export_mapping_report(tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["matched_count"] == 0
    assert report["source_params_count"] == 6


def test_alternatives_name_tensors_of_the_same_kind() -> None:
    shapes = {f"{name}.{leaf}": (8,) for name in ("left", "right") for leaf in ("weight", "bias")}
    other = {name.replace("left", "one").replace("right", "two"): shape for name, shape in shapes.items()}
    matches = WeightMapper(source_params=shapes, target_params=other).suggest_mapping(threshold=0.0).matches
    found = {match.entry.targets[0]: match.alternatives for match in matches}
    assert found["one.weight"] == ("two.weight",)
    assert found["one.bias"] == ("two.bias",)


def test_a_parameter_of_any_name_is_the_weight_beside_a_bias() -> None:
    source = {"a.weight": (6, 4), "a.bias": (6,), "b.weight": (4, 6), "b.bias": (4,)}
    target = {"x.matrix": (4, 6), "x.bias": (6,), "y.matrix": (6, 4), "y.bias": (4,)}
    recipes = WeightMapper(source_params=source, target_params=target).suggest_mapping(threshold=0.0).recipes
    assert {entry.targets[0]: entry.sources[0] for entry in recipes.entries} == {
        "x.matrix": "a.weight",
        "x.bias": "a.bias",
        "y.matrix": "b.weight",
        "y.bias": "b.bias",
    }


def test_a_fused_projection_of_any_name_is_laid_along_rows() -> None:
    """That a parameter outside the blocks lies turned says nothing about those inside."""
    parts = ("q_proj", "k_proj", "v_proj")
    source = {f"layers.{at}.attention.{name}.weight": (8, 8) for at in range(2) for name in parts}
    target = {f"blocks.{at}.attention.qkv_matrix": (24, 8) for at in range(2)}
    source |= {f"layers.{at}.norm.weight": (8,) for at in range(2)} | {"out.weight": (5, 8)}
    target |= {f"blocks.{at}.norm.weight": (8,) for at in range(2)} | {"projection": (8, 5)}
    recipes = WeightMapper(source_params=source, target_params=target).suggest_mapping(threshold=0.0).recipes
    made = {entry.targets[0]: [type(step).__name__ for step in entry.operations] for entry in recipes.entries}
    assert made["blocks.0.attention.qkv_matrix"] == ["Fuse"]
    assert made["projection"] == ["Transpose"]


def test_a_tied_target_of_an_untied_source_is_noted() -> None:
    source, target = (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)) for _ in range(2))
    target[1].weight = target[0].weight
    result = WeightMapper(source, target).suggest_mapping(threshold=0.0)
    assert {match.entry.targets[0]: match.note for match in result.matches} == {
        "0.weight": "",
        "1.weight": "the target ties it to '0.weight', which has another source: one of them is lost",
    }
