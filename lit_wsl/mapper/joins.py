"""Several modules of one side that make one of the other: query, key and value; gate and up; experts in a stack."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod, sqrt

from lit_wsl.mapper.evidence import contradictions
from lit_wsl.mapper.forms import Form, joins, stacks
from lit_wsl.mapper.inventory import Shape
from lit_wsl.mapper.modules import Module, modules_of
from lit_wsl.mapper.templates import Family, Path, Template, families_of
from lit_wsl.mapper.units import Unit
from lit_wsl.mapper.words import features, role

ROLES = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "gate_up": ("gate", "up")}
_PARTS = frozenset({"q", "k", "v", "gate", "up"})
_WHOLES = frozenset(ROLES)

NAMED, UNNAMED = 0.97, 0.5
"""Confidence of a join whose parts names tell apart, and of one that only shapes suggest."""


@dataclass(frozen=True, eq=False)
class _Join:
    parts: list[Module]
    whole: Module
    forms: dict[str, list[Form]]
    score: float
    is_named: bool


def find_joins(sources: Sequence[Module], targets: Sequence[Module]) -> list[Unit]:
    """Joins of source modules to one target module, and the other way round, that do not share a module."""
    forth = [(join, False) for join in _joins(sources, targets)]
    back = [(join, True) for join in _joins(targets, sources)]
    taken: set[int] = set()
    units = []
    for join, is_back in sorted(forth + back, key=lambda found: (-found[0].is_named, -found[0].score)):
        members = {id(module) for module in (*join.parts, join.whole)}
        if taken & members:
            continue
        taken |= members
        units.append(_unit(join, is_back=is_back))
    return units


def _unit(join: _Join, *, is_back: bool) -> Unit:
    forms = {leaf: [replace(form, is_back=is_back) for form in found] for leaf, found in join.forms.items()}
    sides = ([join.whole], join.parts) if is_back else (join.parts, [join.whole])
    unit = Unit(*sides, forms, shape=0.9, name=join.score, order=1.0)
    unit.confidence = NAMED if join.is_named else UNNAMED
    unit.note = "" if join.is_named else "only shapes say which parts are joined, and nothing in which order"
    return unit


def _joins(parts: Sequence[Module], wholes: Sequence[Module]) -> list[_Join]:
    """Every set of parts that fits a whole and is told by names, or else by place."""
    sizes = {_size(module) for module in parts}
    named = _named_sets(parts)
    found = []
    for whole in wholes:
        if "weight" not in whole.leaves:
            continue
        kind = role(whole.path, _WHOLES)
        is_lonely = _size(whole) not in sizes
        for name, context, members in named:
            if kind != name and not (kind is None and is_lonely):
                continue
            if forms := _forms(members, whole):
                found.append(_Join(members, whole, forms, _likeness((*context, name), whole), is_named=True))
        if is_lonely:
            for members in _runs(parts):
                if forms := _forms(members, whole):
                    context = members[0].path[:-1]
                    found.append(_Join(members, whole, forms, _likeness(context, whole), is_named=False))
    return found


def _size(module: Module) -> int:
    """Entries of the weight at its first position."""
    return next(prod(shape) for shape in module.shapes() if shape is not None)


def _named_sets(parts: Sequence[Module]) -> list[tuple[str, Path, list[Module]]]:
    """Modules in one container whose names say that they are the parts of one projection."""
    places: defaultdict[Path, dict[str, Module]] = defaultdict(dict)
    for module in parts:
        for depth in (1, 2):
            known = role(module.path[-depth:][:1], _PARTS)
            if known and "weight" in module.leaves:
                places[module.path[:-depth]].setdefault(known, module)
                break
    return [
        (name, context, [found[word] for word in words])
        for context, found in places.items()
        for name, words in ROLES.items()
        if all(word in found for word in words)
    ]


def _runs(parts: Sequence[Module]) -> list[list[Module]]:
    """Two to four neighbours in one container."""
    found = []
    for length in (3, 2, 4):
        for start in range(len(parts) - length + 1):
            run = list(parts[start : start + length])
            if all(a.path[:-1] == b.path[:-1] and "weight" in a.leaves for a, b in pairwise([*run, run[-1]])):
                found.append(run)
    return found


def _forms(parts: Sequence[Module], whole: Module) -> dict[str, list[Form]]:
    """Forms of a join for every trained tensor of the whole that all parts have; empty when the weights do not fit."""
    forms = {}
    for leaf in whole.trained():
        found = _common(
            [part.leaves[leaf] for part in parts if leaf in part.leaves], whole.leaves[leaf], len(parts), joins
        )
        if found:
            forms[leaf] = found
        elif leaf == "weight":
            return {}
    return forms


def _common(
    parts: list[Template], whole: Template, count: int, ways: Callable[[Sequence[Shape], Shape], list[Form]]
) -> list[Form]:
    """Forms that serve every position; empty when a part lacks one."""
    if len(parts) != count:
        return []
    common: list[Form] | None = None
    for at, shape in enumerate(whole.shapes):
        sizes = [part.shapes[at] for part in parts]
        present = [size for size in sizes if size is not None]
        if shape is None and not present:
            continue
        if shape is None or len(present) < count:
            return []
        found = ways(present, shape)
        common = found if common is None else [form for form in common if form in found]
        if not common:
            return []
    return common or []


def _likeness(path: Path, whole: Module) -> float:
    """Likeness of the words of a container to those of the whole; in [0, 1]."""
    one, two = features(path), whole.meaning
    if not one or not two:
        return 0.0
    common = sum(value * two[word] for word, value in one.items() if word in two)
    lengths = sqrt(sum(v * v for v in one.values()) * sum(v * v for v in two.values()))
    return max(0.0, common / lengths - contradictions(one, two))


def find_stacks(sources: Sequence[Template], targets: Sequence[Template]) -> list[Unit]:
    """Lists of layers that are one tensor with a dimension more on the other side."""
    units = _stacks(sources, targets)
    if units:
        return units
    turned = _stacks(targets, sources)
    for unit in turned:
        unit.sources, unit.targets = unit.targets, unit.sources
        unit.forms = {leaf: [replace(form, is_back=True) for form in forms] for leaf, forms in unit.forms.items()}
    return turned


def _stacks(parts: Sequence[Template], wholes: Sequence[Template]) -> list[Unit]:
    lists = [family for family in families_of(parts) if len(family.blocks) > 1]
    units: list[Unit] = []
    taken: set[str] = set()
    for whole in modules_of(wholes):
        options = [unit for family in lists if (unit := _stack(family, whole)) is not None]
        options = [unit for unit in options if not taken & {module.label for module in unit.sources}]
        if options:
            best = max(options, key=lambda unit: unit.name)
            taken |= {module.label for module in best.sources}
            units.append(best)
    return units


def _stack(family: Family, whole: Module) -> Unit | None:
    """The stack of a list's layers that gives a tensor, if there is one."""
    count, shape = len(family.blocks), whole.main.first.shape
    if len(shape) < 2 or shape[0] != count:
        return None
    blocks = [modules_of([_inside(t, len(family.pattern)) for t in block]) for block in family.blocks.values()]
    if len({len(block) for block in blocks}) > 1:
        return None
    options: list[tuple[float, int, Unit]] = []
    for members in _layer_sets(blocks[0]):
        parts = [next((m for m in block if m.path == member.path), None) for block in blocks for member in members]
        if any(part is None for part in parts):
            continue
        known = [part for part in parts if part is not None]
        if forms := _stack_forms(known, whole, count, len(members)):
            score = _likeness((*family.pattern[:-1], *_names(members)), whole)
            options.append((score, len(options), Unit(known, [whole], forms, shape=0.9, name=score, order=1.0)))
    if not options:
        return None
    score, _, best = max(options, key=lambda option: (option[0], -option[1]))
    rivals = sum(option[0] > score - 0.05 for option in options)
    best.confidence = NAMED if rivals == 1 else UNNAMED
    best.note = "" if rivals == 1 else "other layers of the list fit as well"
    return best


def _inside(template: Template, depth: int) -> Template:
    return Template(template.path[depth:], template.weights, context=template.context + template.path[:depth])


def _layer_sets(modules: list[Module]) -> list[list[Module]]:
    """Single modules, and gate and up together."""
    named = [members for name, _, members in _named_sets(modules) if name == "gate_up"]
    return [[module] for module in modules] + named


def _names(members: list[Module]) -> Path:
    return ("gate_up",) if len(members) > 1 else members[0].path


def _stack_forms(parts: list[Module], whole: Module, count: int, width: int) -> dict[str, list[Form]]:
    def ways(shapes: Sequence[Shape], target: Shape) -> list[Form]:
        layers = {tuple(shapes[at : at + width]) for at in range(0, len(shapes), width)}
        return stacks(shapes[:width], count, target) if len(layers) == 1 else []

    forms = {}
    for leaf in whole.trained():
        found = _common(
            [part.leaves[leaf] for part in parts if leaf in part.leaves], whole.leaves[leaf], len(parts), ways
        )
        if found:
            forms[leaf] = found
    return forms if "weight" in forms else {}
