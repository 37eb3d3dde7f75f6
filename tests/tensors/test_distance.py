"""Distances against numpy in float64, and consensus against counting."""

import math

import numpy as np
import pytest
import torch

from lit_wsl.tensors.consensus import disjoint_mean, elect_sign
from lit_wsl.tensors.distance import l2_distance, l2_norm, relative_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1,), (7, 5), (2, 3, 4), ()], ids=str)
def test_distances_match_numpy(dtype, shape):
    x, y = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    a, b = x.double().numpy().ravel(), y.double().numpy().ravel()
    assert l2_norm(x) == pytest.approx(np.linalg.norm(a), rel=1e-12)
    assert l2_distance(x, y) == pytest.approx(np.linalg.norm(a - b), rel=1e-12)
    assert relative_error(x, y) == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-12)


def test_a_long_sum_of_small_numbers_is_accumulated_in_float64():
    x = torch.full((3_000_000,), 1e-3)
    assert l2_norm(x) == pytest.approx(float(x[0]) * math.sqrt(3e6), rel=1e-10)


def test_zeros_have_defined_distances():
    zero, one = torch.zeros(3), torch.ones(3)
    assert (relative_error(zero, zero), relative_error(one, zero)) == (0.0, math.inf)


def test_consensus_by_hand():
    stack = torch.tensor([[1.0, -2.0, 0.0, 3.0, 0.0], [2.0, 1.0, 0.0, -3.0, -1.0], [-1.0, -4.0, 0.0, 0.0, 0.0]])
    sign = elect_sign(stack)
    assert sign.tolist() == [1, -1, 0, 0, -1]
    assert disjoint_mean(stack).tolist() == [1.5, -3.0, 0.0, 0.0, -1.0]
