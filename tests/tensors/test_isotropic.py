"""Flat spectra, nearest frames and triplets against NumPy's decompositions."""

import numpy as np
import pytest
import torch

from lit_wsl.tensors.isotropic import common_and_specific, flattened, specific_directions
from lit_wsl.tensors.procrustes import nearest_isometry, orthogonalised_sum
from lit_wsl.tensors.singular import Triplets, decompose
from tests.oracles.spectral import iso_c, iso_cts, polar

F64 = torch.float64


def of_rank(rows, columns, rank, dtype=F64):
    return (torch.randn(rows, rank, dtype=F64) @ torch.randn(rank, columns, dtype=F64)).to(dtype)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(6, 9, 6), (9, 6, 6), (8, 8, 3), (1, 5, 1), (5, 1, 1)])
def test_a_flat_spectrum_keeps_the_nuclear_norm_and_the_directions(rows, columns, rank):
    matrix = of_rank(rows, columns, rank)
    found = flattened(matrix)
    np.testing.assert_allclose(found, iso_c([matrix.numpy()]), rtol=1e-9, atol=1e-11)
    values = torch.linalg.svdvals(found)
    mean = float(torch.linalg.svdvals(matrix)[:rank].mean())
    torch.testing.assert_close(values, torch.tensor([mean] * rank + [0.0] * (len(values) - rank), dtype=F64))


def test_a_flat_zero_is_zero():
    assert not flattened(torch.zeros(4, 5)).any()
    assert not common_and_specific(torch.zeros(3, 4, 5), 0.8).any()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)], ids=str)
def test_common_and_specific_directions(share, shape):
    stack = torch.randn(3, *shape, dtype=F64)
    found = common_and_specific(stack, share)
    np.testing.assert_allclose(found, iso_cts(list(stack.numpy()), share), rtol=1e-8, atol=1e-10)


def test_more_directions_than_the_smaller_side_are_those_of_a_larger_matrix():
    """The core of a large matrix: as many directions as that matrix would have."""
    stack = torch.zeros(2, 9, 9, dtype=F64)
    stack[:, :4, :4] = torch.randn(2, 4, 4, dtype=F64)
    small = common_and_specific(stack[:, :4, :4], 0.5, directions=9)
    torch.testing.assert_close(small, common_and_specific(stack, 0.5)[:4, :4], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("directions", "tasks", "share", "each"),
    [
        (10, 2, 0.8, 1),
        (10, 2, 1.0, 0),
        (10, 2, 0.0, 5),
        (10, 3, 0.0, 3),
        (10, 4, 0.0, 2),
        (11, 3, 0.0, 3),
        (9, 2, 0.5, 2),
    ],
)
def test_directions_are_divided_among_the_tasks(directions, tasks, share, each):
    """The rest over the tasks, rounded to the nearest, and never more than there are."""
    assert specific_directions(directions, tasks, share) == each


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_task_inside_the_common_space_has_no_direction_of_its_own(dtype, size):
    """What rounding leaves of it beside the common space is measured against the task, not against what is left."""
    column, rows = torch.randn(6, 1, dtype=F64), torch.randn(2, 1, 8, dtype=F64)
    stack = (size * column * rows).to(dtype)
    expected = stack.sum(0).double()
    torch.testing.assert_close(common_and_specific(stack, 0.5), expected, rtol=1e-5, atol=1e-6 * size)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(9, 4, 4), (4, 9, 4), (7, 7, 3)])
def test_the_nearest_isometry_is_the_polar_factor(rows, columns, rank):
    frame = of_rank(rows, columns, rank)
    found = nearest_isometry(frame)
    np.testing.assert_allclose(found, polar(frame.numpy()), rtol=1e-7, atol=1e-7)
    values = torch.linalg.svdvals(found)
    torch.testing.assert_close(values.round(), values, rtol=0, atol=1e-12)
    assert int(values.sum().round()) == rank


def test_directions_of_a_frame_up_to_a_millionth_are_rounding():
    for size, kept in ((1e-5, 2), (1e-7, 1)):
        frame = torch.diag(torch.tensor([1.0, size], dtype=F64))
        assert int(nearest_isometry(frame).sum().round()) == kept


def test_triplets_of_orthogonal_parts_add_up_as_they_are():
    basis, turn = (torch.linalg.qr(torch.randn(8, 8, dtype=F64)).Q for _ in range(2))
    values = torch.tensor([5.0, 4.0, 3.0, 2.0], dtype=F64)
    whole = (basis[:, :4] * values) @ turn[:4]
    parts = [Triplets(basis[:, s], values[s], turn[s]) for s in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(orthogonalised_sum(parts), whole)
    ones = (basis[:, :4] * 7.0) @ turn[:4]
    torch.testing.assert_close(orthogonalised_sum(parts, torch.full((4,), 7.0, dtype=F64)), ones)


@pytest.mark.parametrize(("rows", "columns"), [(5, 8), (8, 5), (200, 150), (150, 200), (129, 129), (300, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_triplets_are_orthonormal_and_give_the_matrix_back(rows, columns, dtype):
    """Beyond 128 entries a side, float32 takes the Gram matrix."""
    matrix = of_rank(rows, columns, 5, dtype)
    found = decompose(matrix)
    assert found.S.shape == (5,)
    assert found.S.dtype == F64
    torch.testing.assert_close(found.S, torch.linalg.svdvals(matrix.double())[:5], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close((found.U * found.S) @ found.Vh, matrix.double(), rtol=1e-5, atol=1e-5)
    for frame in (found.U.T @ found.U, found.Vh @ found.Vh.T):
        torch.testing.assert_close(frame, torch.eye(5, dtype=F64), rtol=0, atol=1e-6)
    assert decompose(matrix).leading(2).U.shape == (rows, 2)
    assert decompose(matrix).leading(9).Vh.shape == (5, columns)


@pytest.mark.parametrize("size", [3, 200])
def test_values_up_to_the_noise_are_left_out(size):
    """Shares of the norm: what float32 leaves by default, never less than float64 leaves."""
    values = torch.zeros(size, dtype=F64)
    values[:3] = torch.tensor([1.0, 1e-4, 1e-9])
    matrix = torch.diag(values)
    assert [len(decompose(matrix, noise).S) for noise in (1e-2, 1e-5, 1e-10, 0.0)] == [1, 2, 3, 3]
    assert len(decompose(matrix.float()).S) == 2
    assert len(decompose(matrix).S) == 3
    values[2] = 1e-14
    assert len(decompose(torch.diag(values), 0.0).S) == 2
    assert len(decompose(torch.zeros(size, size)).S) == 0


@pytest.mark.parametrize("size", [20, 200])
def test_small_values_of_float64_keep_their_digits(size):
    """The Gram matrix would lose those below a hundred millionth."""
    U, V = (torch.linalg.qr(torch.randn(size, 3, dtype=F64)).Q for _ in range(2))
    values = torch.tensor([1.0, 1e-4, 1e-11], dtype=F64)
    torch.testing.assert_close(decompose((U * values) @ V.T).S, values, rtol=1e-3, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_has_one_triplet_of_nothing(value):
    matrix = torch.ones(3, 4)
    matrix[1, 2] = value
    found = decompose(matrix)
    assert (found.U.shape, found.S.shape, found.Vh.shape) == ((3, 1), (1,), (1, 4))
    assert all(part.isnan().all() and part.dtype == F64 for part in (found.U, found.S, found.Vh))
