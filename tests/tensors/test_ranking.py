"""Ranks of a stream: found between guessed bounds, or by counting when the guess was wrong."""

import copy
import math

import pytest
import torch

from lit_wsl.merging import merge_tensors
from lit_wsl.tensors import ranking
from lit_wsl.tensors.magnitudes import as_float, magnitude_patterns
from lit_wsl.tensors.ranking import RankSelector

COUNT = 400_000


def stream(kind):
    torch.manual_seed(3)
    x = torch.randn(COUNT)
    if kind == "rising":
        return x.sort().values
    return (x * 4).round() if kind == "coarse" else x * 10.0 ** torch.randint(-30, 30, (COUNT,))


def passes_of(selector, blocks):
    """Passes until every magnitude is known."""
    for number in range(1, 6):
        for block in blocks:
            selector.update(block)
        if selector.end_pass():
            return number
    raise AssertionError("no end")


def expected(x, ranks):
    ordered = x.abs().sort(descending=True).values
    return [math.inf if rank == 0 else float(ordered[rank - 1]) for rank in ranks]


@pytest.mark.parametrize("kind", ["wide", "rising", "coarse"])
@pytest.mark.parametrize("within", [None, 10])
def test_both_ways_find_what_a_sort_finds(monkeypatch, kind, within):
    if within is not None:
        monkeypatch.setattr(ranking, "_WITHIN", within)
    x, ranks = stream(kind), [0, 1, 7, COUNT // 5, COUNT // 2, COUNT - 3, COUNT]
    selector = RankSelector(lambda count: ranks)
    assert passes_of(selector, x.split(100_003)) == (2 if within is None else 4)
    assert selector.values == expected(x, ranks)


def test_a_wrong_guess_is_mended(monkeypatch):
    guessed = ranking._guessed
    monkeypatch.setattr(ranking, "_guessed", lambda sample, rank, entries: guessed(sample, rank // 2, entries))
    x, ranks = stream("wide"), [COUNT // 5, COUNT // 3]
    selector = RankSelector(lambda count: ranks)
    assert passes_of(selector, x.split(1 << 17)) == 4
    assert selector.values == expected(x, ranks)


@pytest.mark.parametrize("within", [None, 10])
def test_scans_of_parts_add_up(monkeypatch, within):
    if within is not None:
        monkeypatch.setattr(ranking, "_WITHIN", within)
    x, whole = stream("wide"), RankSelector(lambda count: [count // 4])
    while whole.values is None:
        parts = []
        for part in (x[:5], x[5:300_000], x[300_000:]):
            blank = copy.deepcopy(whole)
            for block in part.split(50_000):
                blank.update(block)
            parts.append(blank)
        for part in parts:
            whole.add(part)
        whole.end_pass()
    assert whole.values == expected(x, [COUNT // 4])


@pytest.mark.parametrize("within", [None, 10])
@pytest.mark.parametrize("zeros", [0.0, 0.6])
def test_entries_that_are_zero_need_not_count(monkeypatch, zeros, within):
    if within is not None:
        monkeypatch.setattr(ranking, "_WITHIN", within)
    x = stream("wide")
    x[torch.rand(COUNT) < zeros] = 0.0
    selector = RankSelector(lambda count: [count // 3], of_nonzero=True)
    passes_of(selector, x.split(100_000))
    assert selector.values == expected(x, [int(x.count_nonzero()) // 3])


@pytest.mark.parametrize("within", [None, 10])
def test_sce_of_a_large_parameter_matches_float64(monkeypatch, within):
    if within is not None:
        monkeypatch.setattr(ranking, "_WITHIN", within)
    torch.manual_seed(5)
    stack = torch.randn(3, COUNT).mul_(torch.rand(3, COUNT) < 0.5)
    deltas = stack.double()
    variance = deltas.var(0, correction=0)
    varying = variance[variance > 0].sort(descending=True).values
    chosen = deltas * (variance >= varying[math.ceil(0.2 * len(varying)) - 1] * (1 - 1e-9))
    weights = chosen.square().sum(1, keepdim=True)
    agrees = chosen * chosen.sum(0).sign() > 0
    share = (weights * agrees).sum(0)
    wanted = (weights * chosen * agrees).sum(0) / share.masked_fill(share == 0, 1.0)
    torch.testing.assert_close(merge_tensors("sce", stack, density=0.2).double(), wanted, rtol=1e-5, atol=1e-6)


SMALL = 3000


def small(seed, kind):
    """A short stream that is many times longer than its sample."""
    x = torch.randn(SMALL, generator=torch.Generator().manual_seed(seed))
    if kind == "falling":
        return x.abs().sort(descending=True).values
    return {"normal": x, "coarse": (x * 2).round(), "sparse": x * (x > 0.5), "zero": torch.zeros(SMALL)}[kind]


@pytest.fixture(params=[10, 400, 1 << 21])
def short_sample(request, monkeypatch):
    """A sample of fifty entries, and room for so many between the bounds."""
    monkeypatch.setattr(ranking, "_SAMPLE", 50)
    monkeypatch.setattr(ranking, "_WITHIN", request.param)


@pytest.mark.usefixtures("short_sample")
@pytest.mark.parametrize("of_nonzero", [False, True])
@pytest.mark.parametrize("cuts", [[], [1, 40, 1500], [2900]], ids=str)
@pytest.mark.parametrize("kind", ["normal", "falling", "coarse", "sparse", "zero"])
def test_short_streams_cut_anywhere_find_what_a_sort_finds(kind, cuts, of_nonzero):
    """Parts of uneven size have samples of uneven distance."""
    x, ranks = small(1, kind), [SMALL // 7, 0, 1, 2, SMALL // 2, SMALL - 1, SMALL]
    counted = int(x.count_nonzero()) if of_nonzero else SMALL
    told = []
    whole = RankSelector(lambda count: told.append(count) or ranks, of_nonzero=of_nonzero)
    for _ in range(5):
        parts = []
        for part in torch.tensor_split(x, cuts):
            blank = copy.deepcopy(whole)
            for block in part.split(77):
                blank.update(block)
            parts.append(blank)
        for part in parts:
            whole.add(part)
        if whole.end_pass():
            break
    assert len(told) == 2 or (len(told) == 4 and ranking._WITHIN < SMALL)
    assert whole.values == expected(x, ranks)
    assert whole.entries == SMALL
    assert len(told) == 4 or told[-1] == counted


@pytest.mark.usefixtures("short_sample")
@pytest.mark.parametrize("step", [1, 7, 49, 500])
def test_a_sample_is_of_equal_distances_whatever_the_blocks(step):
    x = small(2, "normal")
    selector = RankSelector(lambda count: [1])
    for block in x.split(step):
        assert selector.is_sampling
        selector.update(block)
        assert selector._held == sum(map(len, selector._sample)) <= 50
    held = [float(as_float(pattern)) for part in selector._sample for pattern in part]
    assert held == x.abs()[:: selector._distance].tolist()
    assert selector._distance == 81
    assert selector.bounds() is None
    assert not selector.end_pass()
    assert not selector.is_sampling


@pytest.mark.parametrize("count", [1, 49, 50, 51])
def test_a_stream_that_fits_the_sample_is_known_at_once(monkeypatch, count):
    monkeypatch.setattr(ranking, "_SAMPLE", 50)
    x = torch.randn(count, requires_grad=True)
    selector = RankSelector(lambda entries: [0, 1, entries, entries + 9])
    assert passes_of(selector, x.split(20)) == (1 if count <= 50 else 2)
    assert selector.values == expected(x.detach(), [0, 1, count, count])
    assert not selector.is_sampling


@pytest.mark.parametrize("seed", range(10))
def test_bounds_are_those_of_the_first_rank_and_hold_it(monkeypatch, seed):
    """Six deviations are enough; the bounds do not reach much farther."""
    monkeypatch.setattr(ranking, "_SAMPLE", 600)
    x, ranks = small(seed, "normal"), [600, 3000, 1, 1500]
    selector = RankSelector(lambda count: ranks)
    selector.update(x)
    selector.end_pass()
    low, high = selector.bounds()
    [wanted] = expected(x, ranks[:1])
    assert low < wanted < high
    share = float(((x.abs() >= low) & (x.abs() <= high)).double().mean())
    assert 0.1 < share < 0.4  # six deviations of 333 draws, either way
    selector.update(x)
    assert selector.end_pass()
    assert selector.values == expected(x, ranks)


def test_bounds_of_too_many_entries_are_forgotten(monkeypatch):
    monkeypatch.setattr(ranking, "_SAMPLE", 50)
    monkeypatch.setattr(ranking, "_WITHIN", 100)
    x = small(3, "normal")
    selector = RankSelector(lambda count: [count // 2])
    selector.update(x)
    selector.end_pass()
    assert selector.bounds() is not None
    selector.update(x)
    assert selector.bounds() is None
    assert selector._brackets[0]._within == []


def test_an_entry_just_outside_its_bounds_is_not_found():
    bracket = ranking._Bracket(*magnitude_patterns(torch.tensor([2.0, 4.0])).tolist())
    bracket.update(magnitude_patterns(torch.arange(1.0, 7.0)))
    assert [bracket.magnitude(rank) for rank in range(7)] == [math.inf, None, None, 4.0, 3.0, 2.0, None]


def test_what_is_found_between_bounds_in_other_blocks_adds_up():
    one, other = (ranking._Bracket(*magnitude_patterns(torch.tensor([2.0, 4.0])).tolist()) for _ in range(2))
    one.update(magnitude_patterns(torch.tensor([1.0, 3.0, 9.0])))
    other.update(magnitude_patterns(torch.tensor([2.0, 4.0, 5.0, 6.0])))
    one.add(other)
    assert [one.magnitude(rank) for rank in range(1, 8)] == [None, None, None, 4.0, 3.0, 2.0, None]


@pytest.mark.usefixtures("short_sample")
@pytest.mark.parametrize("zeros", [0.2, 0.6, 0.95])
def test_a_sample_says_how_many_entries_are_not_zero(zeros):
    """To within what fifty draws may be off by."""
    x = small(4, "normal")
    x[torch.rand(SMALL) < zeros] = 0.0
    told = []
    selector = RankSelector(lambda count: told.append(count) or [1], of_nonzero=True)
    selector.update(x)
    selector.end_pass()
    assert told[0] == pytest.approx(int(x.count_nonzero()), abs=5 * SMALL * math.sqrt(zeros * (1 - zeros) / 37))


def test_a_stream_without_entries_has_no_magnitudes():
    selector = RankSelector(lambda count: [0, count], of_nonzero=True)
    selector.update(torch.empty(0))
    assert selector.end_pass()
    assert selector.values == [math.inf, math.inf]


@pytest.mark.parametrize("count", [1, 2, 10])
def test_a_short_stream_says_exactly_how_many_entries_are_not_zero(count):
    told = []
    selector = RankSelector(lambda nonzero: told.append(nonzero) or [1], of_nonzero=True)
    selector.update(torch.cat([torch.arange(1.0, count + 1.0), torch.zeros(count - 1)]))
    selector.end_pass()
    assert told == [count]


def test_a_bracket_may_be_full(monkeypatch):
    monkeypatch.setattr(ranking, "_WITHIN", 3)
    bracket = ranking._Bracket(*magnitude_patterns(torch.tensor([2.0, 4.0])).tolist())
    bracket.update(magnitude_patterns(torch.tensor([2.0, 3.0, 4.0])))
    bracket.update(magnitude_patterns(torch.tensor([1.0, 9.0])))
    assert bracket.bounds() == (2.0, 4.0)
    assert [bracket.magnitude(rank) for rank in range(1, 5)] == [None, 4.0, 3.0, 2.0]
    bracket.update(magnitude_patterns(torch.tensor([2.5])))
    assert (bracket.bounds(), bracket.magnitude(2), bracket._within) == (None, None, [])


def test_entries_of_a_bracket_that_was_full_are_not_held_again(monkeypatch):
    """Full of others' entries it is as full as of its own."""
    monkeypatch.setattr(ranking, "_WITHIN", 3)
    full, other = (ranking._Bracket(*magnitude_patterns(torch.tensor([2.0, 4.0])).tolist()) for _ in range(2))
    full.update(magnitude_patterns(torch.full((5,), 3.0)))
    other.update(magnitude_patterns(torch.tensor([3.0])))
    other.add(full)
    assert other.bounds() is None
    assert [other.magnitude(rank) for rank in (1, 2)] == [None, None]


@pytest.mark.parametrize("count", [0, 1, 5, 50])
def test_any_rank_has_bounds(count):
    sample = magnitude_patterns(torch.arange(1.0, count + 1.0).flip(0))
    for rank in range(1, 301):
        bracket = ranking._guessed(sample, rank, 300)
        assert bracket._low < bracket._high
        share = rank / 300 * count
        assert as_float(bracket._low) <= count - share + 1.0 <= as_float(bracket._high) + 1.0


@pytest.mark.usefixtures("short_sample")
def test_samples_of_parts_are_one_sample():
    x, parts = small(5, "normal"), [RankSelector(lambda count: [1]) for _ in range(2)]
    for part, block in zip(parts, (x[:2000], x[2000:]), strict=True):
        part.update(block)
    held = sum(map(len, parts[0]._sample))
    parts[0].add(parts[1])
    assert parts[0].entries == SMALL
    assert parts[0]._held == sum(map(len, parts[0]._sample)) > held
