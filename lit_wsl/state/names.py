"""What a parameter name says: the tower it stands in, its layer, and its role there."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_CONTAINERS = frozenset({"layers", "layer", "h", "block", "blocks", "resblocks", "stages", "encoders", "decoders"})
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class ParameterName:
    """Parts of a parameter name; ``model.layers.3.mlp.up_proj.weight`` has layer 3 of tower ``model``."""

    tower: str
    """Path in front of the layer container; empty for a parameter outside any layer."""
    layer: int | None
    """Index in the first layer container, or None."""
    role: str
    """Path behind the layer index; the whole name outside any layer."""


def parse_name(name: str) -> ParameterName:
    """Split a parameter name at its first layer index, for any architecture.

    A number behind a known container (``layers``, ``layer``, ``h``, ``block`` …) is the layer; without one,
    the first number that has a path both in front of it and behind it.
    """
    parts = name.split(".")
    numbered = [i for i in range(1, len(parts) - 1) if _NUMBER.fullmatch(parts[i])]
    known = [i for i in numbered if parts[i - 1] in _CONTAINERS]
    if not numbered:
        return ParameterName("", None, name)
    at = (known or numbered)[0]
    tower = ".".join(parts[: at - 1] if known else parts[:at])
    return ParameterName(tower, int(parts[at]), ".".join(parts[at + 1 :]))


_REWRITES = (
    ("base_model.model.model.", "model."),
    ("base_model.model.", "model."),
    ("base_model.model.", ""),
    ("base_model.", ""),
    ("model.model.model.", "model."),
    ("model.model.", "model."),
    ("model.", "model.model."),
    ("model.", ""),
)


class NameResolver:
    """Finds the base model's names of parameters that an adapter or another save calls differently.

    Exact names win, then the usual prefix rewrites, then a unique name with that ending. What is left is
    tried without its outer prefix (``bert.encoder…`` on a base of ``encoder…``): one prefix for the whole source,
    the one that explains most names, so that two towers never fall onto one.
    """

    def __init__(self, known: list[str]) -> None:
        self._known = frozenset(known)
        self._by_ending: dict[str, list[str]] = {}
        for name in known:
            for ending in _endings(name):
                self._by_ending.setdefault(ending, []).append(name)

    def resolve(self, names: Iterable[str]) -> dict[str, str]:
        """Each name of a source to the base's name for it; without those that have none, or several."""
        names = list(names)
        found = {name: known for name in names if (known := self._extended(name)) is not None}
        left = [name for name in names if name not in found and name not in self._by_ending]
        prefix = self._best_prefix(left)
        if prefix:
            found.update({n: n.removeprefix(prefix) for n in left if n.removeprefix(prefix) in self._known})
        return found

    def _extended(self, name: str) -> str | None:
        if name in self._known:
            return name
        for old, new in _REWRITES:
            if name.startswith(old) and new + name[len(old) :] in self._known:
                return new + name[len(old) :]
        longer = self._by_ending.get(name, [])
        return longer[0] if len(longer) == 1 else None

    def _best_prefix(self, names: Iterable[str]) -> str:
        """The prefix whose removal gives the most known names; empty when none does, or two tie."""
        pairs = ((name, ending) for name in names for ending in _endings(name) if "." in ending)
        counts = Counter(n.removesuffix(ending) for n, ending in pairs if ending in self._known).most_common(2)
        tied = len(counts) == 2 and counts[0][1] == counts[1][1]
        return counts[0][0] if counts and not tied else ""


def _endings(name: str) -> list[str]:
    """The name without its first component, without its first two, and so on."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(1, len(parts))]
