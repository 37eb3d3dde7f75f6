"""Losses of tasks with what they are taken over, and their sums over processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from lit_wsl.errors import DataError, MergeError


@dataclass(frozen=True)
class TaskLoss:
    """The mean loss of a batch, and over how many labels or positions it is the mean."""

    mean: Tensor
    count: int

    def detached(self) -> "TaskLoss":
        """The same without its graph."""
        return TaskLoss(self.mean.detach(), self.count)


def mean_of(losses: Sequence[TaskLoss]) -> TaskLoss:
    """The loss of several batches as if they were one.

    Raises:
        DataError: If there is none.
    """
    if not losses:
        raise DataError("it has no rows to measure; name a split that has some.")
    count = sum(loss.count for loss in losses)
    total = torch.stack([loss.mean.detach().to(_widest(loss.mean)) * loss.count for loss in losses]).sum()
    return TaskLoss(total / count, count)


@dataclass(frozen=True)
class Gathered:
    """Losses over the batches of all processes."""

    losses: Tensor
    """Shape ``(K,)``, the same on every process."""
    counts: list[int]
    gradients: Tensor
    """This process's part, shape ``(K, rows, T)``: the mean over processes is the derivative of ``losses``."""

    @staticmethod
    def mean_of_ranks(gradient: Tensor) -> Tensor:
        """The mean over processes, which a distributed strategy takes of gradients."""
        if not _is_distributed():
            return gradient
        total = gradient.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()


def across_ranks(
    parts: Sequence[tuple[TaskLoss, Tensor | None]], reduction: Literal["mean", "sum"] = "mean"
) -> Gathered:
    """The losses of all processes' batches as if they were one batch.

    Args:
        parts: Each task's loss, with the derivative of its mean by the coefficients, shape ``(rows, T)``; None where
            nothing is differentiated.
        reduction: Whether a loss is the mean over what it counts, or the sum.
    """
    means = torch.stack([loss.mean.to(_widest(loss.mean)) for loss, _ in parts])
    own = torch.tensor([loss.count for loss, _ in parts], dtype=means.dtype, device=means.device)
    totals = torch.stack([means * own, own])
    world = 1
    if _is_distributed():
        world = dist.get_world_size()
        totals = _reduced(totals)
    shares = own if reduction == "sum" else own / totals[1]
    losses = totals[0] if reduction == "sum" else totals[0] / totals[1]
    gradients = [torch.zeros(()) if gradient is None else gradient for _, gradient in parts]
    stacked = torch.stack(gradients)
    factors = (shares * world).to(stacked).view(-1, *[1] * (stacked.dim() - 1))
    return Gathered(losses, [int(count) for count in totals[1].tolist()], stacked * factors)


def finite(task: str, loss: TaskLoss) -> TaskLoss:
    """The loss, if it is a number.

    Raises:
        MergeError: If it is not.
    """
    if not bool(torch.isfinite(loss.mean)):
        raise MergeError(
            f"The loss of task {task!r} is {float(loss.mean)}; look at its data and at the coefficients, and learn "
            "with a smaller `lr`, or in float32."
        )
    return loss


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _widest(tensor: Tensor) -> torch.dtype:
    """float64, which counts exactly, where a device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _reduced(totals: Tensor) -> Tensor:
    dist.all_reduce(totals)
    return totals
