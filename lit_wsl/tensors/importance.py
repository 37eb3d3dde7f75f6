"""How much a tuned row matters, and which entries stand out."""

from torch import Tensor

_FLOOR = 1e-8


def divergence_importance(tuned: Tensor, base: Tensor) -> Tensor:
    """Change of each entry times the Kullback-Leibler divergence of its row's softmax from the base's, float64.

    Args:
        tuned: Shape ``(rows, columns)``.
        base: Likewise.

    Reference:
        Arcee Fusion, https://github.com/arcee-ai/mergekit (``arcee_fusion``), where 1e-8 is added to both softmaxes.
    """
    tuned, base = tuned.double(), base.double()
    p, q = tuned.softmax(-1).add_(_FLOOR), base.softmax(-1).add_(_FLOOR)
    divergence = (p * (p / q).log_()).sum(-1, keepdim=True)
    return (tuned - base).abs_() * divergence


def outlier_threshold(x: Tensor) -> float:
    """Median plus one and a half times the distance of the quartiles; each the entry at that place, rounded down."""
    flat = x.flatten()
    last = flat.numel() - 1
    lower, median, upper = (float(flat.kthvalue(int(q * last) + 1).values) for q in (0.25, 0.5, 0.75))
    return median + 1.5 * (upper - lower)
