"""What a parameter name says: the tower it stands in, its layer, and its role there."""

import re
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
    """Finds the base model's name of a parameter that an adapter or another save calls differently.

    Exact names win, then the usual prefix rewrites, then a unique name with that ending, then (for a base
    saved without its outer prefix) the unique base name that is an ending of the wanted one.
    """

    def __init__(self, known: list[str]) -> None:
        self._known = frozenset(known)
        self._by_ending: dict[str, list[str]] = {}
        for name in known:
            parts = name.split(".")
            for i in range(1, len(parts)):
                self._by_ending.setdefault(".".join(parts[i:]), []).append(name)

    def resolve(self, name: str) -> str | None:
        """The base model's name for ``name``; None when there is none or several would fit."""
        if name in self._known:
            return name
        for old, new in _REWRITES:
            if name.startswith(old) and new + name[len(old) :] in self._known:
                return new + name[len(old) :]
        longer = self._by_ending.get(name, [])
        if longer:
            return longer[0] if len(longer) == 1 else None
        parts = name.split(".")
        for i in range(1, len(parts) - 1):
            ending = ".".join(parts[i:])
            if ending in self._known:
                return ending
        return None
