"""Methods that are good for nothing but tests: of whole matrices, of weights, with every kind of parameter."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.method import MatrixMethod, MergeContext, MergeMethod, Scan

SEEN: list[tuple[str, tuple[int, ...], bool]] = []
"""Name, shape of the stack and whether there is a base, of each call of ``merge_matrices``."""


@dataclass(frozen=True)
class Transposing(MatrixMethod):
    """Ten times the mean, row means taken off: no two blocks of a matrix know that."""

    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Tell what came, and answer what only a whole matrix can."""
        SEEN.append((context.name, tuple(stack.shape), base is not None))
        mean = stack.mean(0)
        return 10.0 * (mean - mean.mean(0, keepdim=True))

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The plain mean."""
        return stack.mean(0)


class SizeScan(Scan):
    """Counts entries and their sum."""

    def __init__(self) -> None:
        self.entries, self.sum = 0, 0.0

    def update(self, stack: Tensor) -> None:
        """Count a block."""
        self.entries += stack.shape[1]
        self.sum += float(stack.double().sum())

    def end_pass(self) -> bool:
        """One pass will do."""
        return True

    def result(self) -> tuple[int, float]:
        """Entries of one parameter, and the sum over all sources."""
        return self.entries, self.sum


@dataclass(frozen=True)
class Blending(MergeMethod):
    """Weighted mean of weights, and a constant that is the share of the base in sight."""

    needs_base: ClassVar[bool] = False
    space: ClassVar[str] = "weight"
    weights: tuple[float, ...] | None = None

    def check_sources(self, count: int) -> None:
        """One weight for each source."""
        super().check_sources(count)
        if self.weights is not None and len(self.weights) != count:
            raise ConfigError(f"`weights` of {self.name!r} must be {count} numbers, got {len(self.weights)}.")

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The weighted mean."""
        weights = torch.tensor(self.weights or [1.0 / len(stack)] * len(stack), dtype=stack.dtype)
        return (weights.unsqueeze(1) * stack).sum(0)


@dataclass(frozen=True)
class ByBase(Blending):
    """The base where it is larger than the first source: a method of weights that reads the base."""

    needs_base: ClassVar[bool] = True

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The larger of both."""
        assert base is not None
        return torch.maximum(stack[0], base)


@dataclass(frozen=True)
class Scanning(Blending):
    """The mean of all entries of all sources, everywhere."""

    def scan_tensor(self, sources: int) -> Scan | None:
        """Sums."""
        return SizeScan()

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """One number."""
        entries, total = context.statistics
        return torch.full_like(stack[0], total / (entries * len(stack)))


@dataclass(frozen=True)
class WeightMatrices(Transposing):
    """A method of whole matrices of weights."""

    space: ClassVar[str] = "weight"
    needs_base: ClassVar[bool] = False

    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Rows of the first source in reverse order: exact, and nothing that a block could do."""
        SEEN.append((context.name, tuple(stack.shape), base is not None))
        return stack[0].flip(0)


@dataclass(frozen=True)
class Keeping(Transposing):
    """A method that would lose a NaN."""

    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Nothing."""
        return torch.zeros_like(stack[0])

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Nothing."""
        return torch.zeros_like(stack[0])


@dataclass(frozen=True)
class Pair(Blending):
    """Merges two."""

    least: ClassVar[int] = 2
    most: ClassVar[int | None] = 2


@dataclass(frozen=True)
class Several(Blending):
    """Merges two or more, at most four."""

    least: ClassVar[int] = 2
    most: ClassVar[int | None] = 4


@dataclass(frozen=True)
class Typed(Blending):
    """Has a parameter of each kind."""

    flag: bool = False
    number: float = 0.5
    count: int | None = None
    share: float | None = None
    kind: Literal["a", "b"] | None = None
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class Echoing(Transposing):
    """Gives a part of its input back."""

    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The first source."""
        return stack[0]


@dataclass(frozen=True)
class Diverging(Transposing):
    """A decomposition that does not converge."""

    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Fails as torch does."""
        raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge.\nMore of it.")


TOYS = {
    "toy_echo": Echoing,
    "toy_diverge": Diverging,
    "toy_typed": Typed,
    "toy_matrix": Transposing,
    "toy_blend": Blending,
    "toy_by_base": ByBase,
    "toy_scan": Scanning,
    "toy_weight_matrix": WeightMatrices,
    "toy_keep": Keeping,
    "toy_pair": Pair,
    "toy_several": Several,
}


def states(models: tuple[str, list[str]]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The base's tensors, and those of each tuned model."""
    return load_file(models[0]), [load_file(file) for file in models[1]]
