"""Least interference with the inputs that task matrices stand for."""

import math

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from lit_wsl.tensors.singular import FLOAT64_NOISE

ADAM_DECAYS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


def interference_system(stack: Tensor) -> tuple[Tensor, Tensor]:
    r"""The matrices :math:`H` and :math:`C` of the gradient :math:`2 (M H - C)` of the interference of :math:`M`.

    The interference is :math:`\sum_t \|(M - \Delta_t) \Delta_t^\top\|_F^2 / \|\Delta_t\|_F^2`, so
    :math:`H = \sum_t \Delta_t^\top \Delta_t / \|\Delta_t\|_F^2` and
    :math:`C = \sum_t \Delta_t \Delta_t^\top \Delta_t / \|\Delta_t\|_F^2`. A task matrix of zeros has no part in them.

    Args:
        stack: Task matrices, shape ``(T, rows, columns)``.

    Returns:
        ``H`` of shape ``(columns, columns)`` and ``C`` of shape ``(rows, columns)``, float64.

    Reference:
        WUDI-Merging, https://arxiv.org/abs/2503.08099, the loss of one linear layer.
    """
    rows, columns = stack.shape[1:]
    H = torch.zeros(columns, columns, dtype=torch.float64, device=stack.device)
    C = torch.zeros(rows, columns, dtype=torch.float64, device=stack.device)
    for matrix in stack:
        norm = torch.linalg.vector_norm(matrix, dtype=torch.float64)
        if norm == 0:
            continue
        unit = matrix.double() / norm
        gram = unit.T @ unit
        H += gram
        C += norm * (unit @ gram)
    return H, C


def descend_interference(start: Tensor, H: Tensor, C: Tensor, steps: int, rate: float) -> Tensor:
    """``start`` after a fixed number of Adam steps down the interference; the same bytes on every run.

    Adam makes whole steps of the smallest gradients, so entries of the gradient that are mere rounding count as zero:
    a matrix without interference stays as it is.

    Args:
        start: Matrix to begin with, shape ``(rows, columns)``, float64.
        H: From :func:`interference_system`.
        C: From :func:`interference_system`.
        steps: Number of steps.
        rate: Learning rate, constant.

    Reference:
        Adam, https://arxiv.org/abs/1412.6980, algorithm 1.
    """
    merged, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    fast, slow = ADAM_DECAYS
    rounding = FLOAT64_NOISE * float(torch.linalg.vector_norm(C))
    for step in range(1, steps + 1):
        gradient = hardshrink((merged @ H).sub_(C), rounding).mul_(2.0)
        first.lerp_(gradient, 1.0 - fast)
        second.mul_(slow).addcmul_(gradient, gradient, value=1.0 - slow)
        root = second.sqrt().div_(math.sqrt(1.0 - slow**step)).add_(ADAM_EPSILON)
        merged.addcdiv_(first, root, value=-rate / (1.0 - fast**step))
    return merged


def least_interference(H: Tensor, C: Tensor, noise: float) -> Tensor:
    """The matrix of least interference, of those the one without inputs that no task has: ``C`` times ``H`` inverse.

    Args:
        H: From :func:`interference_system`, float64.
        C: From :func:`interference_system`, float64.
        noise: Singular values of the task matrices up to this share of their norm count as zero.
    """
    if not (torch.isfinite(H).all() and torch.isfinite(C).all()):
        return torch.full_like(C, torch.nan)
    eigenvalues, vectors = torch.linalg.eigh(H)
    kept = eigenvalues > max(noise**2, torch.finfo(torch.float64).eps * len(H)) * eigenvalues.sum()
    basis = vectors[:, kept]
    return (C @ basis / eigenvalues[kept]) @ basis.T
