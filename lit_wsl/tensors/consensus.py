"""Agreement between task vectors: elected signs and means over those that agree."""

import torch
from torch import Tensor


def elect_sign(task_vectors: Tensor) -> Tensor:
    """Sign with the larger total magnitude over tasks, per entry.

    Args:
        task_vectors: Trimmed task vectors, shape ``(T, *P)``.

    Returns:
        -1, 0 or +1 in the input dtype, shape ``(*P,)``; 0 where the tasks balance exactly.

    Reference:
        TIES, https://arxiv.org/abs/2306.01708, section 3 (the authors' code replaces 0 by the majority sign
        of all entries; here a balanced entry stays 0 and is dropped).
    """
    total = task_vectors.sum(0, dtype=torch.float64)  # else the order of the tasks decides what balances
    return total.sign_().to(task_vectors.dtype)


def disjoint_mean(task_vectors: Tensor, sign: Tensor) -> Tensor:
    """Mean over the tasks whose entry is not zero and has the elected sign; 0 where there is none.

    Args:
        task_vectors: Trimmed task vectors, shape ``(T, *P)``.
        sign: Elected sign, shape ``(*P,)``.

    Reference:
        TIES, https://arxiv.org/abs/2306.01708, section 3, step 3.
    """
    total, count, agreeing = torch.zeros_like(sign), torch.zeros_like(sign), torch.empty_like(sign)
    for task_vector in task_vectors:
        torch.mul(task_vector, sign, out=agreeing).clamp_(min=0)  # the magnitude where the signs agree, else 0
        total.add_(agreeing)
        count.add_(agreeing.sign_())
    return total.div_(count.clamp_(min=1)).mul_(sign)
