"""The regression mean against least squares on inputs that are written out."""

import numpy as np
import pytest
import torch

from lit_wsl.tensors.regression import regression_mean, shrink_gram

F64 = torch.float64


def inputs(count, columns, rows=50):
    return [np.random.default_rng(t).normal(size=(rows, columns)) * 10.0 ** (t - 1) for t in range(count)]


def by_least_squares(matrices, given):
    """One layer that answers all inputs, nearest to the mean where no input decides, for inputs of equal size."""
    mean, X = matrices.mean(0).numpy(), np.vstack(given)
    sizes = np.linalg.norm(X, axis=0)
    wanted = np.vstack([x @ (w.numpy() - mean).T for x, w in zip(given, matrices, strict=True)])
    return mean + np.linalg.lstsq(X / sizes, wanted, rcond=1e-8)[0].T / sizes


def grams_of(given):
    return torch.tensor(np.array([x.T @ x for x in given]))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_shrinking_keeps_the_diagonal(alpha):
    gram = torch.randn(5, 5, dtype=F64)
    found = shrink_gram(gram, alpha)
    for i in range(5):
        for j in range(5):
            assert float(found[i, j]) == pytest.approx(float(gram[i, j]) * (1.0 if i == j else alpha))


def test_unshrunk_it_is_the_least_squares_answer():
    matrices, given = torch.randn(3, 4, 6, dtype=F64), inputs(3, 6)
    found = regression_mean(matrices, grams_of(given), 1.0, 1e-10)
    np.testing.assert_allclose(found, by_least_squares(matrices, given), rtol=1e-8, atol=1e-9)


def test_directions_without_an_input_take_the_mean():
    matrices, given = torch.randn(2, 4, 6, dtype=F64), inputs(2, 6, rows=2)
    found = regression_mean(matrices, grams_of(given), 1.0, 1e-10)
    np.testing.assert_allclose(found, by_least_squares(matrices, given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.9])
def test_shrunk_it_is_the_formula_with_the_inverse(alpha):
    matrices, given = torch.randn(3, 4, 6, dtype=F64), inputs(3, 6)
    grams = [np.where(np.eye(6) == 1, g, alpha * g) for g in grams_of(given).numpy()]
    expected = sum(w.numpy() @ g for w, g in zip(matrices, grams, strict=True)) @ np.linalg.inv(sum(grams))
    found = regression_mean(matrices, grams_of(given), alpha, 1e-10)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_an_input_that_is_always_zero_takes_the_mean(alpha):
    matrices, given = torch.randn(2, 4, 6, dtype=F64), inputs(2, 6)
    for x in given:
        x[:, 3] = 0.0
    found = regression_mean(matrices, grams_of(given), alpha, 1e-10)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, 3], matrices[:, :, 3].mean(0))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_shared_offset_comes_back_and_sizes_of_inputs_do_not_matter(alpha):
    """Inputs of very unequal size are scaled alike before what is small counts as no direction."""
    matrices, grams = torch.randn(2, 4, 6, dtype=F64), grams_of(inputs(2, 6))
    found = regression_mean(matrices, grams, alpha, 1e-8)
    offset = 1e3 * torch.randn(4, 6, dtype=F64)
    torch.testing.assert_close(regression_mean(matrices + offset, grams, alpha, 1e-8), found + offset)
    sizes = torch.logspace(-6, 6, 6, dtype=F64)
    scaled = regression_mean(matrices / sizes, grams * sizes * sizes[:, None], alpha, 1e-8)
    torch.testing.assert_close(scaled * sizes, found, rtol=1e-8, atol=1e-8)


def test_eigenvalues_up_to_the_noise_are_no_direction():
    """Two inputs that are nearly the same: their difference has a ten-thousandth of the eigenvalue of their sum."""
    near = 1.0 - 2e-4
    grams = (
        torch.tensor([[1.0, near], [near, 1.0]], dtype=F64).expand(2, 2, 2) * torch.tensor([1.0, 3.0])[:, None, None]
    )
    matrices = torch.randn(2, 3, 2, dtype=F64)
    mean, full = matrices.mean(0), (matrices[0] + 3 * matrices[1]) / 4
    torch.testing.assert_close(regression_mean(matrices, grams, 1.0, 0.9e-4), full, rtol=1e-8, atol=1e-8)
    along = torch.ones(2, 2, dtype=F64) / 2
    cut = mean + (full - mean) @ along
    torch.testing.assert_close(regression_mean(matrices, grams, 1.0, 1.1e-4), cut, rtol=1e-8, atol=1e-8)


def test_half_precision_is_computed_in_float64():
    matrices, grams = torch.randn(2, 4, 6), grams_of(inputs(2, 6)).float()
    found = regression_mean(matrices, grams, 0.9, 1e-10)
    assert found.dtype == F64
    torch.testing.assert_close(
        found, regression_mean(matrices.double(), grams.double(), 0.9, 1e-10), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_one_matrix_is_its_own_mean(alpha):
    matrix = torch.randn(1, 4, 6, dtype=F64)
    torch.testing.assert_close(regression_mean(matrix, grams_of(inputs(1, 6)), alpha, 1e-10), matrix[0])


@pytest.mark.parametrize("noise", [0.3, 0.36])
def test_an_input_that_is_always_zero_says_nothing_about_noise(noise):
    """Two inputs of correlation a half have the eigenvalues 1.5 and 0.5; 0.3 of the larger is less than the smaller."""
    matrices = torch.randn(2, 4, 3, dtype=F64)
    gram = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=F64)
    grams = torch.stack([0.25 * gram, 0.75 * gram])
    found = regression_mean(matrices, grams, 1.0, noise)
    alone = regression_mean(matrices[..., :2], grams[:, :2, :2], 1.0, noise)
    torch.testing.assert_close(found[:, :2], alone)
    is_dropped = noise > 1 / 3
    weighted = 0.25 * matrices[0, :, :2] + 0.75 * matrices[1, :, :2]
    assert torch.allclose(alone, weighted) is not is_dropped
