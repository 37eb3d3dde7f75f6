"""Interference of a merged matrix with what the tasks answer: its gradient, Adam's steps, and its least value."""

import numpy as np
import pytest
import torch

from lit_wsl.tensors.interference import descend_interference, interference_system, least_interference
from tests.oracles.spectral import interference, wudi

F64 = torch.float64


def tasks(rows=5, columns=7, count=3):
    return torch.randn(count, rows, columns, dtype=F64) * torch.tensor([0.01, 1.0, 30.0])[:count, None, None]


def test_the_system_is_the_gradient_of_the_interference():
    """By central differences of the loss as it is defined, at a point far from all tasks."""
    stack = torch.cat([tasks(), torch.zeros(1, 5, 7, dtype=F64)])
    H, C = interference_system(stack)
    assert (H.dtype, C.dtype, H.shape, C.shape) == (F64, F64, (7, 7), (5, 7))
    merged = torch.randn(5, 7, dtype=F64)
    gradient = 2 * (merged @ H - C)
    for row, column in ((0, 0), (2, 5), (4, 6)):
        step = torch.zeros_like(merged)
        step[row, column] = 1e-4
        losses = [interference((merged + s * step).numpy(), list(stack.numpy())) for s in (1, -1)]
        assert float(gradient[row, column]) == pytest.approx((losses[0] - losses[1]) / 2e-4, rel=1e-6)


def test_a_system_of_float32_is_summed_in_float64():
    stack = tasks().float()
    for found, expected in zip(interference_system(stack), interference_system(stack.double()), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("steps", [0, 1, 2, 50])
@pytest.mark.parametrize("rate", [1e-3, 0.1])
def test_steps_are_those_of_adam(steps, rate):
    stack = tasks()
    start = stack.sum(0)
    before = start.clone()
    found = descend_interference(start, *interference_system(stack), steps, rate)
    np.testing.assert_allclose(found, wudi(list(stack.numpy()), steps=steps, rate=rate), rtol=1e-9, atol=1e-11)
    assert torch.equal(start, before)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_a_matrix_without_interference_stays_as_it_is(size):
    """Tasks with inputs of their own do not disturb each other, so that what the gradient has is rounding."""
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=F64)).Q
    stack = torch.stack([torch.randn(5, 3, dtype=F64) @ basis[:3], torch.randn(5, 3, dtype=F64) @ basis[3:]])
    stack = size * stack
    total = stack.sum(0)
    assert torch.equal(descend_interference(total, *interference_system(stack), 200, 0.1), total)


@pytest.mark.parametrize("columns", [4, 30])
def test_the_least_interference_is_that_of_least_squares(columns):
    """With fewer inputs than columns, what no task has stays zero."""
    stack = tasks(5, columns)
    H, C = interference_system(stack)
    found = least_interference(H, C, 1e-6)
    np.testing.assert_allclose(found, C.numpy() @ np.linalg.pinv(H.numpy(), rcond=1e-11), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found, wudi(list(stack.numpy()), "exact"), rtol=1e-5, atol=1e-6)
    best = interference(found.numpy(), list(stack.numpy()))
    for _ in range(20):
        other = found + 1e-3 * torch.randn_like(found)
        assert interference(other.numpy(), list(stack.numpy())) > best


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("size", [1e-3, 1e-5])
def test_directions_up_to_the_noise_count_as_zero(tasks, size):
    """An input with a small share of the norm is kept for a noise below that, and left out above."""
    wide = torch.diag(torch.tensor([1.0, 1.0, size], dtype=F64))
    H, C = interference_system(wide.expand(tasks, 3, 3))
    for noise, kept in ((size / 10, True), (size / 2**0.5 / 1.01, True), (size / 2**0.5 * 1.01, False), (0.1, False)):
        expected = wide if kept else wide * torch.tensor([1.0, 1.0, 0.0], dtype=F64)
        torch.testing.assert_close(least_interference(H, C, noise), expected, rtol=1e-5, atol=size * 1e-4)
    assert not least_interference(*interference_system(torch.zeros(2, 3, 3)), 1e-6).any()


@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_system_that_is_not_finite_gives_no_numbers(broken, value):
    system = list(interference_system(tasks()))
    system[broken][0, 0] = value
    found = least_interference(*system, 1e-6)
    assert found.shape == (5, 7)
    assert found.isnan().all()
