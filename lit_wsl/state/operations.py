"""What a weight map does to tensors: steps that lose nothing, each with its way back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_wsl.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Operation:
    """A step from a list of tensors to a list of tensors that loses nothing."""

    name: ClassVar[str]

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """The new tensors; views where possible."""
        raise NotImplementedError

    def inverse(self) -> "Operation":
        """The step back."""
        raise NotImplementedError


@dataclass(frozen=True)
class Transpose(Operation):
    """Permutes the dimensions of every tensor: ``Conv1D`` to ``Linear`` is ``(1, 0)``."""

    name: ClassVar[str] = "transpose"
    dims: tuple[int, ...] = (1, 0)

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors with their dimensions in the order ``dims``."""
        return [tensor.permute(self.dims) for tensor in tensors]

    def inverse(self) -> "Transpose":
        """The permutation back."""
        return Transpose(tuple(sorted(range(len(self.dims)), key=self.dims.__getitem__)))


@dataclass(frozen=True)
class Reshape(Operation):
    """Gives one tensor another shape of as many entries: a 1x1 convolution becomes a matrix."""

    name: ClassVar[str] = "reshape"
    before: tuple[int, ...]
    after: tuple[int, ...]

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensor in the new shape."""
        return [tensor.reshape(self.after) for tensor in tensors]

    def inverse(self) -> "Reshape":
        """The old shape."""
        return Reshape(self.after, self.before)


@dataclass(frozen=True)
class Fuse(Operation):
    """Joins tensors along ``dim``; with ``groups`` the parts alternate: the first group of each, then the second.

    Query, key and value become one projection with ``groups=1``, litgpt's older interleaved one with a group per
    key-value head.
    """

    name: ClassVar[str] = "fuse"
    sizes: tuple[int, ...]
    dim: int = 0
    groups: int = 1

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """One tensor."""
        parts = [tensor.unflatten(self.dim, (self.groups, -1)) for tensor in tensors]
        return [torch.cat(parts, dim=self.dim + 1).flatten(self.dim, self.dim + 1)]

    def inverse(self) -> "Split":
        """The parts again."""
        return Split(self.sizes, self.dim, self.groups)


@dataclass(frozen=True)
class Split(Operation):
    """Cuts one tensor along ``dim`` into parts of ``sizes``; ``groups`` as in :class:`Fuse`."""

    name: ClassVar[str] = "split"
    sizes: tuple[int, ...]
    dim: int = 0
    groups: int = 1

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """As many tensors as ``sizes``."""
        [tensor] = tensors
        sizes = [size // self.groups for size in self.sizes]
        parts = tensor.unflatten(self.dim, (self.groups, -1)).split(sizes, dim=self.dim + 1)
        return [part.flatten(self.dim, self.dim + 1) for part in parts]

    def inverse(self) -> "Fuse":
        """The whole again."""
        return Fuse(self.sizes, self.dim, self.groups)


@dataclass(frozen=True)
class Stack(Operation):
    """Lays ``count`` tensors of one shape along a new dimension: experts into one tensor."""

    name: ClassVar[str] = "stack"
    count: int
    dim: int = 0

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """One tensor with a dimension more."""
        return [torch.stack(tensors, dim=self.dim)]

    def inverse(self) -> "Unstack":
        """The layers again."""
        return Unstack(self.count, self.dim)


@dataclass(frozen=True)
class Unstack(Operation):
    """Takes one tensor apart along ``dim``."""

    name: ClassVar[str] = "unstack"
    count: int
    dim: int = 0

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """``count`` tensors with a dimension less."""
        [tensor] = tensors
        return list(tensor.unbind(self.dim))

    def inverse(self) -> "Stack":
        """The stack again."""
        return Stack(self.count, self.dim)


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

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors with their rows reordered."""
        heads = (self.heads,) * len(tensors) if isinstance(self.heads, int) else self.heads
        return [self._reorder(tensor, count) if count else tensor for tensor, count in zip(tensors, heads, strict=True)]

    def _reorder(self, tensor: Tensor, heads: int) -> Tensor:
        halves = (heads, 2, -1) if self.to_pairs else (heads, -1, 2)
        return tensor.unflatten(0, halves).transpose(1, 2).flatten(0, 2)

    def inverse(self) -> "PermuteHeads":
        """The other convention."""
        return PermuteHeads(self.heads, not self.to_pairs)


_OPERATIONS: dict[str, type[Operation]] = {
    cls.name: cls for cls in (Transpose, Reshape, Fuse, Split, Stack, Unstack, PermuteHeads)
}


def operation_to_json(operation: Operation) -> dict[str, Any]:
    """Plain values that describe an operation."""
    return {"name": operation.name, **asdict(operation)}


def operation_from_json(values: Mapping[str, Any]) -> Operation:
    """The operation that :func:`operation_to_json` described.

    Raises:
        ConfigError: If the operation or an option of it is not known.
    """
    name = values["name"]
    if name not in _OPERATIONS:
        raise ConfigError(f"no operation {name!r}. {did_you_mean(str(name), _OPERATIONS)}")
    cls = _OPERATIONS[name]
    known = {field.name for field in fields(cls)}
    if unknown := set(values) - known - {"name"}:
        raise ConfigError(f"operation {name!r} has no option {min(unknown)!r}. {did_you_mean(min(unknown), known)}")
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key != "name"})
