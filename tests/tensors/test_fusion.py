"""Sums, means and variances over tasks against NumPy in float64."""

import numpy as np
import pytest
import torch

from lit_wsl.tensors import fusion
from lit_wsl.tensors.fusion import agreeing_mean, variation, weighted_mean, weighted_sum


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, -2.0, 1.0], [1.0, 0.0, 3.0]], ids=str)
@pytest.mark.parametrize("as_list", [False, True])
def test_weighted_sums_and_means(weights, as_list):
    stack = torch.randn(3, 4, 5)
    before = stack.clone()
    given = list(stack) if as_list else stack
    expected = sum(w * v.double().numpy() for w, v in zip(weights, stack, strict=True))
    np.testing.assert_allclose(weighted_sum(given, torch.tensor(weights)), expected, rtol=1e-5, atol=1e-6)
    if sum(weights):
        mean = weighted_mean(given, torch.tensor(weights))
        np.testing.assert_allclose(mean, expected / sum(weights), rtol=1e-5, atol=1e-6)
    assert torch.equal(stack, before)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 2.0, 0.0]], ids=str)
def test_a_mean_of_those_that_agree_is_zero_where_they_weigh_nothing(weights):
    stack = torch.randn(3, 200, dtype=torch.float64)
    agrees = torch.rand(3, 200) < 0.4
    found = agreeing_mean(stack, agrees, torch.tensor(weights, dtype=torch.float64))
    for i in range(200):
        pairs = [(w, float(x)) for w, x, a in zip(weights, stack[:, i], agrees[:, i], strict=True) if a]
        share = sum(w for w, _ in pairs)
        assert float(found[i]) == pytest.approx(sum(w * x for w, x in pairs) / share if share else 0.0, abs=1e-15)


@pytest.mark.parametrize("part", [7, 1 << 15])
@pytest.mark.parametrize("tasks", [1, 2, 5])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_variation_is_the_variance_times_the_tasks_squared(monkeypatch, part, tasks, offset):
    """Also where a common offset is far larger than what varies."""
    monkeypatch.setattr(fusion, "_PART", part)
    stack = torch.randn(tasks, 5, 9) + offset
    before = stack.clone()
    found = variation(stack)
    assert found.dtype == torch.float32
    assert torch.equal(stack, before)
    np.testing.assert_allclose(found, stack.double().numpy().var(axis=0) * tasks**2, rtol=1e-6, atol=1e-10)
    assert torch.equal(variation(list(stack)), found)


def test_a_first_task_far_from_many_others_costs_no_digits():
    """The sum of squares is some three hundred times what is left of it."""
    stack = torch.cat([torch.full((1, 50), 1e3), torch.randn(300, 50)])
    np.testing.assert_allclose(variation(stack), stack.double().numpy().var(axis=0) * 301**2, rtol=2e-7)


def test_equal_tasks_do_not_vary_at_all():
    vector = torch.randn(100) * 1e6
    assert not variation([vector, vector.clone(), vector.clone()]).any()
