"""What is compared of the outputs of two models."""

from typing import Any

from torch import Tensor


def logits(out: Any) -> Tensor:
    """Logits of a transformers model, or of one that returns only them."""
    return out if isinstance(out, Tensor) else out.logits
