"""Which differences a cast alone explains, and how large those are."""

import itertools

import pytest
import torch

from lit_wsl.tensors.difference import BLOCK_ENTRIES, Stored
from lit_wsl.tensors.rounding import is_rounding, precision, rounding_floor

COARSE = [torch.bfloat16, torch.float16]
WEIGHTS = {
    "normal": lambda: 0.02 * torch.randn(300, 500),
    "wide": lambda: torch.randn(300, 500),
    "uniform": lambda: torch.rand(300, 500) * 2 - 1,
    "rows": lambda: torch.randn(300, 500) * torch.exp(torch.randn(300, 1)),
}


def both(base, tuned):
    """The answer, which does not depend on the direction."""
    answers = {is_rounding(Stored(one), Stored(two)) for one, two in itertools.permutations((base, tuned))}
    assert len(answers) == 1
    return answers.pop()


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("coarse", COARSE, ids=str)
@pytest.mark.parametrize("fine", [torch.float32, torch.float64], ids=str)
def test_a_cast_is_rounding_however_it_is_stored(kind, coarse, fine):
    weight = WEIGHTS[kind]().to(fine)
    assert both(weight, weight.to(coarse))
    assert both(weight, weight.to(coarse).to(fine))


@pytest.mark.parametrize("coarse", COARSE, ids=str)
@pytest.mark.parametrize("entry", [0, BLOCK_ENTRIES - 1, BLOCK_ENTRIES, 149_999])
def test_one_other_entry_is_no_rounding(coarse, entry):
    weight = WEIGHTS["normal"]()
    rounded = weight.to(coarse)
    rounded.view(-1)[entry] *= 1.02
    assert not both(weight, rounded)


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2])
def test_a_small_real_change_is_no_rounding(size):
    weight = WEIGHTS["normal"]()
    assert not both(weight, weight + size * 0.02 * torch.randn_like(weight))
    held = weight.bfloat16().float()
    assert not both(held, held + size * 0.02 * torch.randn_like(weight))


def test_a_cast_between_coarse_dtypes_is_rounding():
    weight = WEIGHTS["normal"]().half()
    assert both(weight, weight.bfloat16())


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("coarse", [*COARSE, torch.float8_e5m2, torch.float8_e4m3fn], ids=str)
def test_the_floor_bounds_a_round_trip_from_above(kind, coarse):
    """And is within a factor of two, where no entry is so small that the dtype has fewer digits for it."""
    weight = WEIGHTS[kind]().double()
    weight = weight * (8.0 if coarse == torch.float8_e4m3fn else 1.0)
    rounded = weight.to(coarse)
    error = float((rounded.double() - weight).norm() / weight.norm())
    for one, two in itertools.permutations((Stored(weight.float()), Stored(rounded))):
        floor = rounding_floor(one, two)
        assert error <= floor * (1.3 if coarse == torch.float8_e4m3fn else 1.0)
        assert floor <= 2 * error


@pytest.mark.parametrize("coarse", COARSE, ids=str)
def test_the_floor_sees_what_a_wide_dtype_was_rounded_to(coarse):
    weight = WEIGHTS["normal"]()
    held = Stored(weight.to(coarse).float())
    assert precision(held) == coarse
    assert rounding_floor(Stored(weight), held) == rounding_floor(Stored(weight), Stored(weight.to(coarse)))
    assert precision(Stored(weight)) == torch.float32
    assert precision(Stored(weight.double() + 1e-12)) == torch.float64
    assert precision(Stored(weight.half())) == torch.float16


def test_integers_have_no_floor():
    assert rounding_floor(Stored(torch.arange(5)), Stored(torch.arange(5))) == 0.0


def test_a_cast_from_float64_to_float32_is_rounding():
    weight = torch.randn(300, 500, dtype=torch.float64)
    assert both(weight, weight.float())
    assert both(weight, weight.float().double())
    assert not both(weight, weight * (1 + 1e-6))
    error = float((weight.float().double() - weight).norm() / weight.norm())
    assert error <= rounding_floor(Stored(weight), Stored(weight.float())) <= 2 * error


@pytest.mark.parametrize("share", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("coarse", COARSE, ids=str)
def test_a_tiny_change_of_values_that_a_coarse_dtype_holds_is_no_rounding(coarse, share):
    """Every entry is near 1, where half a unit of the dtype is more than the change: rounding would undo it."""
    weight = (1.0 + 0.1 * torch.rand(896)).to(coarse)
    size = share * rounding_floor(Stored(weight), Stored(weight))
    tuned = weight.float() * (1.0 + size * torch.randn(896).clamp(-1.5, 1.5))
    assert torch.equal(tuned.to(coarse), weight)
    assert not both(weight, tuned)
    assert not both(weight.float(), tuned)


def test_weights_whose_squares_float32_does_not_hold_are_no_less_rounded():
    tiny = 2.0**-90
    weight = (1.0 + 0.1 * torch.rand(896)).bfloat16()
    tuned = weight.float() * (1.0 + 1e-2 * 2.0**-9 * torch.randn(896).clamp(-1.5, 1.5))
    assert not both(weight * tiny, tuned * tiny)
    assert both(tuned * tiny * 3, (tuned * tiny * 3).bfloat16())


@pytest.mark.parametrize("entries", [1, 3, 15, 16, 100])
def test_few_entries_are_rounded_too(entries):
    for _ in range(50):
        weight = 1.0 + torch.rand(entries)
        assert both(weight, weight.bfloat16())


def test_most_entries_may_be_held_exactly():
    weight = torch.ones(10_000)
    weight[:100] += 0.1 * torch.rand(100)
    assert both(weight, weight.bfloat16())


def test_the_first_entry_counts_for_the_precision():
    held = torch.randn(1000).bfloat16().float()
    assert precision(Stored(held)) == torch.bfloat16
    held[0] = 1.0 + 2.0**-20
    assert precision(Stored(held)) == torch.float32
    assert precision(Stored(held.double())) == torch.float32
    exact = Stored(torch.randn(100, dtype=torch.float64))
    assert rounding_floor(exact, exact) == 2.0**-54


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(("entries", "few"), [(1, True), (15, True), (16, False), (17, False)])
def test_so_few_entries_may_have_moved_by_less_than_rounding_moves_them(entries, few, scale):
    """Of many that a coarse dtype holds; sizes do not matter."""
    held = (scale * (1.0 + torch.rand(500))).bfloat16().float()
    tuned = held.clone()
    tuned[100 : 100 + entries] *= 1.0 + 1e-6
    assert both(held, tuned) is few
    assert both(held * 1.0, (held * (1 + 2.0**-9 * torch.rand(500))).bfloat16().float()) is True


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_a_cast_is_rounding_at_any_size(scale):
    weight = scale * torch.randn(2000)
    assert both(weight, weight.bfloat16())
    changed = weight.bfloat16().float() * (1.0 + 1e-6 * torch.randn(2000))
    assert not both(weight.bfloat16(), changed)


def test_a_change_that_only_float64_sees_is_no_rounding():
    weight = torch.randn(1000)
    assert not both(weight, weight.double() * (1.0 + 1e-12 * torch.randn(1000, dtype=torch.float64)))


def test_one_entry_tells_which_dtype_was_rounded_to():
    """All others would be held by bfloat16, too, from which nothing moves so little."""
    held = (1.0 + torch.randint(0, 128, (1000,)) / 128).float()
    held[0] = 1.0 + 2.0**-9
    exact = held + 2.0**-12 * (2 * torch.rand(1000) - 1)
    assert torch.equal(exact.half().float(), held)
    assert both(exact, held)
    late = torch.cat([torch.ones(BLOCK_ENTRIES), 1.0 + torch.rand(1000)])
    assert both(late, late.half())
