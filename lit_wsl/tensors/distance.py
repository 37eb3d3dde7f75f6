"""Distances between tensors, accumulated in float64."""

import torch
from torch import Tensor


def l2_norm(x: Tensor) -> float:
    """Euclidean (Frobenius) norm, accumulated in float64."""
    return float(torch.linalg.vector_norm(x.flatten(), dtype=torch.float64))


def l2_distance(x: Tensor, y: Tensor) -> float:
    """Euclidean norm of ``x - y``, shapes equal."""
    return l2_norm(x.double() - y.double())


def relative_error(x: Tensor, reference: Tensor) -> float:
    """Norm of ``x - reference`` over the norm of ``reference``; 0 for two zeros, inf against a zero."""
    distance, size = l2_distance(x, reference), l2_norm(reference)
    if size == 0.0:
        return 0.0 if distance == 0.0 else float("inf")
    return distance / size
