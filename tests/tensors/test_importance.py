"""Importance of entries against softmaxes in plain NumPy; outliers against a sort."""

import math

import numpy as np
import pytest
import torch

from lit_wsl.tensors import importance, ranking
from lit_wsl.tensors.importance import divergence_importance, outlier_threshold


def by_hand(tuned, base):
    rows = []
    for new, old in zip(tuned.double().numpy(), base.double().numpy(), strict=True):
        p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() + 1e-8 for x in (new, old))
        rows.append(np.abs(new - old) * max(0.0, float((p * np.log(p / q)).sum())))
    return np.array(rows)


@pytest.mark.parametrize("entries", [1, 13, 1 << 18])
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_importance_is_change_times_divergence_of_the_row(monkeypatch, entries, scale):
    """Rows of ten may be worked on one by one, or all at once; at scale 10 most probabilities are less than 1e-8."""
    monkeypatch.setattr(importance, "_PART_ENTRIES", entries)
    base = scale * torch.randn(8, 10)
    tuned = base + 0.1 * scale * torch.randn(8, 10)
    before = base.clone(), tuned.clone()
    found = divergence_importance(tuned, base)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, by_hand(tuned, base), rtol=1e-5, atol=1e-12)
    assert torch.equal(base, before[0])
    assert torch.equal(tuned, before[1])


def test_importance_is_never_negative_and_zero_where_nothing_changed():
    base = torch.randn(200, 5)
    assert not divergence_importance(base, base).any()
    wide = base.double()
    nearly = wide + 1e-12 * torch.randn(200, 5)  # the divergence is less than what rounding makes of it
    assert (divergence_importance(nearly, wide) >= 0.0).all()
    one = base.clone()
    one[3, 2] += 1.0
    assert divergence_importance(one, base).nonzero().tolist() == [[3, 2]]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 100, 5000])
@pytest.mark.parametrize("sample", [50, 1 << 17])
def test_the_threshold_is_that_of_sorted_quartiles(monkeypatch, count, sample):
    monkeypatch.setattr(ranking, "_SAMPLE", sample)
    x = torch.rand(count)
    ordered = np.sort(x.double().numpy())
    lower, median, upper = (ordered[math.floor(share * (count - 1))] for share in (0.25, 0.5, 0.75))
    assert outlier_threshold(x) == pytest.approx(median + 1.5 * (upper - lower), rel=1e-12)
