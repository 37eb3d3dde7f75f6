"""Singular values of differences against float64 SVDs; the rank of planted updates, and of noise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lit_wsl.tensors import spectrum
from lit_wsl.tensors.difference import Stored
from lit_wsl.tensors.lora import LoraFactors, fold
from lit_wsl.tensors.spectrum import DeltaMatrix, leading_spectrum, residual_norm

SHAPES = [(896, 896), (128, 896), (2000, 300), (64, 64)]


def falling(shape, ratio=0.9, seed=0):
    """A matrix whose singular values fall geometrically."""
    g = torch.Generator().manual_seed(seed)
    n = min(shape)
    U = torch.linalg.qr(torch.randn(shape[0], n, generator=g)).Q
    V = torch.linalg.qr(torch.randn(shape[1], n, generator=g)).Q
    return (U * ratio ** torch.arange(n)) @ V.T


def matrix_of(delta, base=None):
    """The difference between a base (zeros unless given) and the base plus ``delta``."""
    base = torch.zeros_like(delta) if base is None else base
    return DeltaMatrix(Stored(base), Stored(base + delta), tuple(delta.shape))


def exact(delta):
    """Singular values in float64."""
    return torch.linalg.svdvals(delta.double())


@pytest.fixture
def streamed(monkeypatch):
    """Every matrix is made anew for each pass, in blocks that end inside it."""
    monkeypatch.setattr(spectrum, "KEPT_ENTRIES", 0)
    monkeypatch.setattr(spectrum, "BLOCK_ENTRIES", 7000)


@pytest.mark.parametrize("shape", [(600, 300), (300, 600), (40, 25), (1, 9), (9, 1)], ids=str)
@pytest.mark.parametrize("is_exact", [False, True])
def test_leading_triplets_are_those_of_a_float64_decomposition(shape, is_exact):
    delta = falling(shape)
    found = leading_spectrum(matrix_of(delta), 40, is_exact=is_exact)
    count = len(found.values)
    U, S, Vh = torch.linalg.svd(delta.double(), full_matrices=False)
    torch.testing.assert_close(found.values[:24], S[:24], rtol=2e-5, atol=1e-6)
    assert found.is_exact is (is_exact or min(shape) <= spectrum.SMALL)
    assert found.shape == shape
    assert count == (min(shape) if found.is_exact else 40)
    assert (found.left.shape, found.right.shape) == ((shape[0], count), (count, shape[1]))
    assert {found.values.dtype, found.row_energy.dtype, found.column_energy.dtype} == {torch.float64}
    for at in range(min(10, count)):
        assert abs(found.right[at].double() @ Vh[at]) == pytest.approx(1.0, abs=1e-4)
        assert abs(found.left[:, at].double() @ U[:, at]) == pytest.approx(float(S[at]), rel=1e-4)


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("shape", [(600, 300), (300, 600), (299, 7001)], ids=str)
def test_a_streamed_matrix_has_the_same_spectrum(shape):
    torch.manual_seed(4)
    base = torch.randn(shape).bfloat16()
    delta = falling(shape) if shape[1] < 7000 else torch.randn(shape[0], 3) @ torch.randn(3, shape[1])
    tuned = base.float() + delta
    found = leading_spectrum(DeltaMatrix(Stored(base), Stored(tuned), shape), 30)
    wanted = exact(tuned.double() - base.double())
    torch.testing.assert_close(found.values[:12], wanted[:12], rtol=1e-4, atol=1e-4)
    assert found.energy == pytest.approx(float(wanted.square().sum()), rel=1e-5)


def test_one_expert_of_a_stack_is_a_slice():
    base, tuned = torch.randn(2, 5, 30, 20)
    for expert in range(5):
        found = leading_spectrum(DeltaMatrix(Stored(base), Stored(tuned), (30, 20), expert * 600), 8)
        torch.testing.assert_close(found.values, exact(tuned[expert] - base[expert]), rtol=1e-5, atol=1e-5)


def test_rows_at_the_end_of_either_side_may_be_left_out():
    base, tuned = torch.randn(12, 20), torch.randn(15, 20)
    found = leading_spectrum(DeltaMatrix(Stored(base), Stored(tuned), (10, 20)), 8)
    torch.testing.assert_close(found.values, exact(tuned[:10] - base[:10]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(400, 300), (50, 30)], ids=str)
def test_energies_are_those_of_all_values(shape):
    delta = falling(shape, 0.97)
    found, wanted = leading_spectrum(matrix_of(delta), 60), exact(delta)
    shares = torch.cumsum(wanted.square(), 0) / wanted.square().sum()
    assert found.energy == pytest.approx(float(wanted.square().sum()), rel=1e-6)
    torch.testing.assert_close(found.row_energy, delta.double().square().sum(1), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.column_energy, delta.double().square().sum(0), rtol=1e-5, atol=1e-8)
    for rank in (1, 2, 7, 20):
        assert found.captured(rank) == pytest.approx(float(shares[rank - 1]), rel=1e-4)
    for energy in (0.1, 0.5, 0.7):
        assert found.rank_for(energy) == int((shares < energy).sum()) + 1


def test_a_rank_beyond_the_known_values_is_unknown():
    delta = torch.randn(400, 300)
    assert leading_spectrum(matrix_of(delta), 20).rank_for(0.95) is None
    assert leading_spectrum(matrix_of(delta), 20, is_exact=True).rank_for(0.95) == 1 + int(
        (torch.cumsum(exact(delta).square(), 0) < 0.95 * exact(delta).square().sum()).sum()
    )


@pytest.mark.parametrize("shape", [(896, 896), (400, 1200), (2000, 300)], ids=str)
@pytest.mark.parametrize("ratio", [1.0, 0.99, 0.9])
def test_factors_are_within_a_percent_of_the_best(shape, ratio):
    """Also where values hardly fall, which is the worst case of a range finder."""
    torch.manual_seed(3)
    delta = torch.randn(shape) if ratio == 1.0 else falling(shape, ratio)
    matrix = matrix_of(delta)
    factors = leading_spectrum(matrix, 72).factors(16)
    best = math.sqrt(exact(delta)[16:].square().sum())
    error = float(torch.linalg.norm(fold(factors, torch.float64) - delta.double()))
    assert best - 1e-6 <= error <= 1.01 * best
    assert residual_norm(matrix, factors) == pytest.approx(error, rel=1e-5)


def test_factors_are_balanced():
    factors = leading_spectrum(matrix_of(falling((50, 30))), 10).factors(5)
    assert (factors.A.shape, factors.B.shape, factors.scale) == ((5, 30), (50, 5), 1.0)
    torch.testing.assert_close(factors.A.norm(dim=1), factors.B.norm(dim=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 5, 20])
@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (400, 300)], ids=str)
def test_factors_can_be_written(shape, rank):
    """Float32, row by row."""
    factors = leading_spectrum(matrix_of(falling(shape)), 20).factors(rank)
    for part in (factors.A, factors.B):
        assert part.dtype == torch.float32
        assert part.is_contiguous()


@pytest.mark.parametrize("block", [50, 7000, 1 << 18])
def test_residual_norm_is_that_of_the_entries(monkeypatch, block):
    monkeypatch.setattr(spectrum, "BLOCK_ENTRIES", block)
    delta = torch.randn(70, 90)
    factors = LoraFactors(torch.randn(4, 90), torch.randn(70, 4), 0.3, (70, 90))
    wanted = np.linalg.norm(delta.double().numpy() - fold(factors, torch.float64).numpy())
    assert residual_norm(matrix_of(delta), factors) == pytest.approx(wanted, rel=1e-6)


def test_a_zero_matrix_has_rank_zero_and_factors():
    for shape in ((40, 30), (400, 300)):
        found = leading_spectrum(matrix_of(torch.zeros(shape)), 8)
        assert (found.rank_above_noise, found.energy, found.captured(1)) == (0, 0.0, 1.0)
        assert not fold(found.factors(4)).any()


def test_the_same_bytes_every_time():
    delta = falling((500, 400))
    one, other = (leading_spectrum(matrix_of(delta), 20) for _ in range(2))
    for name in ("values", "left", "right", "row_energy", "column_energy"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def weight(shape, seed):
    """A random weight with rows of uneven size, a generator for what is added to it, and the sizes."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.exp(0.4 * torch.randn(shape[0], 1, generator=g))
    return 0.02 * sizes * torch.randn(shape, generator=g), sizes, g


def planted(shape, rank, dtype, seed, margin=3.0):
    """A weight, and the same with an update of that rank.

    The singular values of the update are log-uniform over two decades, but stay above ``margin`` times the largest
    one of the rounding.
    """
    base, sizes, g = weight(shape, seed)
    base = base.to(dtype)
    left = torch.linalg.qr(sizes**0.5 * torch.randn(shape[0], rank, generator=g)).Q
    right = torch.linalg.qr(torch.randn(shape[1], rank, generator=g)).Q
    largest = 0.3 * float(base.float().norm()) / math.sqrt(rank)
    rounding = (base.float() + largest * left @ right.T).to(dtype).float() - base.float() - largest * left @ right.T
    least = max(margin * float(torch.linalg.matrix_norm(rounding, 2)), 0.01 * largest)
    values = torch.logspace(math.log10(max(largest, least)), math.log10(least), rank)
    return base, (base.float() + (left * values) @ right.T).to(dtype)


def rank_of(base, tuned):
    """The estimated rank, from more values than it has."""
    return leading_spectrum(DeltaMatrix(Stored(base), Stored(tuned), tuple(base.shape)), 80).rank_above_noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rank", [1, 4, 16, 64])
def test_the_rank_of_a_planted_update_is_found(shape, rank, dtype):
    if rank > min(shape) // 2:
        pytest.skip("no low rank")
    for seed in range(2 if min(shape) > 128 else 5):
        assert rank_of(*planted(shape, rank, dtype, seed)) == rank


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_an_update_of_single_rows_has_their_number_as_its_rank(rank):
    base, _, _ = weight((500, 200), 1)
    tuned = base.bfloat16().float()
    tuned[:: 500 // rank][:rank] += 0.02 * torch.randn(rank, 200)
    assert rank_of(base.bfloat16(), tuned.bfloat16()) == rank


@pytest.mark.parametrize("shape", [*SHAPES, (8, 500), (500, 8)], ids=str)
@pytest.mark.parametrize("kind", ["even", "rows", "columns", "both", "rounding"])
def test_noise_has_rank_zero(shape, kind):
    """No row or column is more than twice as large as the others are: a single loud row *is* of rank one."""
    for seed in range(10 if min(shape) <= 64 else 2):
        base, sizes, g = weight(shape, seed)
        if kind == "rounding":
            assert rank_of(base, base.bfloat16()) == 0
            continue
        noise = 1e-3 * torch.randn(shape, generator=g)
        if kind in ("rows", "both"):
            noise *= 0.5 + torch.rand(shape[0], 1, generator=g)
        if kind in ("columns", "both"):
            noise *= 0.5 + torch.rand(1, shape[1], generator=g)
        assert rank_of(base, base + noise) == 0


def test_the_edge_is_that_of_the_noise_also_behind_triplets_that_took_some_of_it():
    """Sixty-four of 128 left vectors hold half of all noise; the edge is rather too high then than too low."""
    torch.manual_seed(5)
    noise = torch.randn(128, 896)
    update = 100 * torch.linalg.qr(torch.randn(128, 64)).Q @ torch.randn(64, 896)
    found = leading_spectrum(matrix_of(noise + update), 80)
    largest = float(exact(noise)[0])
    for rank in (64, 70, 80):
        assert 0.9 * largest < found.noise_edge(rank) < 1.75 * largest
    assert leading_spectrum(matrix_of(noise), 80).noise_edge(0) == pytest.approx(largest, rel=0.15)


@pytest.mark.parametrize("block", [20, 140, 7000])
@pytest.mark.parametrize("start", [0, 600])
def test_the_edge_of_rounding_is_that_of_the_largest_row_and_column(monkeypatch, block, start):
    """Of the tuned side, from the first entry of the matrix on."""
    monkeypatch.setattr(spectrum, "BLOCK_ENTRIES", block)
    base, tuned = torch.randn(2, 60, 20)
    tuned *= 0.01
    matrix = DeltaMatrix(Stored(base), Stored(tuned), (25, 20), start)
    part = np.square(tuned.reshape(-1)[start : start + 500].double().numpy().reshape(25, 20))
    wanted = 0.25 * (math.sqrt(part.sum(1).max()) + math.sqrt(part.sum(0).max()))
    assert matrix.rounding_edge(0.25) == pytest.approx(wanted, rel=1e-6)


def test_the_edge_of_rounding_adds_up_in_float64(monkeypatch):
    monkeypatch.setattr(spectrum, "BLOCK_ENTRIES", 1)
    tuned = torch.full((3000, 1), 0.1)
    edge = DeltaMatrix(Stored(torch.zeros(3000, 1)), Stored(tuned), (3000, 1)).rounding_edge(1.0)
    assert edge == pytest.approx(0.1 + 0.1 * math.sqrt(3000), rel=2e-7)


@pytest.mark.parametrize("shape", [(300, 200), (64, 500)], ids=str)
def test_what_rounding_leaves_lies_below_its_edge(shape):
    """With the floor of the dtype, which is half of the largest error of an entry."""
    base, _, _ = weight(shape, 2)
    rounded = base.bfloat16()
    edge = DeltaMatrix(Stored(base), Stored(rounded), shape).rounding_edge(2.0**-9)
    assert 0.5 * edge < float(exact(rounded.float() - base)[0]) < edge


def test_an_update_that_falls_slowly_into_the_noise_has_no_knee():
    """No value is twice the next; all that lie above the edge behind them count, and no other."""
    torch.manual_seed(6)
    noise = torch.randn(400, 300)
    largest = float(exact(noise)[0])
    U, V = (torch.linalg.qr(torch.randn(side, 12)).Q for side in (400, 300))
    values = 8 * largest * 0.75 ** torch.arange(12)
    found = leading_spectrum(matrix_of((U * values) @ V.T + noise), 60)
    assert (found.values[:-1] / found.values[1:]).max() < spectrum.KNEE
    rank = found.rank_above_noise
    assert rank == int((values > largest).sum())
    assert [bool(value > found.noise_edge(rank)) for value in found.values[:20]] == [True] * rank + [False] * (
        20 - rank
    )


def test_values_below_a_known_edge_are_noise():
    """As many stand out as lie above it, whatever the rest looks like."""
    delta = falling((300, 200), 0.8)
    found = leading_spectrum(matrix_of(delta), 40)
    for count in (0, 3, 10):
        edge = float((found.values[count - 1] if count else 2 * found.values[0]) + found.values[count]) / 2
        assert replace(found, least_edge=edge).rank_above_noise == count


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("shape", [(300, 400), (400, 300)], ids=str)
def test_the_edge_behind_triplets_is_that_of_the_formula(shape, scale):
    """Row by row: what the triplets leave, over the squared share that their span leaves, a tenth at least."""
    torch.manual_seed(7)
    delta = scale * (torch.randn(shape) + 2 * torch.outer(torch.randn(shape[0]), torch.randn(shape[1])))
    found = leading_spectrum(matrix_of(delta), 20, is_exact=True)
    U, S, Vh = np.linalg.svd(delta.double().numpy(), full_matrices=False)
    square = np.square(delta.double().numpy())
    for rank in (0, 1, 5, 300):
        noise = []
        for energy, span, part in (
            (square.sum(1), U[:, :rank], U[:, :rank] * S[:rank]),
            (square.sum(0), Vh[:rank].T, Vh[:rank].T * S[:rank]),
        ):
            left = energy - np.square(part).sum(1)
            share = np.maximum(1 - np.square(span).sum(1), 0.1)
            noise.append(max(0.0, (left / share**2).max()))
        wanted = max(math.sqrt(noise[0]) + math.sqrt(noise[1]), 1e-6 * S[0])
        assert found.noise_edge(rank) == pytest.approx(
            wanted, rel=1e-3 if rank < 300 else 1.0, abs=1e-2 * S[0] * (rank == 300)
        )


def test_the_rank_of_an_energy_is_known_where_the_values_reach_it():
    """Exactly the share of the known values is still known."""
    delta = falling((400, 300), 0.9)
    found = leading_spectrum(matrix_of(delta), 20)
    share = float((torch.cumsum(found.values.square(), 0) / found.energy)[-1])
    assert found.rank_for(share) == 20
    assert found.rank_for(min(1.0, share * (1 + 1e-6))) is None
    assert leading_spectrum(matrix_of(torch.zeros(400, 300)), 8).rank_for(0.9) == 1


@pytest.mark.parametrize(("count", "is_whole"), [(150, True), (149, False)])
def test_a_matrix_of_which_half_the_values_are_wanted_is_decomposed(count, is_whole):
    found = leading_spectrum(matrix_of(falling((300, 400))), count)
    assert found.is_exact is is_whole
    assert len(found.values) == (300 if is_whole else count)


@pytest.mark.parametrize(("side", "is_whole"), [(256, True), (257, False)])
def test_a_matrix_with_a_short_side_is_decomposed(side, is_whole):
    assert leading_spectrum(matrix_of(torch.randn(side, 300)), 8).is_exact is is_whole


def test_a_matrix_without_columns_has_no_energy():
    assert leading_spectrum(matrix_of(torch.empty(3, 0)), 8).energy == 0.0


def test_no_share_is_larger_than_one():
    """Rounding would make every second one so."""
    for _ in range(30):
        assert leading_spectrum(matrix_of(torch.randn(30, 20)), 8).captured(20) <= 1.0


def test_values_beyond_the_rank_are_numbers():
    """What rounding makes of them in the Gram matrix may be negative."""
    delta = torch.zeros(400, 300)
    delta[::150] = torch.randn(3, 300)
    values = leading_spectrum(matrix_of(delta), 40).values
    assert (values >= 0.0).all()
    torch.testing.assert_close(values[:3], exact(delta)[:3], rtol=1e-4, atol=0.0)


def test_more_iterations_tell_the_last_of_flat_values_better_apart():
    """The iterations are passes over the blocks, beside the one that projects."""
    torch.manual_seed(8)
    delta = torch.randn(500, 400)
    wanted = float(exact(delta)[:40].square().sum())
    captured = [float(leading_spectrum(matrix_of(delta), 40, iterations=n).values.square().sum()) for n in (1, 2, 6)]
    assert captured == sorted(captured)
    assert captured[0] < 0.9 * wanted
    assert captured[2] < wanted * (1 + 1e-6)
    assert float(leading_spectrum(matrix_of(delta), 40).values.square().sum()) == captured[1]


@pytest.mark.parametrize("shape", [(500, 400), (400, 500)], ids=str)
@pytest.mark.parametrize("kept", [0, 199_999, 200_000, 1 << 23])
def test_a_difference_is_read_once_if_it_is_kept(monkeypatch, kept, shape):
    monkeypatch.setattr(spectrum, "KEPT_ENTRIES", kept)
    monkeypatch.setattr(spectrum, "BLOCK_ENTRIES", 7000)
    read, side = [], Stored(torch.randn(shape))
    fill = side.fill
    monkeypatch.setattr(side, "fill", lambda out, start: (read.append(out.numel()), fill(out, start)))
    leading_spectrum(DeltaMatrix(Stored(torch.zeros(shape)), side, shape), 20)
    assert sum(read) == 200_000 * (1 if kept >= 200_000 else 3)
    assert max(read) <= 7000
