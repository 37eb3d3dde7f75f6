"""All that is found of one tensor, against float64."""

import math

import pytest
import torch
from safetensors.torch import load_file

from lit_wsl.comparing.changes import BIN_EDGES
from lit_wsl.comparing.entries import Scaled
from lit_wsl.comparing.examine import Subject, examine
from lit_wsl.comparing.settings import CompareSettings
from lit_wsl.errors import CheckpointError
from lit_wsl.tensors.difference import Entries, Stored


@pytest.fixture
def find(tmp_path):
    """Examine two tensors or entries."""

    def found(base, tuned, name="a.weight", **settings):
        one, two = (Stored(side) if isinstance(side, torch.Tensor) else side for side in (base, tuned))
        return examine(Subject(name, one, two, tmp_path / "factors" / "0.safetensors"), CompareSettings(**settings))

    return found


def test_the_record_of_a_change(find):
    base = torch.randn(40, 30)
    tuned = (base + 0.1 * torch.randn(40, 30)).bfloat16()
    change = find(base, tuned, threshold=0.05).change
    x, y = base.double(), tuned.double()
    delta = y - x
    wanted = {
        "mean_abs_diff": delta.abs().mean(),
        "max_abs_diff": delta.abs().max(),
        "relative_diff": delta.norm() / x.norm(),
        "changed_ratio": (delta.abs() > 0.05).double().mean(),
        "cosine": (x * y).sum() / x.norm() / y.norm(),
        "mean_diff": delta.mean(),
        "std_diff": delta.std(correction=0),
        "diff_norm": delta.norm(),
        "base_norm": x.norm(),
    }
    for name, value in wanted.items():
        assert getattr(change, name) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    assert (change.shape, change.base_dtype, change.tuned_dtype, change.numel) == (
        [40, 30],
        "float32",
        "bfloat16",
        1200,
    )
    assert (change.modified, change.is_equal, change.is_rounding, change.nonfinite) == (True, False, False, {})
    assert change.rounding_floor == 2.0**-9
    assert 0.0 < change.tensor_time <= change.total_time
    assert change.numpy_time is None


def test_the_histogram_is_of_all_entries_where_there_are_few(find):
    base = torch.zeros(20, 20)
    tuned = 10.0 ** torch.randint(-12, 4, (20, 20)) * 3
    histogram = find(base, tuned).change.histogram
    edges = torch.tensor([0.0, *BIN_EDGES, math.inf])
    counts = [((tuned > low) & (tuned <= high)).sum() / 400 for low, high in zip(edges, edges[1:], strict=False)]
    assert histogram == pytest.approx([float(count) for count in counts])
    assert sum(find(torch.randn(700, 900), torch.randn(700, 900)).change.histogram) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("size", "share", "is_modified"),
    [(1e-3, 1.0, True), (1e-3, 0.005, False), (1.0, 0.005, True), (1e-7, 1.0, False)],
    ids=str,
)
def test_modified_by_either_bar(find, size, share, is_modified):
    base = torch.randn(100, 100)
    tuned = base + size * (torch.arange(10_000).view(100, 100) < 10_000 * share)
    assert find(base, tuned).change.modified is is_modified
    assert not find(base, tuned, min_ratio=1.0, min_relative=2.0).change.modified


def test_equal_and_rounded_tensors_are_not_modified(find):
    base = torch.randn(100, 80)
    for tuned, is_equal in ((base.clone(), True), (base.bfloat16(), False), (base.half().float(), False)):
        found = find(base, tuned)
        assert (found.change.is_equal, found.change.is_rounding, found.change.modified) == (
            is_equal,
            not is_equal,
            False,
        )
        assert (found.pattern, found.extracted) == (None, [])
    assert find(base, base.clone()).change.rounding_floor == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool], ids=str)
def test_numpy_agrees(find, dtype):
    base, tuned = (100 * torch.randn(2, 200, 300)).to(dtype)
    change = find(base, tuned, method="both").change
    assert change.numpy_time > 0.0
    assert find(base, base.clone(), method="both").change.is_equal


@pytest.mark.parametrize("numbers", [(math.nan, 0.0), (0.0, math.nan), (math.nan, math.nan), (math.inf, -math.inf)])
def test_entries_that_are_no_numbers_are_refused(find, numbers):
    base, tuned = torch.randn(2, 10, 10)
    base[1, 1], tuned[1, 1] = numbers
    with pytest.raises(CheckpointError, match="NaN and . infinite entries in the"):
        find(base, tuned)


def test_the_message_names_the_side_and_the_numbers(find):
    base, tuned = torch.randn(2, 10, 10)
    tuned[0, :3] = torch.tensor([math.nan, math.inf, math.inf])
    with pytest.raises(CheckpointError, match=r"^1 NaN and 2 infinite entries in the fine-tuned model$"):
        find(base, tuned)


def test_a_mask_of_infinite_entries_is_equal_to_itself_in_any_dtype(find):
    mask = torch.full((8, 8), -math.inf).triu(1)
    for tuned in (mask.clone(), mask.bfloat16()):
        change = find(mask, tuned).change
        assert (change.modified, change.diff_norm, change.nonfinite) == (False, 0.0, {"nan": 0, "inf": 28})
    tuned = mask.clone()
    tuned[3, 0] = 1.0
    with pytest.raises(CheckpointError, match="28 infinite entries"):
        find(mask, tuned)


@pytest.mark.parametrize("value", [1e17, 1e38])
@pytest.mark.parametrize("shape", [(300, 300), (30, 20)], ids=str)
def test_a_flipped_bit_of_an_exponent_is_damage(find, shape, value):
    base = torch.randn(shape)
    tuned = base.clone()
    tuned[3, 4] = value
    with pytest.raises(CheckpointError, match=r"differ by up to 1.0e\+.., which no training does"):
        find(base, tuned)


@pytest.mark.parametrize("size", [1e-12, 1e-18, 1e-22])
def test_tiny_changes_are_examined(find, size):
    pattern = find(torch.zeros(300, 300), size * torch.randn(300, 300)).pattern
    assert pattern.effective_rank == 0
    assert math.isfinite(pattern.max_singular_value)


@pytest.mark.parametrize(("before", "after"), [(40, 44), (44, 40)])
def test_a_resized_vocabulary_is_compared_in_its_common_rows(find, before, after):
    base, tuned = torch.randn(before, 16), torch.randn(after, 16)
    found, wanted = find(base, tuned), find(base[:40].clone(), tuned[:40].clone())
    assert found.change.shape == found.pattern.shape == [40, 16]
    assert found.pattern == wanted.pattern
    assert found.change.diff_norm == wanted.change.diff_norm
    assert find(base[:40], torch.cat((base[:40], torch.ones(3, 16)))).change.is_equal


def low_rank(shape, rank, size=0.1):
    return size * torch.randn(*shape[:-1], rank) @ torch.randn(*shape[:-2], rank, shape[-1])


def restored(tmp_path, count):
    """The updates that were written."""
    factors = load_file(tmp_path / "factors" / "0.safetensors")
    assert len(factors) == 2 * count
    return torch.stack([factors[f"B.{at}"].double() @ factors[f"A.{at}"].double() for at in range(count)])


def test_factors_of_a_low_rank_update(find, tmp_path):
    base = torch.randn(60, 50)
    tuned = base + low_rank((60, 50), 4)
    found = find(base, tuned)
    [record] = found.extracted
    assert (found.pattern.effective_rank, found.pattern.is_low_rank, record.rank) == (4, True, 4)
    delta = tuned.double() - base.double()
    error = float((restored(tmp_path, 1)[0] - delta).norm())
    assert error < 1e-5 * float(delta.norm())
    assert record.relative_error == pytest.approx(error / float(delta.norm()), rel=0.1)
    assert record.weight_error == pytest.approx(error / float(tuned.double().norm()), rel=0.1)
    assert record.parameters == 4 * (60 + 50)


def test_a_convolution_is_flattened_behind_its_outputs(find, tmp_path):
    base = torch.randn(20, 8, 3, 3)
    delta = low_rank((20, 72), 2).view(20, 8, 3, 3)
    found = find(base, base + delta)
    assert (found.pattern.shape, found.pattern.effective_rank) == ([20, 72], 2)
    torch.testing.assert_close(restored(tmp_path, 1)[0].view(20, 8, 3, 3), delta.double(), rtol=1e-3, atol=1e-5)
    kernel = torch.randn(20, 8, 3)
    assert find(kernel, kernel + low_rank((20, 24), 2).view(20, 8, 3)).pattern.shape == [20, 24]


@pytest.mark.parametrize("name", ["mlp.experts.gate_up_proj", "experts.down_proj.weight"])
def test_experts_have_factors_each_also_one_that_was_not_trained(find, tmp_path, name):
    base = torch.randn(4, 40, 30)
    delta = low_rank((4, 40, 30), 2)
    delta[1] = 0.0
    found = find(base, base + delta, name)
    assert found.pattern.shape == [40, 30]
    assert (found.pattern.effective_rank, found.pattern.is_low_rank) == (2, True)
    assert [record.rank for record in found.extracted] == [2, 1, 2, 2]
    torch.testing.assert_close(restored(tmp_path, 4), delta.double(), rtol=1e-3, atol=1e-5)


def test_a_stack_of_which_one_expert_has_full_rank_has_no_factors(find, tmp_path):
    base = torch.randn(3, 40, 30)
    delta = low_rank((3, 40, 30), 2)
    delta[2] = 0.01 * torch.randn(40, 30)
    assert find(base, base + delta, "experts.up").extracted == []
    assert not (tmp_path / "factors").exists()


def test_vectors_and_integers_have_no_pattern(find):
    assert find(torch.randn(50), torch.randn(50)).pattern is None
    assert find(torch.tensor(1.0), torch.tensor(2.0)).pattern is None
    ids = torch.arange(600).view(20, 30)
    found = find(ids, ids + 1, extraction="always")
    assert (found.pattern, found.change.modified) == (None, True)


def test_an_integer_matrix_with_scales_has_a_pattern(find):
    weight = torch.randint(-100, 100, (30, 20)).to(torch.int8)
    before: Entries = Scaled(weight, torch.full((30,), 0.01))
    after = weight.float() * 0.01 + low_rank((30, 20), 1)
    assert find(before, after).pattern.effective_rank == 1
