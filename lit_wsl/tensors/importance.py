"""How much the entries of a tuned parameter matter, and from where on one stands out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_wsl.tensors.ranking import RankSelector

_FLOOR = 1e-8
_PART_ENTRIES = 1 << 18


def divergence_importance(tuned: Tensor, base: Tensor) -> Tensor:
    """Change of each entry times the Kullback-Leibler divergence of its row's softmax from the base's, float32.

    Args:
        tuned: Shape ``(rows, columns)``.
        base: Likewise.

    Reference:
        Arcee Fusion, https://github.com/arcee-ai/mergekit (``arcee_fusion``), where 1e-8 is added to both softmaxes.
    """
    importance = torch.empty(tuned.shape, dtype=torch.float32, device=tuned.device)
    step = max(1, _PART_ENTRIES // tuned.shape[-1])
    for start in range(0, len(tuned), step):
        new, old = tuned[start : start + step].double(), base[start : start + step].double()
        p, q = new.softmax(-1).add_(_FLOOR), old.softmax(-1).add_(_FLOOR)
        divergence = (p * (p / q).log_()).sum(-1, keepdim=True).clamp_(min=0.0)  # rounding may take it below
        importance[start : start + step] = (new - old).abs_() * divergence
    return importance


def outlier_threshold(magnitudes: Tensor) -> float:
    """Median plus one and a half times the distance of the quartiles; each the entry at that place, rounded down."""
    selector = RankSelector(_quartile_ranks)
    selector.update(magnitudes)
    while not selector.end_pass():
        selector.update(magnitudes)
    assert selector.values is not None
    lower, median, upper = selector.values
    return median + 1.5 * (upper - lower)


def _quartile_ranks(entries: int) -> Sequence[int]:
    """Places of the quartiles, counted from the largest, which is 1."""
    return [entries - int(share * (entries - 1)) for share in (0.25, 0.5, 0.75)]
