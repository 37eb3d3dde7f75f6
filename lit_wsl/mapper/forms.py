"""The form of a recipe, before shapes are put in: one operation, a join, a stack, or one of them back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from lit_wsl.mapper.inventory import Shape
from lit_wsl.mapper.relations import operations_of
from lit_wsl.state.operations import Fuse, Operation, Reshape, Stack, Transpose


@dataclass(frozen=True)
class Form:
    """How sources of any size become targets."""

    kind: str = "copy"
    """``copy``, ``transpose…``, ``reshape``, ``join`` or ``stack``."""
    dim: int = 0
    """Dimension along which a join lays its parts."""
    groups: int = 1
    """How often the parts of a join alternate."""
    is_turned: bool = False
    """Whether the joined or stacked matrix is then transposed."""
    count: int = 1
    """Layers of a stack."""
    is_back: bool = False
    """Whether it is the way back: a split, or taking a stack apart."""
    before: tuple[Operation, ...] = ()
    """Operations on the sources ahead of it: heads that are ordered otherwise."""
    after: tuple[Operation, ...] = ()
    """Operations on the targets behind it."""

    def operations(self, sources: Sequence[Shape], targets: Sequence[Shape]) -> tuple[Operation, ...]:
        """The operations for given shapes."""
        return self.before + self._between(sources, targets) + self.after

    def _between(self, sources: Sequence[Shape], targets: Sequence[Shape]) -> tuple[Operation, ...]:
        if self.is_back:
            forth = replace(self, is_back=False)._between(targets, sources)
            return tuple(operation.inverse() for operation in reversed(forth))
        if self.kind == "join":
            return self._joined(sources, targets[0])
        if self.kind == "stack":
            return self._stacked(sources, targets[0])
        return operations_of(self.kind, sources[0], targets[0])

    def _joined(self, sources: Sequence[Shape], target: Shape) -> tuple[Operation, ...]:
        fuse = Fuse(tuple(shape[self.dim] for shape in sources), self.dim, self.groups)
        turn = Transpose((1, 0)) if len(target) == 2 else None
        return (fuse, turn) if self.is_turned and turn else (fuse,)

    def _stacked(self, sources: Sequence[Shape], target: Shape) -> tuple[Operation, ...]:
        turn: tuple[Operation, ...] = (Transpose((0, 2, 1)),) if self.is_turned else ()
        if len(sources) == self.count:
            return (Stack(self.count), *turn)
        rows = sum(shape[0] for shape in sources)
        rest = sources[0][1:]
        flat, layers = (rows, *rest), (self.count, rows // self.count, *rest)
        return (Fuse(tuple(shape[0] for shape in sources)), Reshape(flat, layers), *turn)


def joins(sources: Sequence[Shape], target: Shape) -> list[Form]:
    """Every way in which parts may be laid side by side to give one tensor, the plainest first."""
    rank = len(target)
    if any(len(shape) != rank for shape in sources):
        return []
    found = [Form("join", dim=dim) for dim in range(min(rank, 2)) if _sum(sources, dim) == target]
    if rank == 2:
        turned = [Form("join", dim=dim, is_turned=True) for dim in range(2)]
        found += [form for form in turned if _sum(sources, form.dim) == target[::-1]]
    return found


def _sum(sources: Sequence[Shape], dim: int) -> Shape | None:
    """Shape of the parts laid along a dimension; None where their other dimensions differ."""
    first = sources[0]
    rest = first[:dim] + first[dim + 1 :]
    if any(shape[:dim] + shape[dim + 1 :] != rest for shape in sources[1:]):
        return None
    return (*first[:dim], sum(shape[dim] for shape in sources), *first[dim + 1 :])


def stacks(layer: Sequence[Shape], count: int, target: Shape) -> list[Form]:
    """Every way in which ``count`` layers, each of some parts laid along rows, give one tensor."""
    if len(target) < 2 or target[0] != count or prod(target) != count * sum(prod(shape) for shape in layer):
        return []
    rows = _sum(layer, 0)
    found = [Form("stack", count=count)] if rows == target[1:] else []
    if rows is not None and len(target) == 3 and rows == target[:0:-1]:
        found.append(Form("stack", count=count, is_turned=True))
    return found
