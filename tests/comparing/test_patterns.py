"""What the spectrum of a difference says, and which factors are taken out."""

import math

import pytest
import torch

from lit_wsl.comparing.patterns import MOST_VALUES, analyse, is_stack, matrices_of
from lit_wsl.comparing.settings import CompareSettings
from lit_wsl.tensors.difference import Stored
from lit_wsl.tensors.lora import fold
from lit_wsl.tensors.spectrum import DeltaMatrix


def found(delta, rounding=0.0, tuned_norm=1.0, **settings):
    matrix = DeltaMatrix(Stored(torch.zeros_like(delta)), Stored(delta), tuple(delta.shape))
    return analyse(matrix, CompareSettings(**settings), rounding, tuned_norm)


def planted(shape, values, noise=0.0):
    left = torch.linalg.qr(torch.randn(shape[0], len(values))).Q
    right = torch.linalg.qr(torch.randn(shape[1], len(values))).Q
    return (left * torch.tensor(values)) @ right.T + noise * torch.randn(shape)


@pytest.mark.parametrize(
    ("name", "shape", "answer"),
    [
        ("model.layers.0.mlp.experts.gate_up_proj", (8, 32, 16), True),
        ("experts.weight", (8, 32, 16), True),
        ("block_sparse_moe.w1", (8, 32, 16), True),
        ("conv.weight", (8, 32, 3), False),
        ("experts.bias", (8, 32), False),
        ("patch_embed.proj.weight", (8, 3, 4, 4), False),
    ],
)
def test_stacks_are_told_from_kernels(name, shape, answer):
    assert is_stack(name, shape) is answer
    made = list(matrices_of(name, Stored(torch.zeros(shape)), Stored(torch.ones(shape))))
    assert [matrix.shape for matrix in made] == (
        [shape[1:]] * shape[0] if answer else [(shape[0], math.prod(shape[1:]))]
    )


@pytest.mark.parametrize("shape", [(400, 300), (60, 50)], ids=str)
def test_the_figures_of_a_pattern(shape):
    delta = planted(shape, [8.0, 4.0, 2.0, 1.0], 1e-3)
    values = torch.linalg.svdvals(delta.double())
    shares = (torch.cumsum(values.square(), 0) / values.square().sum()).tolist()
    pattern, _, _ = found(delta)
    known = len(pattern.singular_values)
    assert known == (50 if shape[1] == 50 else 72)
    assert pattern.singular_values[:4] == pytest.approx(values[:4].tolist(), rel=1e-5)
    assert (pattern.shape, pattern.effective_rank, pattern.is_exact) == (list(shape), 4, known == 50)
    assert pattern.max_singular_value == pattern.singular_values[0]
    assert pattern.min_singular_value == pattern.singular_values[-1]
    assert pattern.energy_captured == pytest.approx(shares[3], rel=1e-6)
    assert (pattern.rank_95_energy, pattern.rank_99_energy) == tuple(
        1 + sum(share < bar for share in shares) for bar in (0.95, 0.99)
    )
    assert pattern.energy_at == pytest.approx(
        {str(r): shares[r - 1] for r in (1, 2, 4, 8, 16, 32, 64) if r <= known}, rel=1e-4
    )
    edge = float(values[4])
    assert edge < pattern.noise_edge < 1.5 * edge
    assert pattern.rank_confidence == pytest.approx(1 - pattern.noise_edge / pattern.singular_values[3])


@pytest.mark.parametrize(
    ("shape", "rank", "answer"),
    [((900, 700), 66, True), ((900, 700), 67, False), ((400, 300), 30, True), ((400, 300), 31, False)],
    ids=str,
)
def test_the_rule_of_potential_lora(shape, rank, answer):
    """95 % of the energy in less than 64 values and less than a tenth of the smaller side."""
    pattern, _, _ = found(planted(shape, [1.0] * rank + [0.01]))
    assert pattern.rank_95_energy == math.ceil(0.95 * rank)
    assert pattern.is_potential_lora is answer


def test_low_rank_up_to_rounding():
    delta = planted((300, 280), [3.0, 2.0, 1.5], 0.01)
    remainder = math.sqrt(float(torch.linalg.svdvals(delta.double())[3:].square().sum()))
    assert found(delta, rounding=1.02 * remainder)[0].is_low_rank
    assert not found(delta, rounding=0.98 * remainder)[0].is_low_rank
    assert found(planted((300, 280), [3.0, 2.0, 1.5], 1e-5))[0].is_low_rank
    assert not found(0.01 * torch.randn(300, 280), rounding=100.0)[0].is_low_rank


@pytest.mark.parametrize(
    ("settings", "rank"),
    [
        ({}, 5),
        ({"extraction": "never"}, None),
        ({"extraction": "always"}, 5),
        ({"rank": "3"}, 3),
        ({"rank": "12"}, 12),
        ({"rank": "energy:0.5"}, 1),
        ({"rank": "energy:0.95"}, 4),
        ({"rank": "energy:0.95", "max_rank": 2}, 2),
        ({"max_rank": 2}, 5),
        ({"is_exact": True}, 5),
    ],
    ids=str,
)
def test_the_rank_of_what_is_taken_out_of_a_low_rank_update(settings, rank):
    delta = planted((300, 280), [5.0, 2.0, 2.0, 1.0, 1.0], 1e-6)
    _, factors, record = found(delta, **settings)
    assert (factors is None and record is None) if rank is None else (factors.rank, record.rank) == (rank, rank)


@pytest.mark.parametrize(
    ("settings", "rank"),
    [({}, None), ({"rank": "3"}, None), ({"extraction": "always"}, 64)]
    + [({"extraction": "always", "max_rank": 10}, 10), ({"extraction": "always", "rank": "100"}, 100)],
    ids=str,
)
def test_the_rank_of_what_is_taken_out_of_a_dense_update(settings, rank):
    delta = torch.randn(300, 280)
    pattern, factors, record = found(delta, tuned_norm=2 * float(delta.norm()), **settings)
    assert (pattern.effective_rank, pattern.is_low_rank, pattern.rank_confidence) == (0, False, 0.0)
    if rank is None:
        assert factors is None
        return
    assert factors.rank == record.rank == rank
    error = float((delta.double() - fold(factors, torch.float64)).norm() / delta.double().norm())
    assert record.relative_error == pytest.approx(error, rel=1e-5)
    assert record.weight_error == pytest.approx(error / 2, rel=1e-5)
    assert record.parameters == rank * 580


def test_a_rank_is_no_more_than_the_smaller_side():
    _, factors, record = found(torch.randn(6, 9), extraction="always", rank="100")
    assert factors.rank == 6
    assert record.relative_error < 1e-6


@pytest.mark.parametrize("rank", [60, 130])
def test_more_values_are_asked_for_while_the_rank_reaches_the_last(rank):
    delta = planted((900, 800), torch.linspace(3, 1, rank).tolist(), 1e-4)
    pattern, factors, record = found(delta)
    assert (pattern.effective_rank, factors.rank) == (rank, rank)
    assert rank < len(pattern.singular_values) <= MOST_VALUES
    assert record.relative_error < 0.02


@pytest.mark.parametrize("rank", [16, 64])
def test_factors_of_an_asked_rank_are_within_a_percent_of_the_best(rank):
    """Noise is the worst case: all its singular values are alike."""
    delta = torch.randn(600, 520, generator=torch.Generator().manual_seed(5))
    settings = CompareSettings(extraction="always", rank=str(rank), known_values=16)
    matrix = DeltaMatrix(Stored(torch.zeros_like(delta)), Stored(delta), (600, 520))
    _, factors, extracted = analyse(matrix, settings, 0.0, 1.0)
    values = torch.linalg.svdvals(delta.double())
    best = values[rank:].square().sum().sqrt() / values.square().sum().sqrt()
    assert factors.rank == rank
    assert best <= extracted.relative_error <= 1.01 * best


@pytest.mark.parametrize("seed", range(4))
def test_rounding_of_a_few_large_columns_is_no_rank(seed):
    """Their noise stands out of that of the others, as an update would."""
    make = torch.Generator().manual_seed(seed)
    weight = 0.02 * torch.randn(300, 280, generator=make)
    weight[:, :3] *= 60
    update = 0.002 * torch.randn(300, 4, generator=make) @ torch.randn(4, 280, generator=make)
    base, tuned = weight.half(), (weight.half().float() + update).half()
    noise = torch.linalg.svdvals(tuned.double() - base.double() - update.double())
    assert noise[2] > 2 * noise[3]
    matrix = DeltaMatrix(Stored(base), Stored(tuned), (300, 280))
    floor, norm = 2.0**-12, base.float().norm().item()
    pattern, _, _ = analyse(matrix, CompareSettings(), 1.5 * floor * norm, norm, floor)
    assert pattern.effective_rank == 4
