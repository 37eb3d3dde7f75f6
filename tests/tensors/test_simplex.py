"""Parametrisations of coefficients: values by hand, inverses, gradients by finite differences."""

import math

import pytest
import torch

from lit_wsl.tensors.simplex import (
    PARAMETRISATIONS,
    ProjectedLambda,
    normalised,
    simplex_softmax_scaled,
)

BY_HAND = {
    "projected_lambda": lambda row: row,
    "sigmoid_alpha": lambda row: [1 / (1 + math.exp(-a)) for a in row],
    "tanh_alpha": lambda row: [(math.exp(2 * a) - 1) / (math.exp(2 * a) + 1) for a in row],
    "softmax": lambda row: [math.exp(a) / sum(map(math.exp, row)) for a in row],
    "simplex_softmax_scaled": lambda row: [math.exp(a) / sum(map(math.exp, row)) for a in row],
}


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_coefficients_are_those_worked_out_by_hand(name):
    raw = torch.randn(5, 4, dtype=torch.float64)
    expected = torch.tensor([BY_HAND[name](row) for row in raw.tolist()], dtype=torch.float64)
    torch.testing.assert_close(PARAMETRISATIONS[name].coefficients(raw), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_gradients_are_those_of_finite_differences(name):
    raw = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(PARAMETRISATIONS[name].coefficients, (raw,))


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_raw_numbers_give_the_coefficients_back(name):
    wanted = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    way = PARAMETRISATIONS[name]
    torch.testing.assert_close(way.coefficients(way.raw(wanted)), wanted)


@pytest.mark.parametrize("name", PARAMETRISATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_have_finite_raw_numbers_that_learn(name, dtype):
    way = PARAMETRISATIONS[name]
    raw = way.raw(torch.tensor([0.0, 1.0], dtype=dtype)).requires_grad_()
    found = way.coefficients(raw)
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0], dtype=dtype), rtol=0, atol=2e-6)
    found[0].backward()
    assert torch.isfinite(raw).all()
    assert float(raw.grad[0]) > 0.0


def test_projected_lambda_is_brought_back_in_place():
    raw = torch.nn.Parameter(torch.tensor([-0.5, 0.4, 1.5]))
    ProjectedLambda.project(raw, 0.0, 1.0)
    assert raw.tolist() == pytest.approx([0.0, 0.4, 1.0])


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 4)], ids=["global", "per_layer", "per_task"])
def test_magnitudes_scale_shares_and_learn(shape):
    raw = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    magnitude = torch.rand(shape, dtype=torch.float64).add_(0.5).requires_grad_()
    found = simplex_softmax_scaled(raw, magnitude)
    shares = torch.tensor([BY_HAND["softmax"](row) for row in raw.tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, shares * magnitude)
    assert torch.autograd.gradcheck(simplex_softmax_scaled, (raw, magnitude))


def test_normalised_coefficients_sum_to_one_and_a_sum_of_zero_stays_finite():
    coefficients = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(normalised(coefficients).sum(dim=-1), torch.ones(3, dtype=torch.float64))
    assert torch.autograd.gradcheck(normalised, (coefficients,))
    assert normalised(torch.zeros(4)).tolist() == [0.0] * 4


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_bounds_are_those_that_coefficients_come_near_to(name):
    way = PARAMETRISATIONS[name]
    extreme = torch.tensor([[-100.0, 100.0], [100.0, -100.0]], dtype=torch.float64)
    found = way.coefficients(extreme)
    if name == "projected_lambda":
        assert (way.low, way.high) == (-math.inf, math.inf)
    else:
        assert (float(found.min()), float(found.max())) == (pytest.approx(way.low), pytest.approx(way.high))


def test_both_bounds_of_the_tangent_have_finite_raw_numbers():
    way = PARAMETRISATIONS["tanh_alpha"]
    raw = way.raw(torch.tensor([-1.0, -0.5, 0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(way.coefficients(raw), torch.tensor([-1.0, -0.5, 0.5, 1.0]).double(), rtol=0, atol=2e-6)
    assert raw.isfinite().all()


def test_a_small_sum_is_divided_by_and_a_smaller_one_by_its_least():
    assert normalised(torch.tensor([1e-7, 3e-7], dtype=torch.float64)).tolist() == pytest.approx([0.25, 0.75])
    assert normalised(torch.tensor([1e-9, 3e-9], dtype=torch.float64)).tolist() == pytest.approx([0.1, 0.3])


def test_shares_are_over_the_last_of_three_dimensions():
    raw, magnitude = torch.randn(2, 3, 4, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(simplex_softmax_scaled(raw, magnitude).sum(-1), torch.ones(2, 3, dtype=torch.float64))
