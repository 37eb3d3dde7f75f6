"""What coefficients are learned by: entropy, cross-entropy, weights of tasks, regret and its smooth maximum.

Sums are taken in float32 or wider whatever the logits' dtype. A position of a causal language model predicts the token
behind it, so with ``causal`` its label and its attention mask are those of the next position, and the last has none.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lit_wsl.errors import ConfigError, DataError

IGNORED = -100
"""Label of a position that does not count."""


def entropy(logits: Tensor, temperature: float = 1.0, chunk: int = 4096) -> Tensor:
    r"""Entropy of predicted distributions: :math:`H = \log \sum_j e^{z_j} - \sum_j p_j z_j` of z, the logits over T.

    For the backward pass nothing is kept but the logits and two numbers a position.

    Args:
        logits: Shape ``(*P, V)``; a class that is masked by minus infinity has no part in it.
        temperature: T, a positive number.
        chunk: Classes worked on at once, so that no copy of all logits is made in a wider dtype; 0 for all.

    Returns:
        In nats, shape ``(*P,)``, float32 or wider.

    Raises:
        ConfigError: If the temperature is not positive, or the chunk negative.

    Reference:
        AdaMerging, https://arxiv.org/abs/2310.02575, section 3.
    """
    if not temperature > 0.0:
        raise ConfigError(f"`entropy_temperature > 0` must hold, got {temperature}.")
    if chunk < 0:
        raise ConfigError(f"`entropy_chunk_size >= 0` must hold, got {chunk}; 0 takes all classes at once.")
    return _Entropy.apply(logits, temperature, chunk or logits.shape[-1])


class _Entropy(torch.autograd.Function):
    """The same, with its derivative ``-p_j (log p_j + H) / T`` written out."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float, chunk: int) -> Tensor:
        sums = [z.logsumexp(-1) for z in _scaled(logits, temperature, chunk)]
        log_sum = torch.stack(sums, -1).logsumexp(-1)
        found = log_sum.clone()
        for z in _scaled(logits, temperature, chunk):
            found -= ((z - log_sum.unsqueeze(-1)).exp() * z).sum(-1)
        ctx.save_for_backward(logits, log_sum, found)
        ctx.temperature, ctx.chunk = temperature, chunk
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, log_sum, found = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        factor = (upstream[0] / -ctx.temperature).unsqueeze(-1)
        parts = _scaled(logits, ctx.temperature, ctx.chunk)
        for out, z in zip(gradient.split(ctx.chunk, dim=-1), parts, strict=True):
            log_p = z - log_sum.unsqueeze(-1)
            out.copy_(log_p.exp() * (log_p + found.unsqueeze(-1)) * factor)
        return gradient, None, None


def _scaled(logits: Tensor, temperature: float, chunk: int) -> Iterator[Tensor]:
    """Chunks of the logits over the temperature, wide and finite."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    lowest = torch.finfo(wide).min / 4  # far enough from the edge that a difference of two is finite
    for part in logits.split(chunk, dim=-1):
        yield (part.to(wide) / temperature).clamp(min=lowest)


def valid_positions(
    logits: Tensor,
    labels: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    causal: bool = False,
    ignore_index: int = IGNORED,
) -> Tensor:
    """Which distributions count: those with a label that is not ignored, and with a token where one is predicted.

    Args:
        logits: Shape ``(B, C)`` of a classifier, or ``(B, L, V)``.
        labels: Shape ``(B,)`` or ``(B, L)``.
        attention_mask: Shape ``(B, L)``; a classifier of whole rows has no use for it.
        causal: Whether a position predicts the next one.
        ignore_index: Label that does not count.

    Returns:
        Booleans, shape ``logits.shape[:-1]``.

    Raises:
        DataError: If a shape does not fit.
    """
    shape = logits.shape[:-1]
    valid = torch.ones(shape, dtype=torch.bool, device=logits.device)
    if labels is not None:
        valid &= _moved(_fitting("labels", labels, shape), ignore_index, causal=causal) != ignore_index
    if attention_mask is not None and len(shape) > 1:
        valid &= _moved(_fitting("attention_mask", attention_mask, shape), 0, causal=causal) != 0
    elif causal and labels is None:
        valid[..., -1:] = False
    return valid


def _fitting(what: str, given: Tensor, shape: torch.Size) -> Tensor:
    if given.shape != shape:
        raise DataError(
            f"`{what}` of shape {tuple(given.shape)} do not fit logits of {tuple(shape)} positions; "
            "give one number a position."
        )
    return given


def _moved(given: Tensor, fill: int, *, causal: bool) -> Tensor:
    """Each position's own number, or that of the next one."""
    return functional.pad(given[..., 1:], (0, 1), value=fill) if causal else given


def cross_entropy_sum(
    logits: Tensor,
    labels: Tensor,
    *,
    causal: bool = False,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, int]:
    """Sum of the cross-entropy over the labels that count, and their number: batches add up, and divide once.

    Args:
        logits: Shape ``(B, C)`` of a classifier, or ``(B, L, V)``.
        labels: Shape ``(B,)`` or ``(B, L)``.
        causal: Whether a position predicts the label of the next one.
        ignore_index: Label that does not count.
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1).

    Raises:
        ConfigError: If the smoothing is out of range.
        DataError: If the shapes do not fit.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ConfigError(f"`0 <= ce_label_smoothing < 1` must hold, got {label_smoothing}.")
    valid = valid_positions(logits, labels, causal=causal, ignore_index=ignore_index)
    counted, targets = logits[valid], _moved(labels, ignore_index, causal=causal)[valid]
    wide = counted.to(torch.promote_types(logits.dtype, torch.float32))
    total = functional.cross_entropy(wide, targets, reduction="sum", label_smoothing=label_smoothing)
    return total, len(targets)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    causal: bool = False,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy over the labels that count, normalised by their number, or summed; see :func:`cross_entropy_sum`.

    Raises:
        ConfigError: If the smoothing is out of range, or the reduction is neither ``mean`` nor ``sum``.
        DataError: If the shapes do not fit, or no label counts.
    """
    if reduction not in ("mean", "sum"):
        raise ConfigError(f"`ce_reduction` is `mean` or `sum`, got {reduction!r}.")
    total, count = cross_entropy_sum(
        logits, labels, causal=causal, ignore_index=ignore_index, label_smoothing=label_smoothing
    )
    if not count:
        raise DataError(
            f"No label of the batch counts: every one is {ignore_index}; look at how the data are labelled."
        )
    return total / count if reduction == "mean" else total


def equal_weights(tasks: Sequence[str]) -> dict[str, float]:
    """``1 / T`` for each of T tasks."""
    return {task: 1.0 / len(tasks) for task in tasks}


def manual_weights(tasks: Sequence[str], given: Mapping[str, float]) -> dict[str, float]:
    """Given weights over their sum.

    Raises:
        ConfigError: If a task has none, a weight belongs to no task or is negative, or all are zero.
    """
    if set(given) != set(tasks):
        odd = sorted(set(given) ^ set(tasks))
        raise ConfigError(f"`ce_manual_task_weights` must name every task once; it differs in {', '.join(odd)}.")
    total = sum(given.values())
    if not all(weight >= 0.0 for weight in given.values()) or not 0.0 < total < float("inf"):
        raise ConfigError(f"`ce_manual_task_weights` must not be negative nor all zero, got {dict(given)}.")
    return {task: given[task] / total for task in tasks}


def baseline_weights(
    tasks: Sequence[str], baselines: Mapping[str, float], floor: float = 1e-6, cap: float | None = None
) -> dict[str, float]:
    r"""Weights :math:`1 / (T \max(f, b_t))`, so that every task's loss counts in units of its baseline.

    Args:
        tasks: T names.
        baselines: Loss of each task with its own source alone, by its name.
        floor: Smallest baseline that is divided by, positive.
        cap: Largest weight; None for no bound.

    Raises:
        ConfigError: If a task has no finite baseline, or floor or cap are not positive.
    """
    if not floor > 0.0 or (cap is not None and not cap > 0.0):
        raise ConfigError(f"`ce_baseline_floor` and `ce_multiplier_cap` must be positive, got {floor} and {cap}.")
    lacking = [task for task in tasks if not abs(baselines.get(task, float("nan"))) < float("inf")]
    if lacking:
        raise ConfigError(f"No finite baseline loss of {', '.join(lacking)}; measure it, or weight the tasks equally.")
    weights = {task: 1.0 / (len(tasks) * max(floor, baselines[task])) for task in tasks}
    return weights if cap is None else {task: min(cap, weight) for task, weight in weights.items()}


def regret(losses: Tensor, base: Tensor, best: Tensor, eps: float = 1e-4, least_gain: float = 0.01) -> Tensor:
    r"""How much of what its own source gains a task still lacks, :math:`r = (L - L^*) / (L_0 - L^* + \epsilon)`.

    A source that gains nothing would make the denominator vanish or change its sign, and with it the objective's. So
    the best loss is never above the base's, and the gain counts as ``least_gain`` of the base's loss at least.

    Args:
        losses: Loss of each task under the merge, shape ``(T,)``.
        base: Loss of the base, shape ``(T,)``.
        best: Loss of the task's own source alone, shape ``(T,)``.
        eps: Added to the gain.
        least_gain: Share of the base's loss.

    Returns:
        0 for the best, 1 for the base; shape ``(T,)``.
    """
    reached = torch.minimum(best, base)
    gain = torch.maximum(base - reached + eps, least_gain * base.abs()).clamp(min=torch.finfo(base.dtype).tiny)
    return (losses - reached) / gain


def smooth_max(values: Tensor, tau: float = 0.1) -> Tensor:
    r"""Smooth maximum :math:`\tau \log \sum_t e^{v_t / \tau}`, at most :math:`\tau \log T` above the maximum.

    Args:
        values: Shape ``(T,)``.
        tau: How smooth, positive.

    Raises:
        ConfigError: If tau is not positive.
    """
    return tau * (values / _positive(tau)).logsumexp(-1)


def _positive(tau: float) -> float:
    if not tau > 0.0:
        raise ConfigError(f"`tau > 0` must hold, got {tau}.")
    return tau
