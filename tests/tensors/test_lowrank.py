"""Truncated decompositions against numpy's SVD in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_wsl.tensors import lowrank
from lit_wsl.tensors.lora import LoraFactors, concatenate, fold
from lit_wsl.tensors.lowrank import compress, factorise, rank_for_energy
from tests.oracles import linear


def factors(d_out, d_in, rank, *, scale=1.0, transposed=False, seed=0, shape=None):
    g = torch.Generator().manual_seed(seed)
    shape = shape or ((d_in, d_out) if transposed else (d_out, d_in))
    return LoraFactors(
        torch.randn(rank, d_in, generator=g), torch.randn(d_out, rank, generator=g), scale, shape, transposed
    )


def dense(part):
    """The update in the orientation of nn.Linear, float64."""
    return part.scale * part.B.double().numpy() @ part.A.double().numpy()


def falling(d_out, d_in, seed=0):
    """A matrix whose singular values fall geometrically."""
    g = torch.Generator().manual_seed(seed)
    n = min(d_out, d_in)
    U = torch.linalg.qr(torch.randn(d_out, n, generator=g)).Q
    V = torch.linalg.qr(torch.randn(d_in, n, generator=g)).Q
    return (U * 0.8 ** torch.arange(n)) @ V.T


@settings(max_examples=60, deadline=None)
@given(
    d_out=st.integers(1, 12),
    d_in=st.integers(1, 12),
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    rank=st.integers(1, 15),
    transposed=st.booleans(),
)
def test_compress_is_the_best_approximation_of_the_sum(d_out, d_in, ranks, rank, transposed):
    parts = [factors(d_out, d_in, r, scale=0.5 + i, transposed=transposed, seed=i) for i, r in enumerate(ranks)]
    total = sum(dense(p) for p in parts)
    found, energy = compress(parts, rank)
    size = np.linalg.norm(total)
    assert found.rank <= rank
    assert (found.shape, found.transposed, found.scale) == (parts[0].shape, transposed, 1.0)
    error = np.linalg.norm(dense(found) - total)
    assert error <= linear.best_error(total, found.rank) + 1e-5 * size
    assert energy == pytest.approx(linear.retained(total, rank), abs=1e-6)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_compress_finds_the_smallest_rank_of_an_energy(energy):
    matrix = falling(20, 15)
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    part = LoraFactors(Vh, U * S, 1.0, (20, 15))
    found, kept = compress([part], None, energy)
    assert found.rank == linear.rank_for(matrix.double().numpy(), energy)
    assert kept >= energy - 1e-9
    assert compress([part], 2, energy)[0].rank == 2


@pytest.mark.parametrize(("d_out", "d_in"), [(30, 20), (20, 30), (120, 90), (90, 120), (1, 7), (7, 1)])
@pytest.mark.parametrize("rank", [1, 3, 8, 500, None])
@pytest.mark.parametrize("transposed", [False, True])
def test_factorise_is_the_best_approximation(d_out, d_in, rank, transposed):
    """The large shapes with a small rank take the randomised path."""
    matrix = falling(d_out, d_in)
    stored = matrix.T.contiguous() if transposed else matrix
    found, energy = factorise(stored, rank, transposed=transposed)
    wanted = matrix.double().numpy()
    limit = min(rank or 500, d_out, d_in)
    assert found.rank == limit
    assert found.shape == tuple(stored.shape)
    error = np.linalg.norm(fold(found).double().numpy() - stored.double().numpy())
    assert error <= 1.0001 * linear.best_error(wanted, limit) + 2e-5 * np.linalg.norm(wanted)
    assert energy == pytest.approx(linear.retained(wanted, limit), abs=1e-5)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_factorise_finds_the_smallest_rank_of_an_energy(energy):
    matrix = falling(25, 40)
    found, kept = factorise(matrix, None, energy)
    assert found.rank == linear.rank_for(matrix.double().numpy(), energy)
    assert kept >= energy - 1e-6


def test_a_convolution_is_flattened_behind_its_first_dimension():
    kernel = torch.randn(6, 3, 2, 2)
    found, energy = factorise(kernel, None)
    assert (found.A.shape, found.B.shape, energy) == ((6, 12), (6, 6), pytest.approx(1.0))
    torch.testing.assert_close(fold(found), kernel, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 4, None])
def test_a_zero_update_has_zero_factors_and_loses_nothing(rank):
    for found, energy in (
        factorise(torch.zeros(5, 9), rank),
        compress([LoraFactors(torch.zeros(2, 9), torch.zeros(5, 2), 1.0, (5, 9))], rank),
    ):
        assert energy == 1.0
        assert found.rank >= 1
        assert not fold(found).any()


def test_the_same_bytes_every_time():
    matrix = torch.randn(200, 150)
    one, other = (factorise(matrix, 4)[0] for _ in range(2))
    assert torch.equal(one.A, other.A)
    assert torch.equal(one.B, other.B)
    assert factorise(matrix, 4)[1] < 0.2


def test_factors_are_balanced():
    found, _ = factorise(falling(30, 20), 5)
    torch.testing.assert_close(found.A.norm(dim=1), found.B.norm(dim=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("energy", "rank"), [(0.5, 1), (0.8, 1), (0.81, 2), (0.96, 3), (1.0, 3), (1e-9, 1)])
def test_rank_for_energy_by_hand(energy, rank):
    """Squares 16, 3, 1: shares 0.8, 0.95, 1."""
    assert rank_for_energy(torch.tensor([4.0, 3**0.5, 1.0]).double(), energy) == rank


def test_concatenation_is_exact():
    parts = [factors(7, 5, r, scale=s, seed=r) for r, s in ((2, 0.5), (3, -2.0))]
    total = concatenate(parts)
    assert (total.rank, total.scale) == (5, 1.0)
    np.testing.assert_allclose(dense(total), sum(dense(p) for p in parts), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="different parameters"):
        concatenate([parts[0], factors(7, 6, 2)])


@pytest.mark.parametrize("transposed", [False, True])
def test_a_randomised_decomposition_is_taken_where_few_of_many_values_are_wanted(monkeypatch, transposed):
    """From a sketch of less than half the smaller side on; the larger side does not matter."""
    taken = []
    randomised = lowrank._randomised_svd
    monkeypatch.setattr(lowrank, "_randomised_svd", lambda *given: taken.append(given[1]) or randomised(*given))
    matrix = torch.randn(50, 300)
    for rank in (16, 17, 42):
        factorise(matrix.T.contiguous() if transposed else matrix, rank, transposed=transposed)
    assert taken == [16 + lowrank.OVERSAMPLING]


def test_all_defaults_keep_all_of_the_energy():
    matrix = falling(25, 40)
    found, energy = factorise(matrix, None)
    assert (found.rank, energy) == (25, pytest.approx(1.0))
    part = LoraFactors(matrix, torch.eye(25), 1.0, (25, 40))
    assert compress([part], None)[0].rank == 25
    assert compress([part], None)[1] <= 1.0
    assert energy <= 1.0
    assert rank_for_energy(torch.zeros(5), 0.5) == 1


def test_a_share_just_reached_is_reached():
    """0.7 + 0.2 is no more than rounding away from 0.9."""
    values = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).sqrt()
    assert rank_for_energy(values, 0.9) == 2
    assert rank_for_energy(values, 0.9 + 1e-9) == 3
    assert rank_for_energy(torch.tensor([1.0, 1e-5]), 1.0) == 2  # float32 would take the second for nothing
    assert rank_for_energy(torch.tensor([1.0]), 0.5) == rank_for_energy(torch.tensor([0.01]), 0.5) == 1


@pytest.mark.parametrize("shape", [(30, 20), (120, 90), (1100, 1000)], ids=str)
def test_the_share_of_energy_is_told_to_seven_digits(shape):
    """Also of a million entries; half precision counts as what it holds."""
    for dtype in (torch.float32, torch.bfloat16):
        delta = (torch.randn(shape[0], 3) @ torch.randn(3, shape[1]) + 0.1 * torch.randn(shape)).to(dtype)
        found, energy = factorise(delta, 3)
        exact = delta.double()
        left = float((exact - fold(found, torch.float64)).square().sum() / exact.square().sum())
        assert 1.0 - energy == pytest.approx(left, abs=2e-6)
        for part in (found.A, found.B):
            assert part.dtype == torch.float32
            assert part.is_contiguous()


def test_factors_of_a_sum_are_float32_and_contiguous():
    found, _ = compress([factors(7, 5, 2), factors(7, 5, 3)], 3)
    for part in (found.A, found.B):
        assert part.dtype == torch.float32
        assert part.is_contiguous()


@pytest.mark.parametrize("seed", range(30))
def test_no_share_is_larger_than_one(seed):
    """Rounding would make every second one so."""
    torch.manual_seed(seed)
    assert factorise(torch.randn(20, 10), None)[1] <= 1.0
