"""Mappings for a reader: recipes that differ in the numbers of blocks only become one row, operations become words."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from lit_wsl.mapper.inventory import Inventory, Shape
from lit_wsl.mapper.result import MappingResult, Match
from lit_wsl.state.operations import Fuse, Operation, PermuteHeads, Split, Stack, Transpose, Unstack

_NUMBERED = re.compile(r"(.*_)?(\d+)")
_ANY_NUMBER = re.compile(r"\d+")
_RUNS = 6
"""How many ranges of numbers a row lists in full."""


@dataclass(frozen=True)
class Row:
    """Recipes of one kind, one for each block."""

    matches: tuple[Match, ...]
    sources: str
    targets: str
    operation: str
    shape: str
    alternatives: str
    """What the sources could make instead, likeliest first."""
    note: str

    @property
    def score(self) -> float:
        """The lowest confidence of all."""
        return min(match.score for match in self.matches)

    @property
    def is_ambiguous(self) -> bool:
        """Whether another reading is about as likely."""
        return self.matches[0].is_ambiguous


@dataclass(frozen=True)
class LeftOver:
    """Tensors of one model that no recipe uses, for one reason."""

    names: tuple[str, ...]
    name: str
    shape: str
    reason: str


def rows_of(result: MappingResult) -> list[Row]:
    """The recipes in order of the target, those of repeated blocks in one row."""
    groups: defaultdict[object, list[Match]] = defaultdict(list)
    for match in result.matches:
        sides = (tuple(map(pattern, names)) for names in (match.entry.sources, match.entry.targets, match.alternatives))
        note = _ANY_NUMBER.sub("*", match.note)
        groups[*sides, operation_words(match.entry.operations), match.shapes, match.is_ambiguous, note].append(match)
    shapes = shapes_of(result.source)
    return [_row(tuple(matches), shapes) for matches in groups.values()]


def left_over_sources(result: MappingResult) -> list[LeftOver]:
    """Source tensors that are not mapped, by reason."""
    return _left_over(result.get_unmatched(), shapes_of(result.source))


def left_over_targets(result: MappingResult) -> list[LeftOver]:
    """Target tensors that are not made."""
    return _left_over(dict.fromkeys(result.get_unmatched()["target"], ""), shapes_of(result.target))


def shapes_of(inventory: Inventory) -> dict[str, Shape]:
    """Shape of every tensor by its name."""
    return {weight.name: weight.shape for weight in inventory.weights}


def operation_words(operations: Sequence[Operation]) -> str:
    """What is done, in words: ``transpose``, ``fuse of 3``; ``copy`` for nothing."""
    return ", ".join(_words(operation) for operation in operations) or "copy"


def _words(operation: Operation) -> str:
    match operation:
        case Transpose(dims=dims):
            return "transpose" if dims == (1, 0) else f"dimensions {', '.join(map(str, dims))}"
        case Fuse(sizes=sizes, groups=groups):
            return f"fuse of {len(sizes)}" + (f" in {groups} groups" if groups > 1 else "")
        case Split(sizes=sizes, groups=groups):
            return f"split into {len(sizes)}" + (f" from {groups} groups" if groups > 1 else "")
        case Stack(count=count):
            return f"stack of {count}"
        case Unstack(count=count):
            return f"unstack into {count}"
        case PermuteHeads(to_pairs=to_pairs):
            return "heads to pairs" if to_pairs else "heads to halves"
    return operation.name


@lru_cache(maxsize=65536)
def pattern(name: str) -> tuple[str, ...]:
    """Components of a name with a star for the number of a block."""
    return tuple(_NUMBERED.sub(r"\1*", part) if _NUMBERED.fullmatch(part) else part for part in name.split("."))


def compressed(names: Iterable[str]) -> str:
    """One text for names of as many components: ``layers.{0..23}.attn.{q,k,v}``."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(numbers(list(dict.fromkeys(column))) for column in columns)


def numbers(values: Sequence[str]) -> str:
    """One text for different components: ranges where they are numbered, otherwise all of them."""
    if len(values) == 1:
        return values[0]
    found = [_NUMBERED.fullmatch(value) for value in values]
    stems = {match[1] or "" for match in found if match}
    if not all(found) or len(stems) > 1:
        return "{" + ",".join(values) + "}"
    return f"{stems.pop()}{{{_ranges([int(match[2]) for match in found if match])}}}"


def _ranges(values: Sequence[int]) -> str:
    """Numbers with runs shortened, in their order: ``0..3,7``."""
    runs = [[values[0]]]
    for before, value in pairwise(values):
        run = runs[-1]
        step = run[1] - run[0] if len(run) > 1 else value - before
        if abs(step) == 1 and value - before == step:
            run.append(value)
        else:
            runs.append([value])
    texts = [",".join(map(str, run)) if len(run) < 3 else f"{run[0]}..{run[-1]}" for run in runs]
    return ",".join(texts if len(texts) <= _RUNS else [*texts[:3], "…", texts[-1]])


def shape_text(shape: Shape) -> str:
    """A shape as torch writes it."""
    return f"[{', '.join(map(str, shape))}]"


def _row(matches: tuple[Match, ...], shapes: Mapping[str, Shape]) -> Row:
    first = matches[0]
    given = _shapes([shapes[name] for name in first.entry.sources if name in shapes])
    made = _shapes(first.shapes)
    others = _side([match.alternatives for match in matches])
    is_one = len({match.note for match in matches}) == 1
    head, colon, _ = first.note.partition(": ")
    return Row(
        matches,
        _side([match.entry.sources for match in matches]),
        _side([match.entry.targets for match in matches]),
        operation_words(first.entry.operations),
        made if given == made else f"{given} → {made}",
        others,
        first.note if is_one else f"{head}: {others}" if colon and others else head,
    )


def _shapes(shapes: Sequence[Shape]) -> str:
    counts: dict[Shape, int] = {}
    for shape in shapes:
        counts[shape] = counts.get(shape, 0) + 1
    return ", ".join(f"{count} × {shape_text(s)}" if count > 1 else shape_text(s) for s, count in counts.items())


def _side(names: Sequence[tuple[str, ...]]) -> str:
    """The names of one side of alike recipes, in one text if they differ in one component beside numbers."""
    every = [name for group in names for name in group]
    columns = list(zip(*(pattern(name) for name in every), strict=False))
    is_even = len({name.count(".") for name in every}) == 1
    if is_even and sum(len(set(column)) > 1 for column in columns) <= 1:
        return compressed(every)
    return ", ".join(compressed(position) for position in zip(*names, strict=True))


def _left_over(reasons: Mapping[str, str], shapes: Mapping[str, Shape]) -> list[LeftOver]:
    groups: defaultdict[object, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        groups[pattern(name), shapes[name], reason].append(name)
    return [
        LeftOver(tuple(names), compressed(names), shape_text(shapes[names[0]]), reasons[names[0]])
        for names in groups.values()
    ]
