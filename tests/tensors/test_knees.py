"""Ranks and edges of spectra that are known by hand."""

from dataclasses import replace

import pytest
import torch

from lit_wsl.tensors.difference import Stored
from lit_wsl.tensors.spectrum import DeltaMatrix, Spectrum, leading_spectrum

LOUD, SOFT = 10.0, 1.0


def diagonal(values, shape):
    """Spectrum of a matrix that has these values alone: any edge before a knee is twice the largest one."""
    delta = torch.zeros(shape)
    delta.diagonal().copy_(torch.tensor(values))
    return leading_spectrum(DeltaMatrix(Stored(torch.zeros(shape)), Stored(delta), shape), 8)


def by_hand(values, left, right, row_energy, column_energy):
    """A spectrum of these numbers."""
    wide = (torch.tensor(one, dtype=torch.float64) for one in (row_energy, column_energy))
    return Spectrum(
        torch.tensor(values, dtype=torch.float64), torch.tensor(left), torch.tensor(right), *wide, is_exact=False
    )


@pytest.mark.parametrize("shape", [(6, 6), (6, 20), (20, 6)], ids=str)
@pytest.mark.parametrize(("loud", "rank"), [(1, 1), (2, 2), (3, 3), (4, 0), (5, 0)])
def test_a_knee_is_looked_for_in_the_first_half_of_all_values(shape, loud, rank):
    assert diagonal([LOUD] * loud + [SOFT] * (6 - loud), shape).rank_above_noise == rank


@pytest.mark.parametrize(("loud", "rank"), [(1, 1), (2, 2), (3, 0)])
def test_a_knee_lies_between_two_values_that_are_known(loud, rank):
    found = diagonal([LOUD] * loud + [SOFT] * (20 - loud), (20, 20))
    first = replace(found, values=found.values[:3], left=found.left[:, :3], right=found.right[:3], is_exact=False)
    assert first.rank_above_noise == rank


def test_of_two_knees_the_last_counts():
    assert diagonal([100.0, LOUD] + [SOFT] * 18, (20, 20)).rank_above_noise == 2


@pytest.mark.parametrize(("following", "rank"), [(4.1, 0), (4.0, 0), (3.9, 2), (3.0, 2)])
def test_at_a_knee_values_fall_by_more_than_half(following, rank):
    """The second update is spread over all rows, so the edge behind the knee is low."""
    shape = (40, 40)
    delta = torch.full(shape, following / 39)
    delta[0], delta[:, 0] = 0.0, 0.0
    delta[0, 0] = 8.0
    found = leading_spectrum(DeltaMatrix(Stored(torch.zeros(shape)), Stored(delta), shape), 8)
    values = torch.tensor([8.0, following], dtype=torch.float64)
    first = replace(found, values=values, left=found.left[:, :2], right=found.right[:2], is_exact=False)
    assert first.rank_above_noise == rank


@pytest.mark.parametrize(("edge", "rank"), [(9.99, 1), (10.0, 0)])
def test_at_a_knee_the_value_before_lies_above_the_edge(edge, rank):
    found = diagonal([LOUD] + [SOFT] * 19, (20, 20))
    exact = torch.tensor([LOUD] + [SOFT] * 19, dtype=torch.float64)
    assert replace(found, values=exact, least_edge=edge).rank_above_noise == rank


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_where_nothing_is_left_the_edge_is_what_float32_makes_up(rank):
    found = diagonal([8.0, 2.0, 0.0, 0.0], (4, 4))
    assert found.noise_edge(rank) == pytest.approx(8e-6)


def test_a_triplet_of_zero_spans_no_row():
    """Of the second column it leaves less than a tenth, which counts as a tenth."""
    eye = [[1.0, 0.0], [0.0, 1.0]]
    found = by_hand([2.0, 0.0], [[2.0, 0.0], [0.0, 0.0]], eye, [4.0, 9.0], [4.0, 9.0])
    assert found.noise_edge(2) == pytest.approx(3.0 + 3.0 / 0.1)


def test_energy_that_rounding_took_is_none():
    assert by_hand([2.0], [[2.0]], [[1.0]], [3.9999], [3.9999]).noise_edge(1) == pytest.approx(2e-6)
