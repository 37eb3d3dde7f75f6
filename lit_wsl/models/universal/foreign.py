"""Names of a state dict that was saved from elsewhere: the prefix that makes them a model's names."""

from collections import Counter
from collections.abc import Collection, Mapping

from torch import Tensor

_DEPTH = 4
"""Longest prefix that a container or a wrapping module puts in front, in components."""


def align(state: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """``state`` under the names of a model, by one exchange of prefixes for all.

    A file of a bare transformer has ``layers.0…`` where the module that holds it has ``model.layers.0…``; another
    tool's has ``net.model.layers.0…``. Of all exchanges that give a name of the model, the one that explains most
    names is taken; names that it does not fit stay.

    Args:
        state: Plain state dict.
        wanted: Plain names of the model.
    """
    names = set(wanted)
    if all(name in names for name in state):
        return dict(state)
    best, hits = ("", ""), sum(name in names for name in state)
    for old in _prefixes(state):
        inner = [name.removeprefix(old) for name in state if name.startswith(old)]
        for new in _prefixes(names):
            count = sum(new + name in names for name in inner)
            if count > hits:
                best, hits = (old, new), count
    old, new = best
    return {(new + name.removeprefix(old) if name.startswith(old) else name): t for name, t in state.items()}


def _prefixes(names: Collection[str] | Mapping[str, Tensor]) -> list[str]:
    """The empty prefix, and those that at least a third of the names share."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, min(_DEPTH + 1, len(parts))))
    return ["", *(prefix for prefix, count in counts.items() if 3 * count >= len(names))]
