"""The loss of predicted tokens."""

from torch import Tensor
from torch.nn import functional as F

from lit_wsl.tensors.objectives import IGNORED


def token_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the tokens that are to be predicted, and the number of those.

    Args:
        logits: Shape ``(n, vocabulary)``.
        targets: Shape ``(n,)``; -100 is not predicted.

    Returns:
        The mean in float32, zero if nothing is predicted, and the count.
    """
    count = (targets != IGNORED).sum()
    total = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
    return total / count.clamp(min=1), count
