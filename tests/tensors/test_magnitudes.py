"""Ranks of magnitudes, and what is kept by them, against SciPy and a sort."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from lit_wsl.tensors import magprune
from lit_wsl.tensors.magnitudes import PatternCounts, as_float, magnitude_patterns
from lit_wsl.tensors.magprune import doubled_ranks, drop_small_and_rescale
from lit_wsl.tensors.masks import tall_masks
from lit_wsl.tensors.rng import CounterRng
from tests.oracles.sparse import pruned


def values(kind):
    x = torch.randn(3, 40)
    return {
        "wide": x * 10.0 ** torch.randint(-30, 30, (3, 40)),
        "coarse": (2 * x).round(),
        "zero": torch.zeros(3, 40),
        "half": x.bfloat16(),
        "double": x.double() * 1e-3,
    }[kind]


KINDS = ["wide", "coarse", "zero", "half", "double"]


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_are_magnitudes_in_their_order(kind):
    x = values(kind)
    patterns = magnitude_patterns(x)
    sizes = x.abs().float().reshape(-1)
    assert patterns.dtype == np.uint32
    assert [as_float(p) for p in patterns] == sizes.tolist()
    assert np.array_equal(np.argsort(patterns, kind="stable"), np.argsort(sizes.numpy(), kind="stable"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [1, 3])
def test_two_passes_find_every_rank(kind, parts):
    x = values(kind)
    ranks = [0, 1, 2, 60, 119, 120]
    counts = PatternCounts()
    for _ in range(2):
        others = []
        for block in x.chunk(parts):
            other = PatternCounts()
            other._places, other._lower = counts._places, {k: np.zeros_like(v) for k, v in counts._lower.items()}
            other.update(block)
            others.append(other)
        for other in others:
            counts.add(other)
        found = counts.end_pass(ranks)
    ordered = sorted(x.abs().float().reshape(-1).tolist(), reverse=True)
    assert found == [math.inf if rank == 0 else ordered[rank - 1] for rank in ranks]


def test_patterns_of_parameters_and_of_infinity():
    assert as_float(magnitude_patterns(torch.tensor([-math.inf]))[0]) == math.inf
    assert as_float(magnitude_patterns(torch.ones(1, requires_grad=True))[0]) == 1.0
    counts = PatternCounts()
    x = torch.tensor([math.inf, 2.0, -math.inf, 3e38])
    for _ in range(2):
        counts.update(x)
        found = counts.end_pass([1, 2, 3, 4])
    assert found == [math.inf, math.inf, x[3].item(), 2.0]


@pytest.mark.parametrize("kind", KINDS)
def test_doubled_ranks_are_those_of_scipy(kind):
    x = values(kind)
    expected = [2 * rankdata(row, method="average") - 2 for row in x.abs().float().numpy()]
    found = doubled_ranks(x)
    assert found.dtype == np.int64
    assert np.array_equal(found, np.array(expected))


@pytest.mark.parametrize("columns", [1, 2, 40])
@pytest.mark.parametrize("longest", [0, 40])
@pytest.mark.parametrize("kind", ["float32", "float64", "ties"])
def test_entries_are_kept_by_their_rank(monkeypatch, columns, longest, kind):
    """With a table of probabilities or without; a block of rows in the middle is drawn as in the whole."""
    monkeypatch.setattr(magprune, "_LONGEST_TABLE", longest)
    x = torch.randn(30, columns, dtype=torch.float64 if kind == "float64" else torch.float32)
    x = x.sign() if kind == "ties" else x
    before = x.clone()
    found = drop_small_and_rescale(x, 0.4, 0.3, CounterRng(5), "2/w")
    [expected] = pruned([[1.0]] * 2 + [x.reshape(-1).tolist()], 0.4, 0.3, 5, "w", columns)[2:]
    torch.testing.assert_close(
        found.reshape(-1).double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0
    )
    part = drop_small_and_rescale(x[7:19], 0.4, 0.3, CounterRng(5), "2/w", 7 * columns)
    assert torch.equal(part, found[7:19])
    assert torch.equal(x, before)
    assert found.dtype == x.dtype


def test_float64_is_divided_by_the_probability_itself():
    x = torch.ones(1, 5, dtype=torch.float64) * torch.arange(1, 6)
    found = drop_small_and_rescale(x, 0.6, 0.1, CounterRng(0), "a")
    kept = found != 0
    shares = 0.6 + 0.1 * (torch.arange(5, dtype=torch.float64) / 2 - 1)
    torch.testing.assert_close(found[kept], (x / shares)[kept], rtol=1e-15, atol=0)


@pytest.mark.parametrize("strictness", [0.0, 0.4, 1.0, 2.5])
def test_masks_are_where_a_task_is_nearer_to_the_sum(strictness):
    stack = (torch.randn(3, 200) * 2).round() / 2
    total = stack.sum(0)
    before = total.clone()
    found = tall_masks(stack, total, strictness)
    for t in range(3):
        for i in range(200):
            v, s = float(stack[t, i]), float(total[i])
            assert bool(found[t, i]) is (abs(v) > strictness * abs(s - v))
    assert torch.equal(total, before)
