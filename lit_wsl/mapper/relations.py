"""Which single operation turns a tensor of one shape into one of another."""

from functools import lru_cache
from math import prod

from lit_wsl.state.operations import Operation, Reshape, Transpose

Shape = tuple[int, ...]

_TURNS: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((1, 0),),
    3: ((2, 1, 0), (0, 2, 1)),
    4: ((3, 2, 0, 1), (2, 3, 1, 0)),
}
"""Transpositions in use: matrices, one-dimensional kernels, and two-dimensional kernels from and to channels last."""


@lru_cache(maxsize=65536)
def relations(before: Shape, after: Shape) -> tuple[tuple[Operation, ...], ...]:
    """Every way from one shape to the other, the plainest first; empty when there is none.

    A copy, a transposition, or a reshape that drops or adds dimensions of size one or flattens the kernel of a
    convolution over patches. A square matrix has two ways.
    """
    if prod(before) != prod(after):
        return ()
    found: list[tuple[Operation, ...]] = [()] if before == after else []
    if len(before) == len(after):
        found += [(Transpose(dims),) for dims in _TURNS.get(len(before), ()) if _turned(before, dims) == after]
    elif _squeezed(before) == _squeezed(after) or _flattened(before) == after or _flattened(after) == before:
        found.append((Reshape(before, after),))
    return tuple(found)


def kind_of(operations: tuple[Operation, ...]) -> str:
    """Name of a relation: ``copy``, ``transpose`` with its dimensions, or ``reshape``."""
    if not operations:
        return "copy"
    [operation] = operations
    return f"transpose{operation.dims}" if isinstance(operation, Transpose) else operation.name


@lru_cache(maxsize=65536)
def common_kinds(before: tuple[Shape | None, ...], after: tuple[Shape | None, ...]) -> tuple[str, ...]:
    """Kinds of operation that serve every position where both sides have a tensor; empty when none does."""
    pairs = {(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None}
    if not pairs:
        return ()
    kinds = [[kind_of(operations) for operations in relations(*pair)] for pair in sorted(pairs)]
    return tuple(kind for kind in kinds[0] if all(kind in others for others in kinds[1:]))


def operations_of(kind: str, before: Shape, after: Shape) -> tuple[Operation, ...]:
    """The operations of a kind for one pair of shapes."""
    return next(operations for operations in relations(before, after) if kind_of(operations) == kind)


def _turned(shape: Shape, dims: tuple[int, ...]) -> Shape:
    return tuple(shape[dim] for dim in dims)


def _squeezed(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _flattened(shape: Shape) -> Shape:
    """The matrix of a convolution that sees each entry once."""
    return (shape[0], prod(shape[1:])) if len(shape) > 2 else ()
