"""Match two models: lists of blocks first, from the outside in, then the modules of each level."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from lit_wsl.mapper.assign import Rules, assign
from lit_wsl.mapper.evidence import contradictions
from lit_wsl.mapper.inventory import Weight
from lit_wsl.mapper.joins import find_joins, find_stacks
from lit_wsl.mapper.modules import Module, modules_of
from lit_wsl.mapper.templates import (
    Alignment,
    Path,
    Template,
    align,
    families_of,
    split_by_structure,
    spread,
    templates_of,
)
from lit_wsl.mapper.units import Unit
from lit_wsl.mapper.words import features

SHIFTED = 0.5
"""Highest confidence where blocks could as well be aligned otherwise."""

PARTIAL = 0.5
"""Least likeness of names at which a bias goes to a module whose weight comes from elsewhere."""


Prior = Mapping[tuple[Path, Path], float]
"""Modules that were matched in other blocks of the same list, and how sure that is."""


@dataclass(frozen=True)
class Matcher:
    """How two models are matched."""

    rules: Rules

    def match(self, sources: Sequence[Weight], targets: Sequence[Weight]) -> list[Unit]:
        """Units that make target tensors, each target at most once."""
        return self._level(templates_of(sources), templates_of(targets))

    def _level(
        self, sources: list[Template], targets: list[Template], prior: Prior = MappingProxyType({})
    ) -> list[Unit]:
        """Match what one level holds: its lists of blocks, each a level of its own, then what stands outside them."""
        units: list[Unit] = []
        used: set[tuple[Path, Path]] = set()
        lists: list[tuple[Path, Path]] = []
        while (best := self._best_alignment(sources, targets, used)) is not None:
            used.add((best.source.pattern, best.target.pattern))
            inner = self._blocks(best)
            if not best.is_unique:
                _doubt(inner, "blocks are alike, and one list is longer: which block is whose is a guess")
            if inner:
                lists.append((best.source.pattern, best.target.pattern))
            units += inner
            sources, targets = _rest(sources, targets, inner)
        return units + self._outside_lists(sources, targets, prior, lists)

    def _blocks(self, alignment: Alignment) -> list[Unit]:
        """Match aligned blocks: the most frequent structure first, which then speaks for the others."""
        units: list[Unit] = []
        for part in split_by_structure(alignment):
            known = {(s.path, t.path): unit.confidence for unit in units for s in unit.sources for t in unit.targets}
            units += self._level(*spread(part), known)
        return units

    def _best_alignment(
        self, sources: list[Template], targets: list[Template], used: set[tuple[Path, Path]]
    ) -> Alignment | None:
        """The pair of lists with most entries in common, the finer one of equals, then the likelier name."""
        best, score = None, (0.0, 0, 0.0)
        right = families_of(targets)
        for one in families_of(sources) if right else ():
            for two in right:
                if (one.pattern, two.pattern) in used or (found := align(one, two)) is None:
                    continue
                rank = (round(found.explained), len(found.pairs), _alike(one.pattern, two.pattern))
                if rank > score:
                    best, score = found, rank
        return best

    def _outside_lists(
        self, sources: list[Template], targets: list[Template], prior: Prior, lists: list[tuple[Path, Path]]
    ) -> list[Unit]:
        """Stacks, joins, then one to one; what is left of modules once more tensor by tensor.

        Lists that were aligned, and joins, speak for what stands in the same containers.
        """
        units = self._permitted(find_stacks(sources, targets))
        sources, targets = _rest(sources, targets, units)
        left, right = modules_of(sources), modules_of(targets)
        joined = self._permitted(find_joins(left, right))
        units += joined
        known = lists + [(s.path, t.path) for unit in joined for s in unit.sources for t in unit.targets]
        left, right = _open(left, right, joined)
        single = assign(left, right, self.rules, known, prior)
        units += single
        left, right = _open(left, right, single)
        rest = assign(left, right, self.rules, known, prior, is_partial=True)
        return units + [unit for unit in rest if unit.name >= PARTIAL]

    def _permitted(self, units: list[Unit]) -> list[Unit]:
        """Joins without a pair that the user ruled out, with their totals."""
        forbid, total = self.rules.forbid, self.rules.weights.total
        kept = [u for u in units if not any(forbid(s, t) for s in u.sources for t in u.targets)]
        for unit in kept:
            unit.total = total(unit.shape, unit.name, unit.hierarchy, unit.order)
        return kept


def _rest(
    sources: list[Template], targets: list[Template], units: Sequence[Unit]
) -> tuple[list[Template], list[Template]]:
    """Templates of which no tensor is matched."""
    read, made = _matched(units)
    return (
        [template for template in sources if id(template.first) not in read],
        [template for template in targets if id(template.first) not in made],
    )


def _matched(units: Sequence[Unit]) -> tuple[set[int], set[int]]:
    """Identities of source and of target tensors in units."""
    sides: tuple[set[int], set[int]] = set(), set()
    for unit in units:
        for modules, seen in zip((unit.sources, unit.targets), sides, strict=True):
            for module in modules:
                for leaf in unit.forms.keys() & module.leaves.keys():
                    seen.update(id(weight) for weight in module.leaves[leaf].weights if weight is not None)
    return sides


def _open(left: list[Module], right: list[Module], units: Sequence[Unit]) -> tuple[list[Module], list[Module]]:
    """Modules with the leaves that no unit has taken."""
    leaves: dict[int, set[str]] = {}
    for unit in units:
        for module in (*unit.sources, *unit.targets):
            leaves.setdefault(id(module), set()).update(unit.forms)
    sides = []
    for side in (left, right):
        kept = (module.without(leaves[id(module)]) if id(module) in leaves else module for module in side)
        sides.append([module for module in kept if module is not None])
    return sides[0], sides[1]


def _alike(one: Path, two: Path) -> float:
    """Likeness of two patterns, for lists of equal content."""
    left, right = features(one), features(two)
    common = sum(min(value, right[word]) for word, value in left.items() if word in right)
    return common - contradictions(left, right) + (one == two)


def _doubt(units: Sequence[Unit], note: str) -> None:
    for unit in units:
        unit.confidence = min(unit.confidence, SHIFTED)
        unit.note = unit.note or note
