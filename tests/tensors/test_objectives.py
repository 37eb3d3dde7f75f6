"""Objectives of learners against plain Python in float64, and their gradients against finite differences."""

import math

import pytest
import torch

from lit_wsl.errors import ConfigError, DataError
from lit_wsl.tensors.objectives import (
    baseline_weights,
    cross_entropy,
    cross_entropy_sum,
    entropy,
    equal_weights,
    manual_weights,
    regret,
    smooth_max,
    valid_positions,
)

F64 = torch.float64
LABELS = torch.tensor([[-100, 2, 0, -100], [-100, -100, 4, 1]])


def _shares(row, temperature=1.0):
    top = max(row)
    powers = [math.exp((z - top) / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def _entropy(row, temperature=1.0):
    return -sum(p * math.log(p) for p in _shares(row, temperature) if p > 0.0)


@pytest.mark.parametrize("chunk", [0, 1, 2, 5, 4096])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_entropy_is_that_of_plain_python_whatever_the_chunk(chunk, temperature):
    logits = 4.0 * torch.randn(2, 3, 5, dtype=F64)
    expected = [[_entropy(row, temperature) for row in rows] for rows in logits.tolist()]
    found = entropy(logits, temperature, chunk)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("chunk", [0, 2])
def test_gradient_of_entropy_is_that_of_finite_differences(chunk):
    logits = torch.randn(2, 3, 5, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: entropy(z, 0.7, chunk), (logits,))


def test_entropy_of_masked_classes_and_of_certainty_is_finite_with_finite_gradients():
    logits = torch.tensor([[0.0, 0.0, -math.inf], [1e4, 0.0, -1e4]], requires_grad=True)
    found = entropy(logits, chunk=2)
    found.sum().backward()
    torch.testing.assert_close(found.detach(), torch.tensor([math.log(2.0), 0.0]))
    assert torch.isfinite(logits.grad).all()
    assert float(logits.grad[0, 2]) == 0.0


def test_entropy_of_half_precision_is_summed_in_float32():
    logits = torch.randn(4, 5000).bfloat16()
    found = entropy(logits.requires_grad_(), chunk=512)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, entropy(logits.detach().double()).float())
    found.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


def test_entropy_keeps_the_logits_and_two_numbers_a_position():
    logits, kept = torch.randn(8, 1000, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        entropy(logits, chunk=100)
    assert sum(kept) == 8 * 1000 + 2 * 8


def test_positions_of_a_causal_model_count_by_the_label_behind_them():
    logits = torch.zeros(2, 4, 5)
    assert valid_positions(logits, LABELS).tolist() == (LABELS != -100).tolist()
    shifted = [[True, True, False, False], [False, True, True, False]]
    assert valid_positions(logits, LABELS, causal=True).tolist() == shifted
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert valid_positions(logits, None, mask).tolist() == mask.bool().tolist()
    assert valid_positions(logits, None, mask, causal=True).tolist() == [
        [True, False, False, False],
        [True] * 3 + [False],
    ]
    assert valid_positions(logits, LABELS, mask, causal=True).tolist() == [[True, False, False, False], shifted[1]]
    assert valid_positions(logits, causal=True).tolist() == [[True, True, True, False]] * 2


def mean_entropy(logits, labels=None, mask=None, *, causal=False):
    """As learners take it: of the positions that count."""
    return entropy(logits[valid_positions(logits, labels, mask, causal=causal)]).mean()


def test_a_classifier_of_rows_counts_every_row_with_or_without_labels():
    logits = torch.randn(3, 4, dtype=F64)
    expected = sum(map(_entropy, logits.tolist())) / 3
    assert float(mean_entropy(logits)) == pytest.approx(expected)
    assert float(mean_entropy(logits, torch.tensor([0, 1, 2]), torch.ones(3, 9))) == pytest.approx(expected)


@pytest.mark.parametrize("causal", [False, True])
def test_mean_entropy_takes_the_positions_that_count(causal):
    logits = torch.randn(2, 4, 5, dtype=F64)
    step = 1 if causal else 0
    rows = [logits[b, t - step].tolist() for b in range(2) for t in range(step, 4) if LABELS[b, t] != -100]
    expected = sum(map(_entropy, rows)) / len(rows)
    assert float(mean_entropy(logits, LABELS, causal=causal)) == pytest.approx(expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_that_of_plain_python_per_token(causal, smoothing):
    logits = torch.randn(2, 4, 5, dtype=F64)
    step, losses = 1 if causal else 0, []
    for b in range(2):
        for t in range(step, 4):
            if LABELS[b, t] != -100:
                logs = [math.log(p) for p in _shares(logits[b, t - step].tolist())]
                losses.append(-(1 - smoothing) * logs[LABELS[b, t]] - smoothing * sum(logs) / len(logs))
    mean = cross_entropy(logits, LABELS, causal=causal, label_smoothing=smoothing)
    assert float(mean) == pytest.approx(sum(losses) / len(losses))
    total, count = cross_entropy_sum(logits, LABELS, causal=causal, label_smoothing=smoothing)
    assert (float(total), count) == (pytest.approx(sum(losses)), len(losses))
    assert float(cross_entropy(logits, LABELS, causal=causal, label_smoothing=smoothing, reduction="sum")) == float(
        total
    )


def test_unless_told_otherwise_nothing_is_moved_smoothed_or_tempered():
    logits = 3.0 * torch.randn(2, 4, 5, dtype=F64)
    rows = [(logits[b, t].tolist(), int(LABELS[b, t])) for b in range(2) for t in range(4) if LABELS[b, t] != -100]
    losses = [-math.log(_shares(row)[label]) for row, label in rows]
    assert float(cross_entropy(logits, LABELS)) == pytest.approx(sum(losses) / len(losses))
    assert float(cross_entropy_sum(logits, LABELS)[0]) == pytest.approx(sum(losses))
    assert float(mean_entropy(logits, LABELS)) == pytest.approx(sum(_entropy(row) for row, _ in rows) / len(rows))
    torch.testing.assert_close(entropy(logits)[0, 0], torch.tensor(_entropy(logits[0, 0].tolist()), dtype=F64))


def test_gradients_of_means_are_those_of_finite_differences():
    logits = torch.randn(2, 4, 5, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, LABELS, causal=True), (logits,))
    assert torch.autograd.gradcheck(lambda z: mean_entropy(z, LABELS, causal=True), (logits,))


def test_batches_in_which_nothing_counts_are_refused():
    logits, none = torch.randn(2, 4, 5), torch.full((2, 4), -100)
    assert not valid_positions(logits, none).any()
    with pytest.raises(DataError, match="No label of the batch counts"):
        cross_entropy(logits, none)
    assert cross_entropy_sum(logits, none)[1] == 0
    with pytest.raises(DataError, match=r"`labels` of shape \(2, 3\) do not fit logits of \(2, 4\) positions"):
        mean_entropy(logits, none[:, :3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: entropy(z, 0.0), "entropy_temperature > 0"),
        (lambda z: entropy(z, chunk=-1), "entropy_chunk_size >= 0"),
        (lambda z: cross_entropy(z, LABELS, label_smoothing=1.0), "ce_label_smoothing < 1"),
        (lambda z: cross_entropy_sum(z, LABELS, label_smoothing=-0.5), "ce_label_smoothing < 1"),
        (lambda z: cross_entropy(z, LABELS, reduction="none"), "ce_reduction"),
        (lambda z: smooth_max(z, 0.0), "tau > 0"),
    ],
)
def test_parameters_out_of_range_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call(torch.randn(2, 4, 5))


def test_weights_of_tasks():
    tasks = ["a", "b"]
    assert equal_weights(tasks) == {"a": 0.5, "b": 0.5}
    assert manual_weights(tasks, {"b": 3.0, "a": 1.0}) == {"a": 0.25, "b": 0.75}
    assert baseline_weights(tasks, {"a": 2.0, "b": 0.25}) == {"a": 0.25, "b": 2.0}
    assert baseline_weights(tasks, {"a": 2.0, "b": 0.0}) == {"a": 0.25, "b": pytest.approx(5e5)}
    assert baseline_weights(tasks, {"a": 2.0, "b": 0.0}, floor=0.1, cap=3.0) == {"a": 0.25, "b": 3.0}


def test_weights_may_be_zero_or_small():
    assert manual_weights(["a", "b"], {"a": 0.0, "b": 0.25}) == {"a": 0.0, "b": 1.0}
    assert baseline_weights(["a"], {"a": 1.0}, cap=0.5) == {"a": 0.5}
    assert baseline_weights(["a", "b"], {"a": -3.0, "b": 0.25}, floor=0.5) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: manual_weights(["a", "b"], {"a": 1.0}), "differs in b"),
        (lambda: manual_weights(["a"], {"a": 1.0, "c": 1.0}), "differs in c"),
        (lambda: manual_weights(["a", "b"], {"a": 1.0, "b": -0.5}), "not be negative"),
        (lambda: manual_weights(["a"], {"a": 0.0}), "all zero"),
        (lambda: manual_weights(["a", "b"], {"a": math.inf, "b": 1.0}), "all zero"),
        (lambda: manual_weights(["a"], {"a": math.nan}), "not be negative"),
        (lambda: baseline_weights(["a", "b"], {"a": 1.0, "b": math.inf}), "baseline loss of b"),
        (lambda: baseline_weights(["a", "b"], {"a": 1.0, "b": -math.inf}), "baseline loss of b"),
        (lambda: baseline_weights(["a", "b"], {"a": 1.0}), "baseline loss of b"),
        (lambda: baseline_weights(["a"], {"a": math.nan}), "baseline loss of a"),
        (lambda: baseline_weights(["a"], {"a": 1.0}, floor=0.0), "must be positive"),
        (lambda: baseline_weights(["a"], {"a": 1.0}, cap=0.0), "must be positive"),
    ],
)
def test_weights_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_regret_is_the_formula_where_sources_gain():
    losses, base, best = [0.8, 1.5], [2.0, 1.0], [0.5, 0.4]
    expected = [(a - c) / (b - c + 1e-4) for a, b, c in zip(losses, base, best, strict=True)]
    found = regret(*(torch.tensor(one, dtype=F64) for one in (losses, base, best)))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))


@pytest.mark.parametrize("best", [1.0 - 1e-9, 1.0, 1.0 + 1e-4, 1.0 + 2e-4, 5.0])
def test_regret_of_a_source_that_gains_nothing_stays_small_and_rises_with_the_loss(best):
    base = torch.tensor([1.0], dtype=F64)
    loss = torch.tensor([1.0], dtype=F64, requires_grad=True)
    found = regret(loss, base, torch.tensor([best], dtype=F64))
    found.sum().backward()
    assert abs(float(found.detach())) < 0.01
    assert 0.0 < float(loss.grad) <= 101.0


@pytest.mark.parametrize("base", [20.0, 0.05, -20.0])
def test_the_least_gain_is_a_share_of_the_size_of_the_bases_loss(base):
    """Also of a loss below zero, as a log-likelihood of a density may have."""
    given = [torch.tensor([one], dtype=F64) for one in (base + 1.0, base, base)]
    assert float(regret(*given, eps=1e-9, least_gain=0.5)) == pytest.approx(1.0 / (0.5 * abs(base)))


def test_regret_of_losses_that_are_all_zero_is_finite():
    zero = torch.zeros(2)
    assert regret(zero, zero, zero, eps=0.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
def test_smooth_maximum_bounds_the_maximum_and_has_the_weights_as_gradient(tau):
    values = torch.randn(5, dtype=F64, requires_grad=True)
    found = smooth_max(values, tau)
    top = max(values.tolist())
    expected = top + tau * math.log(sum(math.exp((v - top) / tau) for v in values.tolist()))
    assert float(found.detach()) == pytest.approx(expected)
    assert top <= float(found.detach()) <= top + tau * math.log(5) + 1e-12
    found.backward()
    torch.testing.assert_close(values.grad, torch.tensor(_shares(values.tolist(), tau), dtype=F64))
    assert torch.autograd.gradcheck(lambda v: smooth_max(v, tau), (values,))


def test_smooth_maxima_have_a_tenth_as_their_default_and_the_last_dimension():
    values = torch.randn(3, 4, dtype=F64)
    expected = [0.1 * math.log(sum(math.exp(v / 0.1) for v in row)) for row in values.tolist()]
    torch.testing.assert_close(smooth_max(values), torch.tensor(expected, dtype=F64))
