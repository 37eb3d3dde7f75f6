"""Selection without a sort against a sort; random dropping against its law."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_wsl.tensors.rng import CounterRng
from lit_wsl.tensors.sparsify import (
    MagnitudeSelector,
    drop,
    drop_and_rescale,
    keep_above,
    keep_between,
    keep_top_magnitude,
    kept_count,
    magnitude_threshold,
)
from tests.oracles.linear import kth_magnitude

floats = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -1e-45, 1e-40, 1.1754944e-38, 3.4e38]),
)
densities = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.9, 1.0, 1e-12]))


@settings(max_examples=300, deadline=None)
@given(values=st.lists(floats, min_size=1, max_size=60), density=densities)
def test_threshold_equals_the_sorted_one(values, density):
    x = torch.tensor(values, dtype=torch.float32)
    count = kept_count(len(values), density)
    threshold = magnitude_threshold(x, density)
    expected = kth_magnitude(x.numpy(), count)
    if count == len(values):
        assert threshold == 0.0
    else:
        assert threshold == expected
    kept = keep_top_magnitude(x, density)
    assert torch.equal(kept, torch.where(x.abs().double() >= expected, x, 0.0))
    assert int((kept != 0).sum()) <= len(values)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 3000),
    seed=st.integers(0, 99),
    density=densities,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    step=st.integers(1, 500),
)
def test_threshold_of_a_stream_equals_that_of_the_whole(size, seed, density, dtype, step):
    """bfloat16 has many equal magnitudes; blocks may be cut anywhere."""
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)
    selector = MagnitudeSelector(density)
    for _ in range(2):
        for start in range(0, size, step):
            selector.update(x[start : start + step])
        if selector.end_pass():
            break
    count = kept_count(size, density)
    assert selector.threshold == (0.0 if count == size else kth_magnitude(x.float().numpy(), count))


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_zeros_duplicates_and_one_value(density):
    assert magnitude_threshold(torch.zeros(10), density) == 0.0
    assert torch.equal(keep_top_magnitude(torch.full((10,), -3.0), density), torch.full((10,), -3.0))
    assert magnitude_threshold(torch.tensor([1e-45] * 3 + [0.0] * 7), density) == (
        pytest.approx(1e-45) if density < 0.4 else 0.0
    )


@settings(max_examples=300, deadline=None)
@given(entries=st.integers(1, 10**7), percent=st.integers(0, 1000))
def test_kept_count_is_the_exact_ceiling(entries, percent):
    density = percent / 1000
    exact = -(-entries * percent // 1000)
    assert kept_count(entries, density) == min(entries, exact)


def test_kept_count_at_its_ends():
    assert [kept_count(5, d) for d in (0.0, 1e-300, 0.2, 0.2000001, 1.0)] == [0, 1, 1, 2, 5]


def test_a_threshold_of_zero_keeps_the_tensor_itself():
    x = torch.randn(4)
    assert keep_above(x, 0.0) is x
    assert not keep_above(x, math.inf).any()


@pytest.mark.parametrize("drop_rate", [0.0, 0.3, 0.9])
def test_dropping_keeps_the_mean_and_divides_by_the_keep_probability(drop_rate):
    """A2.8"""
    x = torch.ones(200_000)
    dropped = drop_and_rescale(x, drop_rate, CounterRng(1), "label")
    kept = 1 - drop_rate
    torch.testing.assert_close(dropped.unique(), torch.tensor([1.0] if not drop_rate else [0.0, 1 / kept]))
    deviation = math.sqrt(drop_rate / kept / len(x))
    assert abs(float(dropped.double().mean()) - 1.0) <= 5 * deviation


def test_dropping_a_block_equals_the_block_of_the_whole():
    x = torch.randn(1000)
    whole = drop_and_rescale(x, 0.6, CounterRng(3), "w")
    parts = [drop_and_rescale(x[i : i + 77], 0.6, CounterRng(3), "w", i) for i in range(0, 1000, 77)]
    assert torch.equal(torch.cat(parts), whole)
    assert np.array_equal(whole.numpy() != 0, CounterRng(3).keep_mask("w", 0.4, x).numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (0.5, math.inf), (0.0, 1.5), (0.5, 1.5), (1.0, 1.0)])
def test_entries_between_two_magnitudes_stay_with_those_that_equal_the_ends(dtype, low, high):
    x = (torch.arange(-8, 9) / 4).to(dtype)
    before = x.clone()
    found = keep_between(x, low, high)
    assert found.tolist() == [v if low <= abs(v) <= high else 0.0 for v in x.tolist()]
    assert found.dtype == dtype
    assert torch.equal(x, before)


def test_float64_is_compared_as_float32():
    """A magnitude that float32 rounds to the threshold stays."""
    x = torch.tensor([0.1, -0.1, 0.1 - 1e-12, 0.0999], dtype=torch.float64)
    threshold = magnitude_threshold(x, 0.5)
    assert keep_above(x, threshold).tolist() == [*x[:3].tolist(), 0.0]
    assert keep_between(x, 0.0, threshold).tolist() == x.tolist()


def test_a_float64_that_float32_rounds_below_the_threshold_is_dropped():
    threshold = torch.tensor(0.1)
    below = torch.nextafter(threshold, torch.tensor(0.0))
    steps = torch.tensor([0.0, 0.25, 0.75, 1.0, 1.25], dtype=torch.float64)
    x = below.double() + steps * (threshold.double() - below.double())
    assert keep_above(x, float(threshold)).tolist() == [0.0, 0.0, *x[2:].tolist()]
    assert keep_between(x, 0.0, float(below)).tolist() == [*x[:2].tolist(), 0.0, 0.0, 0.0]


def test_dropping_begins_at_the_first_element():
    x, rng = torch.randn(300), CounterRng(2)
    assert torch.equal(drop(x, 0.4, rng, "l"), drop(x, 0.4, rng, "l", 0))
    assert torch.equal(drop(x, 0.4, rng, "l")[100:], drop(x[100:], 0.4, rng, "l", 100))
    torch.testing.assert_close(drop(x, 0.4, rng, "l") / 0.6, drop_and_rescale(x, 0.4, rng, "l"))


def test_a_threshold_of_a_long_tensor_takes_a_second_pass(monkeypatch):
    monkeypatch.setattr("lit_wsl.tensors.ranking._SAMPLE", 50)
    x = torch.randn(2000)
    assert magnitude_threshold(x, 0.3) == kth_magnitude(x.numpy(), 600)
