"""Every example, table row, statement and code block of the guide to lenient buffer matching."""

import re
from collections.abc import Mapping

import pytest
from torch import nn

from lit_wsl.errors import ConfigError
from lit_wsl.mapper import MappingResult, WeightMapper

Shapes = dict[str, tuple[int, ...]]
MODES = ("strict", "lenient", "exclude")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def norm(size: int, *, statistics: int | None) -> Shapes:
    """A batch normalization; ``statistics`` is the size of its buffers."""
    trained: Shapes = {"bn.weight": (size,), "bn.bias": (size,)}
    if statistics is None:
        return trained
    return {**trained, "bn.running_mean": (statistics,), "bn.running_var": (statistics,), "bn.num_batches_tracked": ()}


def mapped(source: Mapping[str, tuple[int, ...]], target: Mapping[str, tuple[int, ...]], mode: str) -> MappingResult:
    mapper = WeightMapper(source_params=source, target_params=target, buffer_matching_mode=mode)
    return mapper.suggest_mapping(threshold=0.0)


def block(classes: int = 5) -> nn.Sequential:
    """Convolution, batch normalization, and a head."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, classes))


# Usage


def test_default_behavior() -> None:
    """Section "Default Behavior (Recommended)"."""
    source_model, target_model = block(), block()
    mapper = WeightMapper(
        source_module=source_model,
        target_module=target_model,
        # buffer_matching_mode="exclude" is the default
    )
    result = mapper.suggest_mapping(threshold=0.7)
    assert mapper.buffer_matching_mode == "exclude"
    assert result.threshold == 0.7
    assert set(result.get_mapping()) == {name for name, _ in source_model.named_parameters()}


@pytest.mark.parametrize("mode", MODES)
def test_explicit_mode_selection(mode: str) -> None:
    """Section "Explicit Mode Selection"."""
    source_model, target_model = block(), block()
    mapper = WeightMapper(source_module=source_model, target_module=target_model, buffer_matching_mode=mode)
    made = mapper.suggest_mapping().get_mapping()
    expected = dict(source_model.named_parameters()) if mode == "exclude" else source_model.state_dict()
    assert made == {name: name for name in expected}


# Examples


@pytest.mark.parametrize("mode", ["strict", "lenient"])
def test_example_1_different_channel_counts_in_buffers(mode: str) -> None:
    """Section "Example 1": the buffers differ; the module that owns them is what strict rejects."""
    source = {"conv.weight": (64, 32, 3, 3), **norm(64, statistics=64)}
    target = {"conv.weight": (64, 32, 3, 3), **norm(64, statistics=32)}
    result = mapped(source, target, mode)
    assert result.get_mapping()["conv.weight"] == "conv.weight"
    if mode == "strict":
        assert result.get_mapping() == {"conv.weight": "conv.weight"}
    else:
        assert result.get_mapping()["bn.weight"] == "bn.weight"
        assert "bn.running_mean" not in result.get_mapping()


def test_example_1_with_buffers_alone() -> None:
    """Section "Example 1" as listed: weight of the convolution, mean and variance."""
    source = {"conv.weight": (64, 32, 3, 3), "conv.running_mean": (64,), "conv.running_var": (64,)}
    target = {"conv.weight": (64, 32, 3, 3), "conv.running_mean": (32,), "conv.running_var": (32,)}
    assert mapped(source, target, "strict").get_mapping() == {}
    assert mapped(source, target, "lenient").get_mapping() == {"conv.weight": "conv.weight"}
    assert mapped(source, target, "exclude").get_mapping() == {"conv.weight": "conv.weight"}


@pytest.mark.parametrize("mode", MODES)
def test_example_2_fused_operations(mode: str) -> None:
    """Section "Example 2": strict rejects the normalization whose statistics the target lacks."""
    source = {"conv.weight": (128, 64, 3, 3), "bn.weight": (128,), "bn.running_mean": (128,)}
    target = {"fused.weight": (128, 64, 3, 3), "fused.bn_weight": (128,)}
    made = mapped(source, target, mode).get_mapping()
    assert made["conv.weight"] == "fused.weight"
    assert made.get("bn.weight") == (None if mode == "strict" else "fused.bn_weight")


@pytest.mark.parametrize("mode", MODES)
def test_example_3_different_normalization_types(mode: str) -> None:
    """Section "Example 3"."""
    source = {
        "conv.weight": (256, 128, 3, 3),
        "bn.weight": (256,),
        "bn.running_mean": (256,),
        "bn.running_var": (256,),
    }
    target = {"conv.weight": (256, 128, 3, 3), "gn.weight": (256,)}
    made = mapped(source, target, mode).get_mapping()
    assert made["conv.weight"] == "conv.weight"
    assert made.get("bn.weight") == (None if mode == "strict" else "gn.weight")


# What gets matched, what still fails


def test_lenient_gives_a_shape_mismatch_the_score_of_a_fifth_and_reports_it() -> None:
    """Section "Lenient Mode Matches": statistical buffers."""
    result = mapped(norm(8, statistics=8), norm(8, statistics=4), "lenient")
    assert set(result.get_mapping()) == {"bn.weight", "bn.bias", "bn.num_batches_tracked"}
    for name in ("bn.running_mean", "bn.running_var"):
        reason = result.get_unmatched()[name]
        assert "(8,)" in reason
        assert "(4,)" in reason
        assert "0.2" in reason
    expected = (3 * 1.0 + 2 * 0.2) / 5
    assert result.get_score_breakdown("bn.weight").shape == pytest.approx(expected)


def test_lenient_reports_a_mismatch_of_renamed_modules() -> None:
    """Section "Lenient Mode Matches": the reason follows the module, whatever it is called."""
    target = {f"norm{name[2:]}": shape for name, shape in norm(8, statistics=4).items()}
    reason = mapped(norm(8, statistics=8), target, "lenient").get_unmatched()["bn.running_mean"]
    assert "norm.running_mean" in reason
    assert "(8,)" in reason
    assert "(4,)" in reason
    assert "0.2" in reason


@pytest.mark.parametrize("mode", MODES)
def test_trainable_shapes_are_strict(mode: str) -> None:
    """Section "Trainable parameter shape mismatches"."""
    assert not mapped({"conv.weight": (64, 32, 3, 3)}, {"conv.weight": (128, 32, 3, 3)}, mode).matches


@pytest.mark.parametrize("mode", MODES)
def test_leaf_types_are_strict(mode: str) -> None:
    """Section "Parameter type mismatches"."""
    assert not mapped({"conv.weight": (64,)}, {"fc.bias": (64,)}, mode).matches
    assert not mapped({"conv.bias": (64,)}, {"conv.weight": (64,)}, mode).matches


@pytest.mark.parametrize("mode", MODES)
def test_a_trainable_mismatch_rejects_its_module(mode: str) -> None:
    """Section "What Still Fails": the bias fits, the weight of its module does not."""
    source, target = {"fc.weight": (4, 8), "fc.bias": (4,)}, {"fc.weight": (4, 9), "fc.bias": (4,)}
    assert "fc.weight" not in mapped(source, target, mode).get_mapping()


# Comparison of modes

TABLE = {
    "Exact match (all params)": (8, 8, "bn", (True, True, True)),
    "Buffer shape differs": (8, 4, "bn", (False, True, True)),
    "Missing buffers": (8, None, "bn", (False, True, True)),
    "Missing buffers in the source": (None, 8, "bn", (False, True, True)),
    "Different norm types": (8, None, "gn", (False, True, True)),
}


@pytest.mark.parametrize("at", range(3), ids=MODES)
@pytest.mark.parametrize("scenario", TABLE)
def test_comparison_of_modes(scenario: str, at: int) -> None:
    """Section "Comparison of Modes", one row each."""
    left, right, name, expected = TABLE[scenario]
    target = {f"{name}{key[2:]}": shape for key, shape in norm(8, statistics=right).items()}
    made = mapped(norm(8, statistics=left), target, MODES[at]).get_mapping()
    assert (made.get("bn.weight") == f"{name}.weight") is expected[at]
    assert (made.get("bn.bias") == f"{name}.bias") is expected[at]


@pytest.mark.parametrize("mode", MODES)
def test_comparison_of_modes_weight_shape_differs(mode: str) -> None:
    """Section "Comparison of Modes", row "Weight shape differs"."""
    assert not mapped(norm(8, statistics=8), norm(4, statistics=8), mode).matches or mode != "strict"
    assert "bn.weight" not in mapped(norm(8, statistics=8), norm(4, statistics=8), mode).get_mapping()


@pytest.mark.parametrize("scenario", ["Buffer shape differs", "Missing buffers", "Different norm types"])
def test_lenient_matches_with_reduced_confidence(scenario: str) -> None:
    """Section "Comparison of Modes", the footnote."""
    left, right, name, _ = TABLE[scenario]
    target = {f"{name}{key[2:]}": shape for key, shape in norm(8, statistics=right).items()}
    equal = mapped(norm(8, statistics=8), norm(8, statistics=8), "lenient").get_mapping_with_scores()
    other = mapped(norm(8, statistics=left), target, "lenient").get_mapping_with_scores()
    assert other["bn.weight"][1] < equal["bn.weight"][1]
    assert other["bn.bias"][1] < equal["bn.bias"][1]


@pytest.mark.parametrize(("mode", "share"), [("strict", 1.0), ("lenient", 1.0), ("exclude", 4 / 7)])
def test_parameters_compared(mode: str, share: float) -> None:
    """Section "Comparison of Modes", row "Parameters compared"."""
    shapes = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,), **norm(8, statistics=8)}
    mapper = WeightMapper(source_params=shapes, target_params=shapes, buffer_matching_mode=mode)
    assert len(mapper.source.weights) / len(shapes) == share
    assert mapper.suggest_mapping().coverage == 1.0


# Buffers that are no statistics, and those that are not saved


class Masked(nn.Module):
    """A layer with a buffer that is saved and one that is not."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("table", self.fc.weight.new_zeros(size))
        self.register_buffer("scratch", self.fc.weight.new_zeros(size), persistent=False)


@pytest.mark.parametrize("mode", MODES)
def test_non_persistent_buffers_never_take_part(mode: str) -> None:
    """Buffer modes: what a state dict does not hold is no matter."""
    mapper = WeightMapper(Masked(3), Masked(3), buffer_matching_mode=mode)
    made = mapper.suggest_mapping().get_mapping()
    assert "scratch" not in mapper.source.names()
    assert set(made) == {"fc.weight", "fc.bias"} | ({"table"} if mode != "exclude" else set())


def test_strict_rejects_a_module_for_a_buffer_that_is_no_statistic() -> None:
    """Buffer modes: every tensor counts."""
    assert "table" not in mapped({"m.table": (1, 1)}, {"m.table": (1, 2)}, "strict").get_mapping()
    result = WeightMapper(Masked(3), Masked(5), buffer_matching_mode="strict").suggest_mapping()
    assert set(result.get_mapping()) == {"fc.weight", "fc.bias"}, "the buffer is the outer module's, not the layer's"


# Best practices, questions, troubleshooting


def resnetlike() -> tuple[nn.Sequential, nn.Sequential]:
    """Models of which the head differs."""
    return block(5), block(6)


def test_best_practices_use_default() -> None:
    """Section "1. Use Default (Exclude) for Most Cases"."""
    src, tgt = resnetlike()
    mapper = WeightMapper(source_module=src, target_module=tgt)
    result = mapper.suggest_mapping(threshold=0.7)
    assert set(result.get_mapping()) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_exclude_mode_filters_early() -> None:
    """Section "Performance Improvements with Exclude Mode"."""
    source_model, target_model = resnetlike()
    mapper = WeightMapper(source_model, target_model)
    assert not [name for name in mapper.source.names() if name.endswith(STATISTICS)]


def test_best_practices_check_match_quality() -> None:
    """Section "2. Check Match Quality"."""
    src, tgt = resnetlike()
    result = WeightMapper(src, tgt).suggest_mapping(threshold=0.0)
    lines = []
    mapping_with_scores = result.get_mapping_with_scores()
    for src, (tgt, score) in mapping_with_scores.items():
        if score < 0.8:
            lines.append(f"Low confidence: {src} -> {tgt} (score: {score:.3f})")
    assert len(lines) == len(result.get_low_confidence_matches(0.8))


def test_best_practices_verify_unmatched_parameters() -> None:
    """Section "3. Verify Unmatched Parameters"."""
    src, tgt = resnetlike()
    result = WeightMapper(src, tgt, buffer_matching_mode="lenient").suggest_mapping()
    lines = []
    unmatched = result.get_unmatched()
    for param in unmatched["source"][:10]:
        is_buffer = "running" in param or "num_batches" in param
        lines.append(f"{'[BUFFER]' if is_buffer else '[WEIGHT]'} {param}")
    assert lines == ["[WEIGHT] 3.weight", "[WEIGHT] 3.bias"]


def test_best_practices_strict_mode() -> None:
    """Section "4. Use Strict Mode for Safety-Critical Applications"."""
    src, tgt = block(), nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8, 5))
    mapper = WeightMapper(source_module=src, target_module=tgt, buffer_matching_mode="strict")
    assert set(mapper.suggest_mapping().get_mapping()) == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_question_lenient_allows_no_incorrect_match() -> None:
    """Question "Will lenient mode allow incorrect matches?"."""
    source, target = norm(8, statistics=4), norm(6, statistics=4)
    assert not {"bn.weight", "bn.bias"} & set(mapped(source, target, "lenient").get_mapping())


def test_question_a_buffer_mismatch_blocks_no_weight_by_default() -> None:
    """Question "Why was the default changed to exclude?"."""
    made = mapped(norm(8, statistics=8), norm(8, statistics=4), "exclude").get_mapping()
    assert made == {"bn.weight": "bn.weight", "bn.bias": "bn.bias"}


def test_question_the_mode_is_set_once() -> None:
    """Question "Can I switch modes after creating the mapper?"; and an unknown mode lists the three."""
    shapes = norm(8, statistics=8)
    with pytest.raises(ConfigError, match=r"exclude, lenient, strict.*Did you mean 'lenient'"):
        WeightMapper(source_params=shapes, target_params=shapes, buffer_matching_mode="lenien")


def test_troubleshooting_many_unmatched() -> None:
    """Issue "Still getting many unmatched parameters"."""
    result = mapped(norm(8, statistics=8), norm(8, statistics=4), "lenient")
    unmatched = result.get_unmatched()
    buffer_count = sum(1 for p in unmatched["source"] if "running" in p or "num_batches" in p)
    weight_count = len(unmatched["source"]) - buffer_count
    assert re.fullmatch(
        r"Unmatched: 0 weights, 2 buffers", f"Unmatched: {weight_count} weights, {buffer_count} buffers"
    )


def test_troubleshooting_low_confidence() -> None:
    """Issue "Matches have low confidence scores"."""
    result = WeightMapper(block(), block(), buffer_matching_mode="lenient").suggest_mapping()
    mapping_with_scores = result.get_mapping_with_scores()
    buffer_matches = {
        src: (tgt, score)
        for src, (tgt, score) in mapping_with_scores.items()
        if "running" in src or "num_batches" in src
    }
    weight_matches = {
        src: (tgt, score) for src, (tgt, score) in mapping_with_scores.items() if src not in buffer_matches
    }
    avg_buffer_score = sum(s for _, s in buffer_matches.values()) / len(buffer_matches)
    avg_weight_score = sum(s for _, s in weight_matches.values()) / len(weight_matches)
    assert avg_buffer_score > 0.3
    assert avg_weight_score > 0.7


def test_statistics_tell_modules_of_one_shape_apart() -> None:
    """Order alone would match the first to the first."""
    source = {"a.weight": (8,), "a.bias": (8,), "b.weight": (8,), "b.bias": (8,), "b.running_mean": (8,)}
    target = {"y.weight": (8,), "y.bias": (8,), "y.running_mean": (8,), "x.weight": (8,), "x.bias": (8,)}
    for mode in ("lenient", "strict"):
        result = WeightMapper(source_params=source, target_params=target, buffer_matching_mode=mode).suggest_mapping()
        leaves = ("weight", "bias")
        wanted = {f"{one}.{leaf}": f"{two}.{leaf}" for one, two in ("by", "ax") for leaf in leaves}
        assert result.get_mapping() == wanted | {"b.running_mean": "y.running_mean"}
