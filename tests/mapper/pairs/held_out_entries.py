"""Entries of the held-out truths, a kind at a time; names are given as patterns and templates of ``re``."""

import re
from collections.abc import Sequence
from math import prod

from lit_wsl.state.operations import Fuse, Operation, Reshape, Split, Transpose
from lit_wsl.state.remap import Entry
from tests.mapper.pairs.pair import Shapes

FLAX = {2: (1, 0), 4: (2, 3, 1, 0)}
"""Dimensions of a torch weight in the order of a Flax kernel, by rank."""

Rules = Sequence[tuple[str, str]]


def renamed(source: Shapes, target: Shapes, rules: Rules, transposed: str = r"(?!)") -> list[Entry]:
    """Copies (reshaped where only the shape differs) of all tensors whose name the rules turn into a target's name."""
    made = []
    for old in source:
        new = old
        for pattern, template in rules:
            new = re.sub(pattern, template, new)
        if new in target:
            made.append(Entry((old,), (new,), _steps(source[old], target[new], bool(re.search(transposed, new)))))
    return made


def fused(source: Shapes, target: Shapes, whole: str, parts: Sequence[str]) -> list[Entry]:
    """Every target tensor that matches ``whole``, from the source tensors ``parts`` in that order."""
    made = []
    for new in target:
        if match := re.fullmatch(whole, new):
            olds = tuple(match.expand(part) for part in parts)
            made.append(Entry(olds, (new,), (Fuse(tuple(source[old][0] for old in olds)),)))
    return made


def split(source: Shapes, target: Shapes, whole: str, parts: Sequence[str], groups: int = 1) -> list[Entry]:
    """Every source tensor that matches ``whole``, cut into the target tensors ``parts`` in that order."""
    made = []
    for old in source:
        if match := re.fullmatch(whole, old):
            news = tuple(match.expand(part) for part in parts)
            made.append(Entry((old,), news, (Split(tuple(target[new][0] for new in news), groups=groups),)))
    return made


def _steps(old: tuple[int, ...], new: tuple[int, ...], is_transposed: bool) -> tuple[Operation, ...]:
    if is_transposed and len(old) in FLAX:
        return (Transpose(FLAX[len(old)]),)
    if old == new:
        return ()
    assert prod(old) == prod(new), f"{old} is no {new}"
    return (Reshape(old, new),)
