"""The tree of a model's modules, with blocks that hold the same in one branch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lit_wsl.mapper.inventory import Inventory, Weight
from lit_wsl.mapper.rows import numbers, pattern, shape_text


@dataclass(frozen=True)
class Branch:
    """A module, or several alike; two with equal content are equal, whatever their names."""

    name: str = field(compare=False)
    layer: str
    """Class of the module, where it is known."""
    tensors: str
    """Its own tensors with their shapes."""
    children: tuple["Branch", ...]
    kind: str
    """The name without the number of a block."""


def branches_of(inventory: Inventory) -> tuple[Branch, ...]:
    """The modules at the top of a model, and the tensors that stand there alone."""
    return _level([(weight.name.split("."), weight) for weight in inventory.weights])


def _level(parts: Sequence[tuple[list[str], Weight]]) -> tuple[Branch, ...]:
    """Branches for tensors whose names are cut at this level."""
    inner: dict[str, list[tuple[list[str], Weight]]] = {}
    for names, weight in parts:
        inner.setdefault(names[0], []).append((names[1:], weight))
    alike: dict[Branch, list[str]] = {}
    for name, members in inner.items():
        alike.setdefault(_branch(name, members), []).append(name)
    return tuple(Branch(numbers(names), one.layer, one.tensors, one.children, one.kind) for one, names in alike.items())


def _branch(name: str, members: Sequence[tuple[list[str], Weight]]) -> Branch:
    own = [(names, weight) for names, weight in members if len(names) <= 1]
    deeper = [(names, weight) for names, weight in members if len(names) > 1]
    layer = next((weight.layer for names, weight in own if names), "")
    tensors = ", ".join(_tensor(names, weight) for names, weight in own)
    return Branch(name, layer, tensors, _level(deeper), ".".join(pattern(name)))


def _tensor(names: Sequence[str], weight: Weight) -> str:
    words = [*names, shape_text(weight.shape), *([] if weight.kind == "parameter" else [f"({weight.kind})"])]
    return " ".join(words)
