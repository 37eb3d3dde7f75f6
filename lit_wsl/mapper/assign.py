"""Match the modules of one level one to one, by all evidence at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import exp, log
from types import MappingProxyType
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from lit_wsl.mapper.evidence import Forms, Matrix, Names, Surroundings, Weights, order_scores, possible, shape_score
from lit_wsl.mapper.modules import Module
from lit_wsl.mapper.templates import Path
from lit_wsl.mapper.units import Rival, Unit

Strategy = Literal["optimal", "greedy", "conservative", "shape_only"]

ROUNDS = 3
"""How often the surroundings are weighed again with the matching they gave."""
PRIOR = 0.3
"""What a match in other blocks of the same list adds to the total here."""
_IMPOSSIBLE = -10.0


@dataclass(frozen=True)
class Rules:
    """What holds at every level of a match."""

    mode: str = "exclude"
    """Buffer matching mode."""
    strategy: Strategy = "optimal"
    weights: Weights = Weights()
    is_registered: bool = True
    """Whether both models list their tensors in order of registration; files may sort them."""
    incompatible: tuple[tuple[str, str], ...] = ()
    """Pairs of words or patterns of names that must not be matched, whichever side has which."""

    def forbid(self, source: Module, target: Module) -> bool:
        """Whether the user ruled a pair out."""
        return any(
            (_names(source, one) and _names(target, two)) or (_names(source, two) and _names(target, one))
            for one, two in self.incompatible
        )


def _names(module: Module, pattern: str) -> bool:
    """Whether a pattern is a name of the module, fits it, or is a word in it."""
    names = {weight.name for template in module.leaves.values() for weight in template.weights if weight is not None}
    words = {part for name in names for part in (*name.split("."), *name.replace(".", "_").split("_"))}
    return pattern in words or any(fnmatchcase(name, pattern) for name in names)


class Level:
    """Scores of every possible pair of modules of one level."""

    def __init__(
        self,
        sources: Sequence[Module],
        targets: Sequence[Module],
        rules: Rules,
        joined: Sequence[tuple[Path, Path]],
        *,
        is_partial: bool,
    ) -> None:
        self.sources, self.targets = list(sources), list(targets)
        self._weights, self._joined = rules.weights, joined
        self.forms: dict[tuple[int, int], Forms] = {}
        for i, j in _of_like_size(self.sources, self.targets):
            forms = possible(self.sources[i], self.targets[j], rules.mode, is_partial=is_partial)
            if forms is not None and not rules.forbid(self.sources[i], self.targets[j]):
                self.forms[i, j] = forms
        size = len(self.sources), len(self.targets)
        self.allowed = np.zeros(size, dtype=bool)
        self.shape, self.name = np.zeros(size), np.zeros(size)
        names = Names(self.sources, self.targets)
        for (i, j), forms in self.forms.items():
            self.allowed[i, j] = True
            self.shape[i, j] = shape_score(self.sources[i], self.targets[j], forms)
            self.name[i, j] = names.likeness(self.sources[i], self.targets[j])
        self.order = order_scores(self.sources, self.targets, self.allowed, is_registered=rules.is_registered)
        self._surroundings = Surroundings(self.sources, self.targets, is_registered=rules.is_registered)
        self.hierarchy = np.full(size, 0.5)
        self.prior = np.zeros(size)
        self.trust = np.zeros(size)

    def total(self) -> Matrix:
        """Weighted evidence; far below zero for pairs that are out of the question."""
        value = self._weights.shape * self.shape + self._weights.name * self.name
        value = value + self._weights.hierarchy * self.hierarchy + self._weights.order * self.order + self.prior
        return np.where(self.allowed, value, _IMPOSSIBLE)

    def surround(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Weigh the surroundings by a matching of the level."""
        matched = np.zeros(self.allowed.shape)
        for i, j in pairs:
            matched[i, j] = 1.0
        self.hierarchy = self._surroundings.scores(matched, self._joined)

    def tell(self, unit: Unit, i: int, j: int) -> None:
        """Give a unit the evidence for its pair."""
        unit.shape, unit.name = float(self.shape[i, j]), float(self.name[i, j])
        unit.hierarchy, unit.order = float(self.hierarchy[i, j]), float(self.order[i, j])
        unit.total = self._weights.total(unit.shape, unit.name, unit.hierarchy, unit.order)

    def pair_of(self, unit: Unit) -> tuple[int, int] | None:
        """Places of a unit's modules; None for a pair that was out of the question."""
        rows = [i for i, module in enumerate(self.sources) if module is unit.sources[0]]
        columns = [j for j, module in enumerate(self.targets) if module is unit.targets[0]]
        return next(((i, j) for i in rows for j in columns if self.allowed[i, j]), None)


def tell_again(units: Sequence[Unit]) -> None:
    """Give units the evidence for the targets that they have now, where these were exchanged within their level."""
    for level in {id(unit.level): unit.level for unit in units if isinstance(unit.level, Level)}.values():
        own = [(unit, level.pair_of(unit)) for unit in units if unit.level is level]
        placed = [(unit, pair) for unit, pair in own if pair is not None]
        level.surround([pair for _, pair in placed])
        for unit, pair in placed:
            level.tell(unit, *pair)


def assign(
    sources: Sequence[Module],
    targets: Sequence[Module],
    rules: Rules,
    joined: Sequence[tuple[Path, Path]] = (),
    prior: Mapping[tuple[Path, Path], float] = MappingProxyType({}),
    *,
    is_partial: bool = False,
) -> list[Unit]:
    """The best matching of modules one to one, with what rivals each match.

    Args:
        sources: Modules of the source on one level.
        targets: Modules of the target there.
        rules: Mode, strategy and weights; ``greedy`` takes the best pair first.
        joined: Paths of pairs that joins have matched already, which speak for their containers.
        prior: Confidence of the pairs that were matched in other blocks of the list, which speak for the same pairs
            here.
        is_partial: Whether a bias may go to a module whose weight comes from elsewhere.
    """
    if not sources or not targets:
        return []
    level = Level(sources, targets, rules, joined, is_partial=is_partial)
    if not level.forms:
        return []
    solve = _greedy if rules.strategy == "greedy" else _optimal
    for i, j in level.forms if prior else ():
        confidence = prior.get((level.sources[i].path, level.targets[j].path))
        if confidence is not None:
            level.prior[i, j], level.trust[i, j] = PRIOR, log(confidence / (1.0 - confidence))
    pairs: list[tuple[int, int]] = []
    for _ in range(ROUNDS):
        found = solve(level.total())
        if found == pairs:
            break
        pairs = found
        level.surround(pairs)
    return _units(level, pairs, is_by_shape=rules.strategy == "shape_only")


def _of_like_size(sources: list[Module], targets: list[Module]) -> list[tuple[int, int]]:
    """Pairs whose main tensors have as many entries at some position."""
    by_size: dict[int, list[int]] = {}
    for j, module in enumerate(targets):
        for size in {_numel(shape) for shape in set(module.shapes()) if shape is not None}:
            by_size.setdefault(size, []).append(j)
    pairs: set[tuple[int, int]] = set()
    for i, module in enumerate(sources):
        for shape in set(module.shapes()):
            if shape is not None:
                pairs.update((i, j) for j in by_size.get(_numel(shape), ()))
    return sorted(pairs)


def _numel(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _optimal(total: Matrix) -> list[tuple[int, int]]:
    rows, columns = linear_sum_assignment(total, maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if total[i, j] > _IMPOSSIBLE]


def _greedy(total: Matrix) -> list[tuple[int, int]]:
    """The best pair, then the best of the rest; the earlier one where two are equal."""
    candidates = [(float(-total[i, j]), int(i), int(j)) for i, j in np.argwhere(total > _IMPOSSIBLE)]
    rows: set[int] = set()
    columns: set[int] = set()
    chosen = []
    for _, i, j in sorted(candidates):
        if i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
            chosen.append((i, j))
    return sorted(chosen)


def _units(level: Level, pairs: list[tuple[int, int]], *, is_by_shape: bool) -> list[Unit]:
    """Matches with their scores, and how much better each is than an exchange with another."""
    units = []
    for i, j in pairs:
        units.append(Unit([level.sources[i]], [level.targets[j]], level.forms[i, j], level=level))
        level.tell(units[-1], i, j)
    free_rows = sorted(set(range(len(level.sources))) - {i for i, _ in pairs})
    free_columns = sorted(set(range(len(level.targets))) - {j for _, j in pairs})
    kept = []
    for unit, (i, j) in zip(units, pairs, strict=True):
        margins = [_exchange(level, i, j, k, m) for k, m in pairs if (k, m) != (i, j)]
        others = [other for other in units if other is not unit]
        unit.rivals = [
            Rival(other, margin) for other, margin in zip(others, margins, strict=True) if margin is not None
        ]
        free = [_move(level, i, j, row=k) for k in free_rows if level.allowed[k, j]]
        free += [_move(level, i, j, column=m) for m in free_columns if level.allowed[i, m]]
        least = min([rival.margin for rival in unit.rivals] + free, default=None)
        unit.confidence = _confidence(unit, least)
        if not is_by_shape or not free:
            kept.append(unit)
    return kept


def _exchange(level: Level, i: int, j: int, k: int, m: int) -> float | None:
    """Evidence by which two matches are better than each with the other's target; None where that cannot be."""
    if not (level.allowed[i, m] and level.allowed[k, j]):
        return None
    trust = max(level.trust[i, j], level.trust[k, m])
    return _margin(level, lambda part: float(part[i, j] + part[k, m] - part[i, m] - part[k, j]) / 2, trust)


def _move(level: Level, i: int, j: int, row: int | None = None, column: int | None = None) -> float:
    """Evidence by which a match is better than with a module that is left over."""
    k, m = i if row is None else row, j if column is None else column
    return _margin(level, lambda part: float(part[i, j] - part[k, m]), level.trust[i, j])


def _margin(level: Level, gain: Callable[[Matrix], float], trust: float) -> float:
    """Log odds of a gain; other blocks make it no surer than they are themselves."""
    own = _evidence(gain(level.shape), gain(level.name), gain(level.hierarchy), gain(level.order))
    told = own + 12.0 * gain(level.prior)
    return max(own, min(told, trust)) if told > own else told


def _evidence(shape: float, name: float, hierarchy: float, order: float) -> float:
    """Log odds that the better of two readings is the right one: names and surroundings decide, order leans."""
    return 12.0 * name + 6.0 * shape + 3.0 * hierarchy + 1.2 * order


def _confidence(unit: Unit, margin: float | None) -> float:
    """Likelihood of a match: how far it is ahead of its rivals, and whether its name speaks for it at all."""
    ahead = 5.0 if margin is None else margin
    own = 3.0 + 6.0 * unit.name
    return 1.0 / (1.0 + exp(-min(ahead, own, 8.0)))
