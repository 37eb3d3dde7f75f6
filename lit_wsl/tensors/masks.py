"""Which entries of a merged update a task wants for itself."""

import torch
from torch import Tensor


def tall_masks(task_vectors: Tensor, total: Tensor, strictness: float) -> Tensor:
    """Where each task vector is nearer to the sum of all than to zero: ``|v_t| > strictness * |total - v_t|``.

    Args:
        task_vectors: Shape ``(T, *P)``.
        total: Sum of the task vectors, shape ``(*P,)``.
        strictness: The larger, the fewer entries.

    Returns:
        Boolean, shape ``(T, *P)``.

    Reference:
        TALL masks, https://arxiv.org/abs/2405.07813.
    """
    return torch.stack([v.abs() > (total - v).abs().mul_(strictness) for v in task_vectors])
