"""The figures of a difference against numpy in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_wsl.tensors import difference as module
from lit_wsl.tensors.difference import BLOCK_ENTRIES, Stored, difference

FLOATS = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def compare(base: Tensor, tuned: Tensor, threshold: float = 1e-6) -> module.Difference:
    return difference(Stored(base), Stored(tuned), threshold)


def oracle(base: Tensor, tuned: Tensor, threshold: float = 1e-6) -> dict[str, float]:
    """The same figures by numpy, over the entries that are finite on both sides."""
    x, y = (t.to(torch.complex128 if t.is_complex() else torch.float64).numpy().ravel() for t in (base, tuned))
    x, y = (side.view(np.float64) for side in (x, y))
    figures = {
        "numel": x.size,
        "base_nonfinite": (int(np.isnan(x).sum()), int(np.isinf(x).sum())),
        "tuned_nonfinite": (int(np.isnan(y).sum()), int(np.isinf(y).sum())),
    }
    whole = np.isfinite(x) & np.isfinite(y)
    x, y = np.where(whole, x, 0.0), np.where(whole, y, 0.0)
    delta, count = y - x, max(1, x.size)
    norms = [float(np.linalg.norm(side)) for side in (x, y)]
    return figures | {
        "mean_abs": np.abs(delta).sum() / count,
        "max_abs": np.abs(delta).max(initial=0.0),
        "mean": delta.sum() / count,
        "std": math.sqrt(np.square(delta).sum() / count - (delta.sum() / count) ** 2) if x.size else 0.0,
        "norm": np.linalg.norm(delta),
        "base_norm": norms[0],
        "tuned_norm": norms[1],
        "inner": float(x @ y),
        "relative": np.linalg.norm(delta) / (norms[0] + 1e-10),
        "changed": int((np.abs(delta) > threshold).sum()),
        "changed_ratio": (np.abs(delta) > threshold).sum() / count,
        "cosine": 1.0 if norms == [0.0, 0.0] else float(x @ y) / (norms[0] * norms[1]) if all(norms) else 0.0,
    }


EXACT = ("numel", "changed", "changed_ratio", "base_nonfinite", "tuned_nonfinite")


def check(base: Tensor, tuned: Tensor, threshold: float = 1e-6, rel: float = 1e-5) -> module.Difference:
    """Every figure is that of numpy; those that may cancel are compared with the size of what is summed."""
    found, wanted = compare(base, tuned, threshold), oracle(base, tuned, threshold)
    sizes = {
        "mean": rel * wanted["mean_abs"],
        "std": (rel * wanted["norm"] ** 2 / max(1, base.numel())) ** 0.5,
        "inner": rel * wanted["base_norm"] * (wanted["base_norm"] + wanted["norm"]),
        "cosine": 2 * rel,
    }
    for name, value in wanted.items():
        if name in EXACT:
            assert getattr(found, name) == value, name
        else:
            assert getattr(found, name) == pytest.approx(value, rel=rel, abs=sizes.get(name, 0.0)), name
    return found


@pytest.mark.parametrize("shape", [(), (1,), (7, 5), (3, 4, 5, 2), (300, 501)], ids=str)
@pytest.mark.parametrize("left", FLOATS, ids=str)
@pytest.mark.parametrize("right", FLOATS, ids=str)
def test_floats_of_any_two_dtypes(shape, left, right):
    base = torch.randn(shape, dtype=torch.float64)
    tuned = base + 0.1 * torch.randn(shape, dtype=torch.float64)
    found = check(base.to(left), tuned.to(right), threshold=0.0625)
    assert not found.is_equal or left == right


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool], ids=str)
def test_integers(dtype):
    high = 2 if dtype == torch.bool else 100
    base, tuned = (torch.randint(0, high, (40, 30)).to(dtype) for _ in range(2))
    check(base, tuned, rel=1e-12)
    assert compare(base, base.clone()).is_equal


def test_large_integers_keep_their_difference():
    base = torch.arange(1 << 40, (1 << 40) + 100)
    assert compare(base, base + 1).mean_abs == 1.0


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_numbers_count_as_two_real_ones(dtype):
    base = torch.randn(20, 15, dtype=dtype)
    check(base, base + 0.1 * torch.randn(20, 15, dtype=dtype), threshold=0.0)
    assert compare(base, base.clone()).is_equal


@pytest.mark.parametrize("entries", [BLOCK_ENTRIES - 1, BLOCK_ENTRIES, BLOCK_ENTRIES + 1, 2 * BLOCK_ENTRIES + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_borders_of_blocks(entries, dtype):
    base = torch.randn(entries).to(dtype)
    tuned = base.clone()
    tuned[-1] += 1.0
    found = check(base, tuned)
    assert (found.changed, found.is_equal) == (1, False)
    assert compare(base, base.clone()).is_equal
    tuned = base.clone()
    tuned[0] += 1.0
    assert check(base, tuned).changed == 1


def test_a_long_sum_is_kept_in_float64():
    base = torch.full((3_000_000,), 1.0)
    found = compare(base, base + 2.0**-10)
    assert found.mean == pytest.approx(2.0**-10, rel=1e-7)
    assert found.norm == pytest.approx(2.0**-10 * math.sqrt(3e6), rel=1e-7)
    assert found.changed == 3_000_000


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0)], ids=str)
def test_empty_tensors_are_equal(shape):
    found = check(torch.empty(shape), torch.empty(shape))
    assert (found.is_equal, found.changed_ratio, found.std, found.cosine) == (True, 0.0, 0.0, 1.0)


def test_equal_means_the_same_bits():
    """NaN with the same bits is equal, zeros of either sign are not, nor are equal values of two dtypes."""
    odd = torch.tensor([math.nan, math.inf, -0.0, 1.0])
    assert compare(odd, odd.clone()).is_equal
    zero = compare(torch.zeros(5), -torch.zeros(5))
    assert (zero.is_equal, zero.norm, zero.changed) == (False, 0.0, 0)
    other = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert not compare(other, torch.tensor([math.nan])).is_equal
    ones = compare(torch.ones(5), torch.ones(5).bfloat16())
    assert (ones.is_equal, ones.norm) == (False, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float8_e5m2], ids=str)
def test_entries_that_are_no_numbers_are_counted_and_left_out(dtype):
    base, tuned = torch.randn(2, 2 * BLOCK_ENTRIES + 5)
    for side, places in ((base, [3, BLOCK_ENTRIES, -1]), (tuned, [3, 8, BLOCK_ENTRIES + 7])):
        side[places] = torch.tensor([math.nan, math.inf, -math.inf])
    found = check(base.to(dtype), tuned.to(dtype))
    assert found.base_nonfinite == found.tuned_nonfinite == (1, 2)


def test_entries_that_only_one_side_has_as_no_number_are_unshared():
    """NaN is never shared, infinities are where both sides have the same one; finite entries may differ."""
    base = torch.tensor([math.nan, math.inf, math.inf, math.inf, -math.inf, 1.0, 1.0, math.nan])
    tuned = torch.tensor([math.nan, math.inf, -math.inf, 2.0, -math.inf, math.inf, 3.0, 0.0])
    found = compare(base, tuned)
    assert (found.unshared, found.base_nonfinite, found.tuned_nonfinite) == (5, (2, 4), (1, 4))
    assert (found.changed, found.inner, found.base_norm) == (1, 3.0, 1.0)
    assert compare(base[[1, 4, 5]], tuned[[1, 4, 6]]).unshared == 0


def test_an_entry_counts_as_changed_beyond_a_millionth():
    base = torch.zeros(4, dtype=torch.float64)
    assert compare(base, torch.tensor([1.001e-6, 0.999e-6, -1.001e-6, -0.5], dtype=torch.float64)).changed == 3
    assert difference(Stored(base), Stored(base + 1.001e-6)).changed == 4
    assert difference(Stored(base), Stored(base + 0.999e-6)).changed == 0


def test_entries_that_are_no_numbers_on_both_sides_alike():
    base = torch.randn(100)
    base[:3] = torch.tensor([math.nan, math.inf, -math.inf])
    found = check(base, base.clone())
    assert (found.is_equal, found.base_nonfinite, found.norm) == (True, (1, 2), 0.0)


@pytest.mark.parametrize("size", [1e20, 1e30, 3e38])
def test_squares_that_overflow_float32(size):
    base, tuned = torch.randn(2, 500).sign() * size
    assert check(base, tuned).base_nonfinite == (0, 0)
    check(base, base.clone())
    check(torch.ones(500), tuned)


@pytest.mark.parametrize("threshold", [0.0, 2.0**-20, 2.0**-7, 0.5, 1e9])
def test_changed_entries_are_counted_exactly(threshold):
    """Steps of a grid, so that a difference is exact and often equal to the threshold."""
    base = torch.randint(-100, 100, (50_000,)) * 2.0**-7
    tuned = base + torch.randint(-2, 3, (50_000,)) * 2.0**-7
    check(base, tuned, threshold)


@pytest.mark.parametrize("factor", [0.0, 1e-3, -1e-3, 1e-6, 1.0, -1.0, 1e3])
def test_a_multiple_has_its_own_norm_and_a_cosine_of_one(factor):
    """Nearly all of the base cancels in a difference to a much smaller tensor."""
    base = torch.randn(300_000)
    found = check(base, base * factor)
    assert abs(found.cosine) == pytest.approx(float(factor != 0.0), abs=1e-6)


def tensors(draw, count=2):
    shape = draw(st.lists(st.integers(1, 9), max_size=3))
    seed = draw(st.integers(0, 1000))
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g) for _ in range(count)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_norms_are_symmetric(data):
    base, tuned = tensors(data.draw)
    there, back = compare(base, tuned), compare(tuned, base)
    assert (there.norm, there.mean_abs, there.max_abs, there.changed) == pytest.approx(
        (back.norm, back.mean_abs, back.max_abs, back.changed), rel=1e-6
    )
    assert there.mean == pytest.approx(-back.mean, rel=1e-6, abs=1e-12)
    assert (there.base_norm, there.tuned_norm) == pytest.approx((back.tuned_norm, back.base_norm), rel=1e-4)
    assert there.cosine == pytest.approx(back.cosine, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), power=st.integers(-20, 20))
def test_scaling_scales_sizes_and_keeps_ratios(data, power):
    """By powers of two, so that nothing is rounded."""
    base, tuned = tensors(data.draw)
    factor = 2.0**power
    one, other = compare(base, tuned, 0.25), compare(base * factor, tuned * factor, 0.25 * factor)
    for name in ("mean_abs", "max_abs", "mean", "norm", "base_norm", "tuned_norm", "std"):
        assert getattr(other, name) == pytest.approx(factor * getattr(one, name), rel=1e-9, abs=1e-12 * factor), name
    assert (other.changed, other.cosine) == (one.changed, pytest.approx(one.cosine, abs=1e-9))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_laws_of_norms(data):
    base, tuned, third = tensors(data.draw, 3)
    found = compare(base, tuned)
    assert abs(found.base_norm - found.tuned_norm) <= found.norm * (1 + 1e-5) + 1e-6
    assert found.mean_abs <= found.max_abs * (1 + 1e-6)
    assert abs(found.mean) <= found.mean_abs * (1 + 1e-6)
    assert -1.0 <= found.cosine <= 1.0
    assert found.norm <= compare(base, third).norm + compare(third, tuned).norm + 1e-5


def test_the_sides_are_not_modified():
    base, tuned = torch.randn(2, 1000)
    before = base.clone(), tuned.clone()
    compare(base, tuned)
    assert torch.equal(base, before[0])
    assert torch.equal(tuned, before[1])
