"""Means on a sphere by Gram matrices, against walks of the vectors themselves."""

import math

import pytest
import torch

from lit_wsl.tensors import sphere
from lit_wsl.tensors.sphere import arc, gram, karcher_mean
from tests.oracles import averages

F64 = torch.float64


def combined(vectors, coefficients):
    return (coefficients[:, None] * vectors).sum(0)


def inner(vectors):
    return vectors.double() @ vectors.double().T


@pytest.mark.parametrize("part", [3, 1 << 14])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64])
def test_inner_products_are_those_of_float64(monkeypatch, part, dtype):
    monkeypatch.setattr(sphere, "_PART", part)
    stack = (torch.randn(3, 40) + 100.0).to(dtype).requires_grad_()
    found = gram(stack)
    assert (found.dtype, found.requires_grad) == (F64, False)
    torch.testing.assert_close(found, inner(stack.detach()), rtol=1e-14, atol=0)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("limit", [0.2, 0.9995, 1.0])
def test_a_point_on_the_arc(t, limit):
    vectors = torch.randn(2, 9, dtype=F64) * torch.tensor([[0.3], [20.0]])
    expected = averages.slerp(*vectors.tolist(), t, limit)
    found = combined(vectors, arc(inner(vectors), t, limit))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("angle", [math.pi / 2, 3.0, 1e-3, 1e-5])
def test_a_point_on_the_arc_keeps_the_length_of_unit_vectors(angle):
    """Also for an angle of which the straight line is known to be an approximation only."""
    vectors = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=F64)
    for t in (0.1, 0.5, 0.7):
        x, y = combined(vectors, arc(inner(vectors), t)).tolist()
        assert math.hypot(x, y) == pytest.approx(1.0, abs=1e-10)
        assert math.atan2(y, x) == pytest.approx(t * angle, rel=1e-5)


@pytest.mark.parametrize(
    "pair",
    [[[0.0, 0.0], [1.0, 2.0]], [[1.0, 2.0], [0.0, 0.0]], [[1.0, 2.0], [2.0, 4.0]], [[1.0, 2.0], [-3.0, -6.0]]],
    ids=["first is zero", "second is zero", "parallel", "opposite"],
)
def test_where_there_is_no_arc_the_line_is_straight(pair):
    assert arc(inner(torch.tensor(pair)), 0.3).tolist() == [0.7, 0.3]


@pytest.mark.parametrize("turn", [1.0, -1.0])
def test_the_line_is_straight_beyond_the_largest_cosine_on_either_side(turn):
    for cosine, is_straight in ((0.69, False), (0.7, False), (0.71, True)):
        matrix = torch.tensor([[1.0, turn * cosine], [turn * cosine, 1.0]], dtype=F64)
        assert (arc(matrix, 0.3, 0.7).tolist() == [0.7, 0.3]) is is_straight


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("steps", [0, 1, 3, 60])
@pytest.mark.parametrize("spread", [0.5, 1.5])
def test_steps_to_the_mean_are_those_on_the_vectors(count, steps, spread):
    vectors = spread * torch.randn(count, 6, dtype=F64) + torch.arange(6)
    shares = torch.rand(count, dtype=F64) + 0.1
    shares = shares / shares.sum()
    expected = averages.karcher(vectors.tolist(), shares.tolist(), steps)
    found = combined(vectors, karcher_mean(inner(vectors), shares, steps))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-9, atol=1e-10)


def test_the_mean_is_where_the_tangents_balance_at_the_mean_length():
    """The law that defines it, told by logarithms of the vectors at the mean."""
    vectors = torch.randn(4, 6, dtype=F64) + torch.arange(6)
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    mean = combined(vectors, karcher_mean(inner(vectors), shares, 200, 1e-12))
    assert float(mean.norm()) == pytest.approx(float((shares * vectors.norm(dim=1)).sum()), rel=1e-12)
    at = (mean / mean.norm()).tolist()
    pulls = [averages.logarithm(at, (v / v.norm()).tolist()) for v in vectors]
    balance = averages.weighted_sum(pulls, shares.tolist())
    assert max(map(abs, balance)) < 1e-10


@pytest.mark.parametrize("steps", [1, 50])
@pytest.mark.parametrize("zeros", [[0], [0, 2], [0, 1, 2]], ids=str)
def test_a_zero_has_no_direction_and_counts_for_the_length(zeros, steps):
    vectors = torch.randn(3, 6, dtype=F64) + torch.arange(6)
    vectors[zeros] = 0.0
    shares = torch.tensor([0.5, 0.2, 0.3], dtype=F64)
    expected = torch.tensor(averages.karcher(vectors.tolist(), shares.tolist(), steps), dtype=F64)
    torch.testing.assert_close(combined(vectors, karcher_mean(inner(vectors), shares, steps)), expected)


def test_a_share_of_zero_counts_for_nothing():
    vectors = torch.randn(3, 6, dtype=F64) + torch.arange(6)
    shares = torch.tensor([0.5, 0.5, 0.0], dtype=F64)
    alone = combined(vectors[:2], karcher_mean(inner(vectors[:2]), shares[:2], 50))
    torch.testing.assert_close(combined(vectors, karcher_mean(inner(vectors), shares, 50)), alone)
    only = karcher_mean(inner(torch.zeros(2, 3)), torch.tensor([1.0, 0.0], dtype=F64), 5)
    assert only.tolist() == [1.0, 0.0]
    without = karcher_mean(inner(torch.tensor([[0.0, 0.0], [1.0, 2.0]])), torch.tensor([1.0, 0.0], dtype=F64), 5)
    assert without.tolist() == [1.0, 0.0]


def test_directions_that_balance_have_the_straight_mean():
    pair = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=F64)
    half = torch.tensor([0.5, 0.5], dtype=F64)
    assert karcher_mean(inner(pair), half, 50).tolist() == [0.5, 0.5]
    nearly = torch.tensor([[1.0, 1e-5], [-1.0, 1e-5]], dtype=F64)
    mean = combined(nearly, karcher_mean(inner(nearly), half, 50))
    torch.testing.assert_close(mean, torch.tensor([0.0, 1.0], dtype=F64), rtol=1e-6, atol=1e-6)


def test_a_direction_opposite_to_the_mean_is_left_out():
    """It has no one logarithm; the other two hold the mean where it is."""
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], dtype=F64)
    shares = torch.tensor([0.4, 0.4, 0.2], dtype=F64)
    mean = combined(vectors, karcher_mean(inner(vectors), shares, 10))
    torch.testing.assert_close(mean, torch.tensor([1.0, 0.0], dtype=F64))


@pytest.mark.parametrize(("tolerance", "steps"), [(1e-3, 60), (10.0, 1)])
def test_a_step_shorter_than_the_tolerance_is_the_last(monkeypatch, tolerance, steps):
    vectors = torch.randn(3, 6, dtype=F64) + torch.arange(6)
    shares, taken = torch.full((3,), 1 / 3, dtype=F64), []
    logarithm = sphere._mean_logarithm
    monkeypatch.setattr(sphere, "_mean_logarithm", lambda *given: taken.append(1) or logarithm(*given))
    found = karcher_mean(inner(vectors), shares, 60, tolerance)
    assert 1 <= len(taken) <= min(steps, 20)
    exact = karcher_mean(inner(vectors), shares, 60)
    error = float((combined(vectors, found) - combined(vectors, exact)).norm() / combined(vectors, exact).norm())
    assert error < max(tolerance, 1e-3) / 2


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_directions_all_over_the_sphere(steps, size):
    """Some are more than a right angle away from the mean; sizes do not matter."""
    vectors = size * torch.randn(5, 4, dtype=F64)
    shares = torch.tensor([0.4, 0.2, 0.2, 0.1, 0.1], dtype=F64)
    expected = torch.tensor(averages.karcher(vectors.tolist(), shares.tolist(), steps), dtype=F64)
    found = combined(vectors, karcher_mean(inner(vectors), shares, steps))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9 * size)


def test_rounding_takes_no_cosine_out_of_its_bounds():
    """Parallel and opposite vectors of any digits; a mean of equal ones is that one."""
    thirds = torch.full((3,), 1 / 3, dtype=F64)
    for _ in range(100):
        vector = torch.randn(7, dtype=F64)
        for factor in (3.0, -3.0):
            assert arc(inner(torch.stack([vector, factor * vector])), 0.3).tolist() == [0.7, 0.3]
        equal = torch.stack([vector, vector, vector])
        torch.testing.assert_close(combined(equal, karcher_mean(inner(equal), thirds, 3)), vector)


@pytest.mark.parametrize("turn", [1.0, -1.0])
def test_a_cosine_that_rounding_took_out_of_its_bounds_is_taken_back(turn):
    beyond = turn * (1.0 + 1e-14)
    matrix = torch.tensor([[1.0, beyond], [beyond, 1.0]], dtype=F64)
    assert arc(matrix, 0.3).tolist() == [0.7, 0.3]
    pulls = sphere._mean_logarithm(torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([0.5, 0.5], dtype=F64), matrix)
    assert torch.isfinite(pulls).all()


def test_a_length_that_rounding_took_below_zero_is_zero():
    matrix = torch.tensor([[1.0, 1.0 + 1e-14], [1.0 + 1e-14, 1.0]], dtype=F64)
    assert float(sphere._length(torch.tensor([1.0, -1.0], dtype=F64), matrix)) == 0.0
