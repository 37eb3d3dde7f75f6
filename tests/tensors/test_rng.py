"""The counter-based generator: its words, its statistics, and that only the counter matters."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_wsl.tensors.rng import CounterRng
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
