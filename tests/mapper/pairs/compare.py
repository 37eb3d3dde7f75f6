"""What a mapping says otherwise than the truth."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_wsl.state.remap import WeightMap

Recipe = tuple[tuple[str, ...], tuple[Any, ...], int]
"""Sources, operations, and which of the tensors that they make."""


@dataclass(frozen=True)
class Differences:
    """Names of targets; empty where both maps say the same."""

    missing: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    spurious: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.wrong or self.spurious)

    def false(self) -> set[str]:
        """Targets that are made otherwise than in the truth."""
        return {*self.wrong, *self.spurious}


def recipes_by_target(recipes: WeightMap, aliases: Mapping[str, str]) -> dict[str, Recipe]:
    """How each target is made, sources by the first of their tied names."""
    return {
        target: (tuple(aliases.get(name, name) for name in entry.sources), entry.operations, place)
        for entry in recipes
        for place, target in enumerate(entry.targets)
    }


def differences(truth: WeightMap, recipes: WeightMap, aliases: Mapping[str, str]) -> Differences:
    """Targets that recipes miss, make otherwise, or make though the truth does not.

    Args:
        truth: The true map of the targets in question.
        recipes: The map to judge.
        aliases: Names of tied tensors of the source to the name that was registered first.
    """
    true, made = recipes_by_target(truth, aliases), recipes_by_target(recipes, aliases)
    return Differences(
        tuple(name for name in true if name not in made),
        tuple(name for name in true if name in made and made[name] != true[name]),
        tuple(name for name in made if name not in true),
    )
