"""What speaks for a pair of modules: shapes, words of the names, place in the order, and what surrounds them."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from lit_wsl.mapper.forms import Form
from lit_wsl.mapper.modules import Module
from lit_wsl.mapper.relations import common_kinds
from lit_wsl.mapper.templates import Path
from lit_wsl.mapper.words import EXCLUSIVE

Matrix = NDArray[np.float64]
Forms = dict[str, list[Form]]

_DIGITS = re.compile(r"\d+")

CONFLICT = 0.35
"""What two meanings that exclude one another take from the likeness of names."""


@dataclass(frozen=True)
class Weights:
    """What each kind of evidence counts in the total; they sum to one."""

    shape: float = 0.25
    name: float = 0.35
    hierarchy: float = 0.25
    order: float = 0.15

    def total(self, shape: float, name: float, hierarchy: float, order: float) -> float:
        """The parts, weighted."""
        return self.shape * shape + self.name * name + self.hierarchy * hierarchy + self.order * order


def possible(source: Module, target: Module, mode: str, *, is_partial: bool = False) -> Forms | None:
    """How each tensor of one module may become that of the other; None where the pair is out of the question.

    Trainable tensors that both have must fit in every mode. ``strict`` refuses a buffer that is missing or does not
    fit; otherwise it is left out. With ``is_partial`` a bias may go to a module whose weight comes from elsewhere.
    """
    if not is_partial and ("weight" in source.leaves) != ("weight" in target.leaves):
        return None
    forms: Forms = {}
    for leaf, template in target.leaves.items():
        other = source.leaves.get(leaf)
        kinds = common_kinds(other.shapes, template.shapes) if other is not None else ()
        if kinds:
            forms[leaf] = [Form(kind) for kind in kinds]
        elif template.first.kind == "parameter":
            if other is not None:
                return None
        elif mode == "strict":
            return None
    if mode == "strict" and any(t.first.kind != "parameter" and leaf not in forms for leaf, t in source.leaves.items()):
        return None
    return forms or None


def shape_score(source: Module, target: Module, forms: Forms) -> float:
    """1 for copies of all tensors at all positions; less for other forms, missing tensors, buffers that do not fit."""
    values = []
    for leaf in {**source.leaves, **target.leaves}:
        one, two = source.leaves.get(leaf), target.leaves.get(leaf)
        if leaf in forms:
            values.append(1.0 if forms[leaf][0].kind == "copy" else 0.9)
        elif one is not None and two is not None:
            values.append(0.2)
        else:
            values.append(0.5)
    return sum(values) / len(values) * _overlap(source, target)


def _overlap(source: Module, target: Module) -> float:
    """Share of positions that both modules have among those that either has."""
    one, two = source.shapes(), target.shapes()
    if None not in one and None not in two:
        return 1.0
    both = sum(a is not None and b is not None for a, b in zip(one, two, strict=True))
    either = sum(a is not None or b is not None for a, b in zip(one, two, strict=True))
    return both / either


class Names:
    """Likeness of names, where words that many modules of the level share count little."""

    def __init__(self, sources: Sequence[Module], targets: Sequence[Module]) -> None:
        modules = [*sources, *targets]
        counts = Counter(word for module in modules for word in module.meaning)
        scale = log(1 + len(modules))
        self._rarity = {word: log(1 + len(modules) / count) / scale for word, count in counts.items()}
        self._known: dict[int, tuple[dict[str, float], float]] = {}

    def likeness(self, source: Module, target: Module) -> float:
        """Cosine of the weighted meanings, less what excludes one another; in [0, 1]."""
        if source.path == target.path and source.path:
            return 1.0
        one, length = self._vector(source)
        two, other = self._vector(target)
        if not one or not two:
            return 0.5 if not one and not two else 0.25
        common = sum(value * two[word] for word, value in one.items() if word in two)
        return max(0.0, common / (length * other) - CONFLICT * contradictions(source.meaning, target.meaning))

    def _vector(self, module: Module) -> tuple[dict[str, float], float]:
        known = self._known.get(id(module))
        if known is None:
            vector = {word: value * self._rarity[word] for word, value in module.meaning.items()}
            known = self._known[id(module)] = vector, sqrt(sum(value * value for value in vector.values()))
        return known


def contradictions(one: dict[str, float], two: dict[str, float]) -> float:
    """How many groups of exclusive meanings two names answer differently, by the lesser weight."""
    total = 0.0
    for group in EXCLUSIVE:
        a, b = group & one.keys(), group & two.keys()
        if a and b and not a & b:
            total += min(max(one[word] for word in a), max(two[word] for word in b))
    return total


def order_scores(
    sources: Sequence[Module], targets: Sequence[Module], allowed: NDArray[np.bool_], *, is_registered: bool
) -> Matrix:
    """1 where both modules have the same place among those of their shapes, and there are as many on both sides.

    Without order of registration on both sides only places among names that differ in a number count.
    """
    left, right = _places(sources, is_registered=is_registered), _places(targets, is_registered=is_registered)
    scores = np.full(allowed.shape, 0.5)
    for i, j in np.argwhere(allowed):
        one, two = left[i], right[j]
        if one is None or two is None:
            continue
        (place, count), (other, others) = one, two
        if count == others:
            scores[i, j] = 1.0 if place == other else 0.5 - 0.5 * abs(place - other) / count
        else:
            scores[i, j] = 0.5 - 0.5 * abs(place / count - other / others)
    return scores


def _places(modules: Sequence[Module], *, is_registered: bool) -> list[tuple[int, int] | None]:
    """Place of each module among those with its shapes, and their number; None where order says nothing."""
    keys = [_signature(module) for module in modules]
    counts = Counter(keys)
    stems: dict[object, set[Path]] = {}
    for key, module in zip(keys, modules, strict=True):
        stems.setdefault(key, set()).add(tuple(_DIGITS.sub("", component) for component in module.path))
    seen: Counter[object] = Counter()
    places: list[tuple[int, int] | None] = []
    for key in keys:
        places.append((seen[key], counts[key]) if is_registered or len(stems[key]) == 1 else None)
        seen[key] += 1
    return places


def _signature(module: Module) -> object:
    """Shapes of the trained tensors at every position, whichever way they lie, and whether there are statistics."""
    shapes = tuple(
        (
            leaf,
            tuple(shape and tuple(sorted(size for size in shape if size != 1)) for shape in module.leaves[leaf].shapes),
        )
        for leaf in sorted(module.trained())
    )
    return shapes, any(template.first.kind == "statistic" for template in module.leaves.values())


class Surroundings:
    """How well the containers and neighbours of two modules agree, given a matching of the others."""

    def __init__(self, sources: Sequence[Module], targets: Sequence[Module], *, is_registered: bool) -> None:
        self._is_registered = is_registered
        self._left, self._left_of = _containers(sources)
        self._right, self._right_of = _containers(targets)

    def scores(self, matched: Matrix, extra: Sequence[tuple[Path, Path]]) -> Matrix:
        """Agreement in [0, 1]: of containers where both modules stand in one, and of the modules before and after.

        Args:
            matched: Shape ``(sources, targets)``; likelihood of each pair.
            extra: Paths of further pairs that were matched (parts of joins).
        """
        beside = _neighbours(matched) if self._is_registered else 0.5
        return 0.7 * self._container_scores(matched, extra) + 0.3 * beside

    def _container_scores(self, matched: Matrix, extra: Sequence[tuple[Path, Path]]) -> Matrix:
        neutral = np.full(matched.shape, 0.5)
        if not self._left or not self._right:
            return neutral
        one, two = self._left_of, self._right_of
        votes = one.T @ matched @ two
        left_sizes, right_sizes = one.sum(0), two.sum(0)
        for source, target in extra:
            inside = [
                [c for c, path in enumerate(side) if path == name[: len(path)]]
                for side, name in ((self._left, source), (self._right, target))
            ]
            votes[np.ix_(*inside)] += 1
            left_sizes[inside[0]] += 1
            right_sizes[inside[1]] += 1
        agreement = 2 * votes / (left_sizes[:, None] + right_sizes[None, :])
        best = np.zeros(matched.shape)
        for c in range(len(self._left)):
            reach = np.where(two > 0, agreement[c][None, :], 0.0).max(1)
            best = np.maximum(best, np.outer(one[:, c], reach))
        placed = np.outer(one.any(1), two.any(1))
        return np.where(placed, best, neutral)


def _containers(modules: Sequence[Module]) -> tuple[list[Path], Matrix]:
    """Paths that hold some but not all modules, and which module lies in which."""
    counts: Counter[Path] = Counter(module.path[:end] for module in modules for end in range(1, len(module.path)))
    paths = [path for path, count in counts.items() if count < len(modules)]
    inside = np.zeros((len(modules), len(paths)))
    column = {path: at for at, path in enumerate(paths)}
    for row, module in enumerate(modules):
        for end in range(1, len(module.path)):
            if (at := column.get(module.path[:end])) is not None:
                inside[row, at] = 1.0
    return paths, inside


def _neighbours(matched: Matrix) -> Matrix:
    """Whether the modules before both are matched to one another, and those behind both."""
    scores = np.zeros(matched.shape)
    scores[1:, 1:] += 0.5 * matched[:-1, :-1]
    scores[:-1, :-1] += 0.5 * matched[1:, 1:]
    return scores
