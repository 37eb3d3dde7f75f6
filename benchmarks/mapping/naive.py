"""The naive way: every source tensor against every target tensor, equal shapes and likeness of names alone."""

from difflib import SequenceMatcher

from tests.mapper.pairs.pair import Shapes


def naive(source: Shapes, target: Shapes) -> dict[str, str]:
    """Target name to source name, the likeliest pair of equal shape first.

    No blocks, no operations, no order and no neighbours; nothing is fused, split or transposed.
    """
    candidates = [
        (-SequenceMatcher(None, one, two, autojunk=False).ratio(), i, j, one, two)
        for i, (one, shape) in enumerate(source.items())
        for j, (two, other) in enumerate(target.items())
        if shape == other
    ]
    found: dict[str, str] = {}
    used: set[str] = set()
    for *_, one, two in sorted(candidates):
        if one not in used and two not in found:
            found[two] = one
            used.add(one)
    return found
