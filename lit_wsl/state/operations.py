"""What a weight map does to tensors: every operation, and its plain values in a file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any, ClassVar

from torch import Tensor

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.state.joining import Fuse, Split, Stack, Unstack
from lit_wsl.state.operation import Operation, Shape


@dataclass(frozen=True)
class Transpose(Operation):
    """Permutes the dimensions of every tensor: ``Conv1D`` to ``Linear`` is ``(1, 0)``."""

    name: ClassVar[str] = "transpose"
    dims: tuple[int, ...] = (1, 0)

    def __post_init__(self) -> None:
        """Refuse what is no order of dimensions."""
        self._require("dims is an order of 0, 1, …", is_met=sorted(self.dims) == list(range(len(self.dims))))

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        """The sizes in the order ``dims``."""
        if any(len(shape) != len(self.dims) for shape in shapes):
            raise self._misfit(f"tensors of {len(self.dims)} dimensions", shapes)
        return [tuple(shape[dim] for dim in self.dims) for shape in shapes]

    def inverse(self) -> "Transpose":
        """The permutation back."""
        return Transpose(tuple(sorted(range(len(self.dims)), key=self.dims.__getitem__)))

    def _made(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.permute(self.dims) for tensor in tensors]


@dataclass(frozen=True)
class Reshape(Operation):
    """Gives every tensor another shape of as many entries: a 1x1 convolution becomes a matrix."""

    name: ClassVar[str] = "reshape"
    before: tuple[int, ...]
    after: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse shapes of unequal numbers of entries."""
        are_sizes = min((*self.before, *self.after), default=0) >= 0
        is_met = are_sizes and prod(self.before) == prod(self.after)
        self._require("prod(before) == prod(after)", is_met=is_met)

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        """The new shape for every tensor."""
        if any(shape != self.before for shape in shapes):
            raise self._misfit(f"tensors of shape {self.before}", shapes)
        return [self.after] * len(shapes)

    def inverse(self) -> "Reshape":
        """The old shape."""
        return Reshape(self.after, self.before)

    def _made(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.reshape(self.after) for tensor in tensors]


@dataclass(frozen=True)
class PermuteHeads(Operation):
    """Reorders the rows of every head between two conventions of rotary embeddings.

    ``to_pairs`` turns rows ordered by halves (the first half of all rotary pairs, then the second; transformers) into
    rows ordered by pairs (the original Llama code).
    """

    name: ClassVar[str] = "permute_heads"
    heads: int | tuple[int, ...]
    """Heads of every tensor, or of each one by one; a tensor with 0 heads stays as it is."""
    to_pairs: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers below zero."""
        self._require("heads >= 0", is_met=min(self._of_each(1), default=0) >= 0)

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        """The same shapes."""
        heads = self._of_each(len(shapes))
        if len(heads) != len(shapes):
            raise self._misfit(f"{len(heads)} tensors", shapes)
        for shape, count in zip(shapes, heads, strict=True):
            if count and (not shape or shape[0] % (2 * count)):
                raise self._misfit(f"rows that make pairs in each of {count} heads", [shape])
        return list(shapes)

    def inverse(self) -> "PermuteHeads":
        """The other convention."""
        return PermuteHeads(self.heads, not self.to_pairs)

    def _of_each(self, count: int) -> tuple[int, ...]:
        return (self.heads,) * count if isinstance(self.heads, int) else self.heads

    def _made(self, tensors: list[Tensor]) -> list[Tensor]:
        return [piece.reshape(tensor.shape) for [piece], tensor in zip(self._pieces(tensors), tensors, strict=True)]

    def _pieces(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        heads = self._of_each(len(tensors))
        return [
            [self._view(tensor, count)] if count else [tensor] for tensor, count in zip(tensors, heads, strict=True)
        ]

    def _view(self, tensor: Tensor, heads: int) -> Tensor:
        """The rows in the new order, by heads, pairs and halves."""
        halves = (heads, 2, -1) if self.to_pairs else (heads, -1, 2)
        return tensor.unflatten(0, halves).transpose(1, 2)


_OPERATIONS: dict[str, type[Operation]] = {
    cls.name: cls for cls in (Transpose, Reshape, Fuse, Split, Stack, Unstack, PermuteHeads)
}


def operation_to_json(operation: Operation) -> dict[str, Any]:
    """Plain values that describe an operation."""
    return {"name": operation.name, **asdict(operation)}


def operation_from_json(values: Mapping[str, Any]) -> Operation:
    """The operation that :func:`operation_to_json` described.

    Raises:
        ConfigError: If the operation or an option of it is not known, or fits no tensor.
    """
    name = values["name"]
    if name not in _OPERATIONS:
        raise ConfigError(f"no operation {name!r}. {did_you_mean(str(name), _OPERATIONS)}")
    cls = _OPERATIONS[name]
    known = {field.name for field in fields(cls)}
    if unknown := set(values) - known - {"name"}:
        raise ConfigError(f"operation {name!r} has no option {min(unknown)!r}. {did_you_mean(min(unknown), known)}")
    return cls(**{key: _option(name, key, value) for key, value in values.items() if key != "name"})


def _option(name: str, key: str, value: Any) -> int | tuple[int, ...]:
    """A whole number, or several."""
    each = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(number, int) for number in each):
        raise ConfigError(f"operation {name!r} takes whole numbers for {key!r}, got {value!r}; correct it.")
    return tuple(value) if isinstance(value, list | tuple) else value
