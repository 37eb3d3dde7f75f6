"""What a merge method is, and the register of all of them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.parameters import params_of
from lit_wsl.merging.registry import Registry
from lit_wsl.merging.shares import check_count
from lit_wsl.state.names import ParameterName
from lit_wsl.tensors.lora import LoraFactors


@dataclass(frozen=True)
class MergeContext:
    """Where a block stands, and what a scan found."""

    name: str
    """Canonical parameter name."""
    offset: int = 0
    """Index of the block's first entry in the flattened parameter."""
    columns: int = 1
    """Entries of a row: what stands behind the first dimension, and all entries where that is a single one."""
    statistics: Any = None
    """Result of the method's scan, if it asked for one."""
    data: Tensor | None = None
    """What was gathered on each source's data, for a method that asks for it: entries like the stack's, shape
    ``(T, n)``; or Gram matrices of the inputs, shape ``(T, columns, columns)``, or ``(T, 1, rows, rows)`` for a weight
    that is stored with its inputs first. None where a parameter has none."""


class Scan(ABC):
    """Statistics that a method needs before it can merge: gathered in passes over blocks."""

    def begin(self, place: ParameterName) -> None:  # noqa: B027  # most scans see one stream of entries
        """The blocks that follow belong to this parameter."""

    @abstractmethod
    def update(self, stack: Tensor) -> None:
        """Take in one block of task vectors, shape ``(T, n)``, float32 or wider."""

    def add(self, other: Self) -> None:
        """Take in what an equal scan found in other blocks of the same pass; a scan of the whole model needs it."""
        raise NotImplementedError(f"{type(self).__name__} cannot be spread over workers.")

    @abstractmethod
    def end_pass(self) -> bool:
        """Close a pass over all blocks; true when no other is needed."""

    @abstractmethod
    def result(self) -> Any:
        """What the method finds in ``MergeContext.statistics``."""


@dataclass(frozen=True)
class MergeMethod(ABC):
    """Combines the task vectors of one parameter into one update.

    A method is a frozen dataclass of its parameters, validated when it is made, and registered under a name.
    It sees flat blocks of a parameter, so it must treat every entry alike, whatever the block size.
    """

    name: ClassVar[str] = ""
    needs_base: ClassVar[bool] = True
    """Full models need a base to subtract; false where the base cancels out."""
    caution: ClassVar[str] = ""
    """What a user who merges several adapters with this method should know."""
    space: ClassVar[Literal["delta", "weight"]] = "delta"
    """Whether it combines task vectors, or the weights of the tuned models."""
    data: ClassVar[Literal["none", "fisher", "gram"]] = "none"
    """What has to be gathered on each source's data: squared gradients per entry, or Gram matrices of inputs."""
    least: ClassVar[int] = 1
    """Fewest sources."""
    most: ClassVar[int | None] = None
    """Most sources; None for any number."""
    per_source: ClassVar[tuple[str, ...]] = ()
    """Parameters that hold one number per source, in their order, where they are given."""
    of_model: ClassVar[tuple[str, ...]] = ()
    """Parameters that a scan of the whole model rests on: they cannot differ from place to place."""
    is_symmetric: ClassVar[bool] = True
    """Whether the order of the sources does not matter."""
    is_homogeneous: ClassVar[bool] = True
    """Whether sources ``c`` times as large give a result ``c`` times as large, for any positive ``c``."""
    keeps_identical: ClassVar[bool] = True
    """Whether several copies of one source merge to that source, with the default parameters."""

    @property
    def is_row_wise(self) -> bool:
        """Whether it compares the entries of a row, so that blocks must be cut between rows."""
        return False

    @abstractmethod
    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The merged update of one block.

        Args:
            stack: Task vectors, shape ``(T, n)``, float32; must not be modified. Weights of the tuned models for a
                method of that ``space``.
            base: The base parameter's block, shape ``(n,)``, float32, or None.
            context: Where the block stands.

        Returns:
            Update to add to the base, shape ``(n,)``, float32; the merged weights for a method of that ``space``.
        """

    def scan_model(self, sources: int) -> Scan | None:
        """A scan over every block of the whole model, or None."""
        return None

    def scan_tensor(self, sources: int) -> Scan | None:
        """A scan over the blocks of each parameter by itself, or None."""
        return None

    def check_sources(self, count: int) -> None:
        """Refuse a number of sources that the method, or its parameters, cannot merge.

        Raises:
            ConfigError: If there are too few or too many, or a list has not one number for each.
        """
        if count < self.least or (self.most is not None and count > self.most):
            bounds = f"{self.least} to {self.most}" if self.most is not None else f"at least {self.least}"
            wanted = f"exactly {self.least}" if self.least == self.most else bounds
            noun = "source" if self.least == (self.most or 1) == 1 else "sources"
            raise ConfigError(f"Method {self.name!r} merges {wanted} {noun}, got {count}.")
        for field in self.per_source:
            check_count(self.name, field, getattr(self, field), count)

    def tally(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Mapping[str, int]:
        """Counts over one block, for those who want to know what the method kept; see :meth:`stats`."""
        return {}

    def stats(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """What the counts over all blocks of the model say."""
        return dict(counts)

    def at(self, place: ParameterName) -> Self:
        """The method with the parameters that hold for one parameter of the model; by default the same everywhere."""
        return self

    def layers(self) -> Iterable[Any]:
        """Layers that the parameters name, such as ``3`` or ``"encoder:3"``: they must exist in the model."""
        return ()

    def params(self) -> dict[str, Any]:
        """Parameters under their public names."""
        return params_of(self)


@dataclass(frozen=True)
class MatrixMethod(MergeMethod):
    """A method that looks at whole matrices; parameters that are none go block by block through ``merge``.

    A matrix has two dimensions (a convolution's kernel is flattened behind its outputs) of which none is more than
    ``WIDEST`` times the other: embeddings and output layers are tables of vectors, and far too large.
    """

    WIDEST: ClassVar[int] = 32

    @abstractmethod
    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The merged update of one matrix.

        Args:
            stack: Task vectors, shape ``(T, rows, columns)``, float32; must not be modified.
            base: The base's matrix, float32, or None.
            context: Which parameter it is.

        Returns:
            Update to add to the base, shape ``(rows, columns)``, float32.
        """

    def merge_factors(self, factors: Sequence[LoraFactors]) -> list[LoraFactors] | None:
        """Low-rank terms whose sum is the merged update of low-rank sources, or None if that needs them dense."""
        return None

    @classmethod
    def takes(cls, shape: Sequence[int]) -> bool:
        """Whether a parameter of that shape is a matrix."""
        if len(shape) < 2:
            return False
        rows, columns = shape[0], math.prod(shape[1:])
        return min(rows, columns) > 1 and max(rows, columns) <= cls.WIDEST * min(rows, columns)


@dataclass(frozen=True)
class LinearMethod(MergeMethod):
    """A method whose update is a fixed linear combination of the task vectors.

    The engine keeps low rank for these, and never subtracts what it would add again.
    """

    @abstractmethod
    def coefficients(self, sources: int) -> Tensor:
        """One coefficient per source, shape ``(T,)``, float64."""

    def base_coefficient(self, sources: int) -> float:
        """Multiple of the base that the update has beside the task vectors: for methods that scale whole weights."""
        return 0.0

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The combination of the task vectors, shape ``(n,)``, summed in one order whatever the block size."""
        total = torch.zeros_like(stack[0])
        for coefficient, task_vector in zip(self.coefficients(len(stack)).tolist(), stack, strict=True):
            total.add_(task_vector, alpha=coefficient)
        scale = self.base_coefficient(len(stack))
        return total.add_(base, alpha=scale) if scale and base is not None else total

    def merge_factors(self, factors: Sequence[LoraFactors]) -> list[LoraFactors]:
        """Low-rank terms whose sum is the merged update; by default exactly the linear combination."""
        weights = self.coefficients(len(factors)).tolist()
        return [f.scaled(weight) for f, weight in zip(factors, weights, strict=True)]


def row_length(shape: Sequence[int]) -> int:
    """Entries of a row of a parameter: of one output's weights, or of a whole vector."""
    behind = math.prod(shape[1:])
    return behind if behind > 1 else max(1, math.prod(shape))


METHOD_REGISTRY: Registry[MergeMethod] = Registry("Method", "lit_wsl.merging.methods", "merge method")
METHODS = METHOD_REGISTRY.entries
register = METHOD_REGISTRY.register
all_methods = METHOD_REGISTRY.all
method_class = METHOD_REGISTRY.find
build_method = METHOD_REGISTRY.build
