"""What the inner products of task vectors say about their directions."""

from torch import Tensor


def mean_cosine(gram: Tensor) -> float:
    """Mean cosine over all pairs of different task vectors, in [-1, 1]; a pair with a zero vector has 0.

    Args:
        gram: Inner products, shape ``(T, T)`` with ``T >= 2``, float64.
    """
    count = len(gram)
    lengths = gram.diagonal().sqrt()
    unit = lengths.reciprocal().masked_fill_(lengths == 0, 0.0)
    cosines = (gram * unit.unsqueeze(0) * unit.unsqueeze(1)).clamp_(-1.0, 1.0)
    return float(cosines.fill_diagonal_(0.0).sum()) / (count * (count - 1))
