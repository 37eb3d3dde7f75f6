"""The counter-based generator: its words, its statistics, and that only the counter matters."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_wsl.tensors import rng as rng_module
from lit_wsl.tensors.rng import CounterRng, limit_of
from tests.oracles.methods import uniform_number, word

COUNT = 1 << 18


def uniform(seed, label, count=COUNT, offset=0):
    return (CounterRng(seed).words(label, count, offset).double() + (1 << 31)) / (1 << 32)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(-(2**40), 2**70),
    label=st.text(max_size=20),
    offset=st.one_of(st.integers(0, 2**35), st.integers(2**32 - 8, 2**32 + 8), st.integers(2**31 - 8, 2**31 + 8)),
)
def test_words_match_plain_python(seed, label, offset):
    words = CounterRng(seed).words(label, 12, offset).tolist()
    assert [w % 2**32 for w in words] == [word(seed, label, offset + i) for i in range(12)]


@pytest.mark.parametrize("offset", [0, 1, 1000, 2**31 - 5, 2**32 - 3, 2**32, 3 * 2**32 - 1])
def test_an_offset_cuts_the_same_stream(offset):
    rng = CounterRng(5)
    whole = rng.words("a", 50, offset)
    for start in (1, 2, 17, 49):
        assert torch.equal(rng.words("a", 50 - start, offset + start), whole[start:])


def test_every_bit_and_every_residue_is_fair():
    words = CounterRng(11).words("bits", COUNT)
    for bit in range(32):
        ones = int((words >> bit & 1).sum())
        assert abs(ones - COUNT / 2) < 5 * math.sqrt(COUNT) / 2, bit
    counts = torch.bincount((uniform(11, "bits") * 256).long(), minlength=256).double()
    chi = float(((counts - COUNT / 256) ** 2 / (COUNT / 256)).sum())
    assert abs(chi - 255) < 5 * math.sqrt(2 * 255)


def test_neighbours_are_uncorrelated():
    x = uniform(2, "lag") - 0.5
    for lag in (1, 2, 3, 64, 1024):
        correlation = float((x[:-lag] * x[lag:]).mean() * 12)
        assert abs(correlation) < 5 / math.sqrt(COUNT), lag


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, "a"), (0, "b")),
        ((0, "a"), (1, "a")),
        ((0, "0/w"), (0, "1/w")),
        ((0, "1/w"), (0, "1/w ")),
        ((-1, "a"), (1, "a")),
    ],
    ids=str,
)
def test_streams_of_other_labels_and_seeds_are_independent(one, other):
    x, y = uniform(*one) - 0.5, uniform(*other) - 0.5
    assert abs(float((x * y).mean() * 12)) < 5 / math.sqrt(COUNT)
    for shift in (1, 2, 7):
        assert abs(float((x[shift:] * y[:-shift]).mean() * 12)) < 5 / math.sqrt(COUNT)
    assert int((x == y).sum()) < 10


def test_streams_before_and_after_2_to_the_32_are_independent():
    x, y = uniform(0, "w") - 0.5, uniform(0, "w", offset=2**32) - 0.5
    assert abs(float((x * y).mean() * 12)) < 5 / math.sqrt(COUNT)


@pytest.mark.parametrize("probability", [0.0, 0.001, 0.1, 0.5, 0.999, 1.0])
def test_masks_have_their_probability(probability):
    mask = CounterRng(4).keep_mask("m", probability, torch.empty(COUNT // 4, 4))
    assert (mask.shape, mask.dtype) == ((COUNT // 4, 4), torch.bool)
    deviation = math.sqrt(COUNT * probability * (1 - probability))
    assert abs(int(mask.sum()) - COUNT * probability) <= 5 * deviation


def test_masks_match_plain_python():
    mask = CounterRng(9).keep_mask("0/x", 0.3, torch.empty(200))
    assert mask.tolist() == [uniform_number(9, "0/x", i) < 0.3 for i in range(200)]


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 5, 2**32 - 7, 2**33 + 2**31 + 3])
@pytest.mark.parametrize("kind", ["upper byte", "all bits"])
def test_a_draw_is_below_the_number_behind_it_and_not_below_itself(offset, kind):
    """Each draw's own number as its limit, which all of its bits decide, or the next one that an upper byte decides."""
    rng, count = CounterRng(3), 60
    numbers = np.array([round(uniform_number(3, "d", offset + i) * 2**32) for i in range(count)], dtype=np.int64)
    if kind == "upper byte":
        not_below, below = numbers >> 24 << 24, (numbers >> 24) + 1 << 24
    else:
        not_below, below = numbers, numbers + 1
    assert not rng.below("d", not_below, count, offset).any()
    assert rng.below("d", below, count, offset).all()
    for i in range(0, count, 7):
        assert rng.below("d", int(not_below[i]), count, offset)[i] == np.False_
        assert rng.below("d", int(below[i]), count, offset)[i] == np.True_


def test_limits_at_the_ends():
    rng = CounterRng(3)
    assert rng.below("d", 2**32, 50).tolist() == [True] * 50
    assert rng.below("d", 0, 50).tolist() == [False] * 50
    mixed = rng.below("d", np.array([0, 2**32] * 25), 50)
    assert mixed.tolist() == [False, True] * 25
    numbers = np.array([round(uniform_number(3, "d", i) * 2**32) for i in range(50)], dtype=np.int64)
    numbers[7] = 2**32
    assert np.flatnonzero(rng.below("d", numbers, 50)).tolist() == [7]
    assert rng.below("d", np.empty(0, np.int64), 0).tolist() == []
    assert [limit_of(p) for p in (-0.5, 0.0, 0.25, 1.0, 1.5)] == [0, 0, 2**30, 2**32, 2**32]
    assert limit_of(2**-33 * 1.01) == 1


def test_words_begin_at_the_first_element_and_pieces_are_of_one_stream(monkeypatch):
    whole = CounterRng(1).words("w", 40_000)
    assert [w % 2**32 for w in whole[:3].tolist()] == [word(1, "w", i) for i in range(3)]
    assert int(whole[39_999]) % 2**32 == word(1, "w", 39_999)
    monkeypatch.setattr(rng_module, "_PIECE", 100)
    rng_module._ramp.cache_clear()
    assert torch.equal(CounterRng(1).words("w", 40_000), whole)
    monkeypatch.undo()
    rng_module._ramp.cache_clear()


@pytest.mark.parametrize("count", [7, 8])
def test_normal_numbers_are_the_transform_of_pairs_of_words(count):
    """Radius and angle from the first and the second half of as many words, by plain Python."""
    found = CounterRng(6).normal("n", count).tolist()
    uniform = [(word(6, "n", i) ^ 1 << 31) for i in range(8)]
    uniform = [(number + 0.5) / 2**32 for number in uniform]
    expected = []
    for turn in (math.cos, math.sin):
        for one, other in zip(uniform[:4], uniform[4:], strict=True):
            expected.append(math.sqrt(-2 * math.log(one)) * turn(2 * math.pi * other))
    assert found == pytest.approx(expected[:count], rel=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100_001])
def test_normal_numbers_are_normal(count):
    x = CounterRng(0).normal("n", count)
    assert (x.shape, x.dtype) == ((count,), torch.float32)
    if count > 1000:
        x = x.double()
        assert torch.isfinite(x).all()
        for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
            assert float((x**power).mean()) == pytest.approx(
                moment, abs=5 * {1: 1, 2: 1.5, 3: 4, 4: 10}[power] / count**0.5
            )


def test_normal_numbers_are_finite_at_the_ends_of_the_words(monkeypatch):
    """Half a step from zero and from one."""
    for word_, number in ((-(2**31), 0.5), (2**31 - 1, 2**32 - 0.5)):
        monkeypatch.setattr(CounterRng, "words", lambda self, label, count, first=word_: torch.tensor([first, 0]))
        radius = math.sqrt(-2.0 * math.log(number / 2**32))
        assert -float(CounterRng(0).normal("n", 1)) == pytest.approx(radius, rel=1e-5)
