"""From matched units to a result: recipes in order of the target, tied tensors, and why the rest is left over."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lit_wsl.mapper.inventory import Inventory, Shape, Weight
from lit_wsl.mapper.relations import relations
from lit_wsl.mapper.result import MappingResult, Match
from lit_wsl.mapper.units import Unit
from lit_wsl.mapper.words import features
from lit_wsl.state.remap import Entry

if TYPE_CHECKING:
    from lit_wsl.mapper.mapper import WeightMapper

MANY = 3
"""How many alternatives a match lists."""
NEAR = 2.5
"""Evidence (log odds) up to which a rival is listed."""

DOUBT = 0.1
"""Share of the confidence that a match loses whose modules agree in no statistic."""
MISSING, MISFIT = 0.9, 0.2
"""What a statistic that one side lacks, or that has another shape, counts where an equal one counts 1."""


def complete(units: Sequence[Unit], mapper: "WeightMapper", strategy: str) -> MappingResult:
    """The result of a match, before any threshold."""
    source, target = mapper.source, mapper.target
    for unit in units:
        unit.confidence *= 1.0 - DOUBT * (1.0 - _agreement(unit))
    matches = assemble(units, source, target)
    reasons = _reasons(matches, source, target, mapper.shape_tolerance)
    reasons.update((name, why) for name, why in _misfits(units) if name in reasons)
    modules = mapper.source_module, mapper.target_module
    return MappingResult(tuple(matches), source, target, 0.0, strategy, reasons, *modules)


def assemble(units: Sequence[Unit], source: Inventory, target: Inventory) -> list[Match]:
    """All matches in order of the target, with those of tied tensors."""
    matches = matches_of(units)
    matches = _torn(matches, target) + _tied(matches, source, target)
    place = {weight.name: weight.order for weight in target.weights}
    return sorted(matches, key=lambda match: place[match.entry.targets[0]])


def matches_of(units: Sequence[Unit]) -> list[Match]:
    """A match for every recipe of every unit."""
    found = []
    for unit in units:
        near = sorted((rival for rival in unit.rivals if rival.margin < NEAR), key=lambda rival: rival.margin)[:MANY]
        scores = unit.breakdown()
        for entry, _, targets in unit.entries():
            leaf, at = _position(unit, targets[0])
            others = tuple(name for rival in near if (name := _label(rival.other, leaf, at)))
            shapes = tuple(weight.shape for weight in targets)
            found.append(Match(entry, shapes, scores, others, unit.note or _note(others), unit))
    return found


def _agreement(unit: Unit) -> float:
    """How well the statistics of matched modules agree; 1 where there are none."""
    if len(unit.sources) != 1 or len(unit.targets) != 1 or "weight" not in unit.forms:
        return 1.0
    left, right = unit.sources[0].leaves, unit.targets[0].leaves
    found = [leaf for leaf, template in {**left, **right}.items() if template.first.kind == "statistic"]
    values = [1.0 if leaf in unit.forms else MISFIT if leaf in left and leaf in right else MISSING for leaf in found]
    return sum(values) / len(values) if values else 1.0


def _misfits(units: Sequence[Unit]) -> Iterator[tuple[str, str]]:
    """Source buffers whose module is matched to one that has them in another shape, with the reason."""
    for unit in units:
        if len(unit.sources) != 1 or len(unit.targets) != 1:
            continue
        left, right = unit.sources[0].leaves, unit.targets[0].leaves
        for leaf in sorted(left.keys() & right.keys() - unit.forms.keys()):
            for one, two in zip(left[leaf].weights, right[leaf].weights, strict=True):
                if one is not None and two is not None and one.kind != "parameter":
                    why = f"its shape {one.shape} does not fit {two.shape} of {two.name!r} (shape score {MISFIT})"
                    yield one.name, why


def _position(unit: Unit, weight: Weight) -> tuple[str, int]:
    """The leaf and the position of a tensor in the module that a unit makes."""
    for leaf, template in unit.targets[0].leaves.items():
        for at, other in enumerate(template.weights):
            if other is weight:
                return leaf, at
    return "weight", 0


def _label(unit: Unit, leaf: str, at: int) -> str:
    """Name of a rival's tensor of the same kind, or of its main one; empty where it has none at that position."""
    module = unit.targets[0]
    weight = module.leaves.get(leaf, module.main).weights[at]
    return weight.name if weight is not None else ""


def _note(others: Sequence[str]) -> str:
    return f"of the same shape: {', '.join(others)}" if others else ""


def _torn(matches: Sequence[Match], target: Inventory) -> list[Match]:
    """Matches, with a note where the target ties names that the source gives different tensors."""
    made = {name: match.entry for match in matches for name in match.entry.targets}
    found = []
    for match in matches:
        root = target.aliases.get(match.entry.targets[0])
        if root in made and made[root].sources != match.entry.sources:
            why = f"the target ties it to {root!r}, which has another source: one of them is lost"
            match = replace(match, note=why)
        found.append(match)
    return found


def _tied(matches: Sequence[Match], source: Inventory, target: Inventory) -> list[Match]:
    """Recipes for target names that share the tensor of one that is made, or an output layer tied in the source."""
    made = {name: match for match in matches for name in match.entry.targets}
    found = []
    for name, first in target.aliases.items():
        same = [first, *(other for other, root in target.aliases.items() if root == first)]
        known = next((made[other] for other in same if other in made and len(made[other].entry.targets) == 1), None)
        for missing in (n for n in (name, first) if n not in made):
            if known is not None:
                made[missing] = replace(known, entry=replace(known.entry, targets=(missing,)), note="tied")
                found.append(made[missing])
    kept = {weight.name for weight in target.weights}
    found = [match for match in found if match.entry.targets[0] in kept]
    return found + _tied_head(made, source, target)


def _tied_head(made: Mapping[str, Match], source: Inventory, target: Inventory) -> list[Match]:
    """The output layer from the embedding, where the source's configuration says that they are one."""
    if not source.is_tied:
        return []
    found = []
    for weight in target.weights:
        if weight.name in made or "head" not in features(weight.path):
            continue
        for match in made.values():
            if match.shapes == (weight.shape,) and "embed" in features(tuple(match.entry.targets[0].split("."))):
                entry = Entry(match.entry.sources, (weight.name,), match.entry.operations)
                found.append(replace(match, entry=entry, note="tied"))
                break
    return found


def _reasons(matches: Sequence[Match], source: Inventory, target: Inventory, tolerance: float) -> dict[str, str]:
    """Why each source tensor that no recipe reads is left out."""
    read = {name for match in matches for name in match.entry.sources}
    shapes = {weight.shape for weight in target.weights}
    same_name = {weight.name: weight.shape for weight in target.weights}
    known: dict[Shape, bool] = {}
    reasons = {}
    for weight in source.weights:
        if weight.name in read:
            continue
        if weight.shape not in known:
            known[weight.shape] = any(relations(weight.shape, shape) for shape in shapes)
        reasons[weight.name] = _reason(
            weight, fits=known[weight.shape], namesake=same_name.get(weight.name), shapes=shapes, tolerance=tolerance
        )
    return reasons


def _reason(weight: Weight, *, fits: bool, namesake: Shape | None, shapes: set[Shape], tolerance: float) -> str:
    if namesake is not None and namesake != weight.shape:
        return f"its shape {weight.shape} differs from the target's {namesake}"
    if fits:
        return "tensors of its shape in the target have likelier sources, or too little speaks for it"
    near = sorted(shape for shape in shapes if _is_near(weight.shape, shape, tolerance))
    hint = f"; near misses have shape {', '.join(map(str, near[:MANY]))}" if near else ""
    return f"no tensor of the target fits its shape {weight.shape}{hint}"


def _is_near(one: Shape, two: Shape, tolerance: float) -> bool:
    return len(one) == len(two) and all(abs(a - b) <= tolerance * max(a, b) for a, b in zip(one, two, strict=True))
