"""Operations that join tensors or take one apart: parts along a dimension, layers along a new one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_wsl.state.operation import Operation, Shape


@dataclass(frozen=True)
class _Parts(Operation):
    """Parts of ``sizes`` along ``dim``."""

    sizes: tuple[int, ...]
    dim: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes and groups that no tensor has."""
        is_met = min(self.sizes, default=-1) >= 0 and self.dim >= 0 and self.groups >= 1
        self._require("sizes >= 0, dim >= 0 and groups >= 1", is_met=is_met)

    def _sized(self, shape: Shape, size: int) -> Shape:
        """The shape with another size along ``dim``."""
        return (*shape[: self.dim], size, *shape[self.dim + 1 :])

    def _check_groups(self, shapes: list[Shape]) -> None:
        if any(size % self.groups for size in self.sizes):
            raise self._misfit(f"sizes along dimension {self.dim} that {self.groups} groups share", shapes)


@dataclass(frozen=True)
class Fuse(_Parts):
    """Joins tensors along ``dim``; with ``groups`` the parts alternate: the first group of each, then the second.

    Query, key and value become one projection with ``groups=1``, litgpt's older interleaved one with a group per
    key-value head.
    """

    name: ClassVar[str] = "fuse"

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        """One shape, with the sum of the sizes along ``dim``."""
        first = shapes[0] if shapes else ()
        if len(first) <= self.dim or shapes != [self._sized(first, size) for size in self.sizes]:
            raise self._misfit(f"sizes {self.sizes} along dimension {self.dim} of otherwise equal tensors", shapes)
        self._check_groups(shapes)
        return [self._sized(first, sum(self.sizes))]

    def inverse(self) -> "Split":
        """The parts again."""
        return Split(self.sizes, self.dim, self.groups)

    def _made(self, tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat(self._grouped(tensors), dim=self.dim + 1).flatten(self.dim, self.dim + 1)]

    def _pieces(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        if self.dim:
            return super()._pieces(tensors)
        parts = self._grouped(tensors)
        return [[part[group] for group in range(self.groups) for part in parts]]

    def _grouped(self, tensors: list[Tensor]) -> list[Tensor]:
        return [tensor.unflatten(self.dim, (self.groups, -1)) for tensor in tensors]


@dataclass(frozen=True)
class Split(_Parts):
    """Cuts one tensor along ``dim`` into parts of ``sizes``; ``groups`` as in :class:`Fuse`."""

    name: ClassVar[str] = "split"

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        """As many as ``sizes``, which differ along ``dim``."""
        if len(shapes) != 1 or len(shapes[0]) <= self.dim or shapes[0][self.dim] != sum(self.sizes):
            raise self._misfit(f"one tensor of size {sum(self.sizes)} along dimension {self.dim}", shapes)
        self._check_groups(shapes)
        return [self._sized(shapes[0], size) for size in self.sizes]

    def inverse(self) -> "Fuse":
        """The whole again."""
        return Fuse(self.sizes, self.dim, self.groups)

    def _made(self, tensors: list[Tensor]) -> list[Tensor]:
        return [part.flatten(self.dim, self.dim + 1) for part in self._grouped(tensors)]

    def _pieces(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        return [[part] for part in self._grouped(tensors)]

    def _grouped(self, tensors: list[Tensor]) -> Sequence[Tensor]:
        [tensor] = tensors
        sizes = [size // self.groups for size in self.sizes]
        return tensor.unflatten(self.dim, (self.groups, -1)).split(sizes, dim=self.dim + 1)


@dataclass(frozen=True)
class _Layers(Operation):
    """``count`` layers along a dimension of their own, ``dim``."""

    count: int
    dim: int = 0

    def __post_init__(self) -> None:
        """Refuse a stack of nothing."""
        self._require("count >= 1 and dim >= 0", is_met=self.count >= 1 and self.dim >= 0)


@dataclass(frozen=True)
class Stack(_Layers):
    """Lays ``count`` tensors of one shape along a new dimension: experts into one tensor."""

    name: ClassVar[str] = "stack"

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        """One shape with a dimension more."""
        if len(shapes) != self.count or len(set(shapes)) != 1 or len(shapes[0]) < self.dim:
            raise self._misfit(f"{self.count} equal tensors of at least {self.dim} dimensions", shapes)
        return [(*shapes[0][: self.dim], self.count, *shapes[0][self.dim :])]

    def inverse(self) -> "Unstack":
        """The layers again."""
        return Unstack(self.count, self.dim)

    def _made(self, tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack(tensors, dim=self.dim)]

    def _pieces(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        return super()._pieces(tensors) if self.dim else [tensors]


@dataclass(frozen=True)
class Unstack(_Layers):
    """Takes one tensor apart along ``dim``."""

    name: ClassVar[str] = "unstack"

    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        """``count`` shapes with a dimension less."""
        if len(shapes) != 1 or len(shapes[0]) <= self.dim or shapes[0][self.dim] != self.count:
            raise self._misfit(f"one tensor of size {self.count} along dimension {self.dim}", shapes)
        return [shapes[0][: self.dim] + shapes[0][self.dim + 1 :]] * self.count

    def inverse(self) -> "Stack":
        """The stack again."""
        return Stack(self.count, self.dim)

    def _made(self, tensors: list[Tensor]) -> list[Tensor]:
        [tensor] = tensors
        return list(tensor.unbind(self.dim))
