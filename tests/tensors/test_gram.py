"""What inner products say, against the vectors themselves."""

import numpy as np
import pytest
import torch

from lit_wsl.tensors.gram import mean_cosine


def by_hand(vectors):
    cosines = []
    for i, x in enumerate(vectors):
        for j, y in enumerate(vectors):
            if i != j:
                size = np.linalg.norm(x) * np.linalg.norm(y)
                cosines.append(float(x @ y) / size if size else 0.0)
    return sum(cosines) / len(cosines)


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_the_mean_cosine_is_that_of_all_pairs(count, zeros):
    vectors = torch.randn(count, 7, dtype=torch.float64) * torch.logspace(-4, 4, count, dtype=torch.float64)[:, None]
    vectors[:zeros] = 0.0
    assert mean_cosine(vectors @ vectors.T) == pytest.approx(by_hand(vectors.numpy()), abs=1e-12)


@pytest.mark.parametrize("length", [1.0, 0.1, 7e5])
@pytest.mark.parametrize("turn", [1.0, -1.0])
def test_parallel_and_opposite_vectors_have_no_more_than_one(length, turn):
    vector = length * torch.randn(50, dtype=torch.float64)
    pair = torch.stack([vector, turn * vector / 3])
    found = mean_cosine(pair @ pair.T)
    assert found == pytest.approx(turn, abs=1e-14)
    assert abs(found) <= 1.0


def test_rounded_inner_products_do_not_leave_the_bounds():
    """Products that rounding took beyond the lengths."""
    assert mean_cosine(torch.tensor([[1.0, 1.5], [1.5, 1.0]], dtype=torch.float64)) == 1.0
    assert mean_cosine(torch.tensor([[1.0, -1.5], [-1.5, 1.0]], dtype=torch.float64)) == -1.0
