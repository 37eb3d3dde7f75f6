"""What an operation of a weight map is: a step on tensors that loses nothing and knows the shapes it makes."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lit_wsl.errors import CheckpointError, ConfigError

Shape = tuple[int, ...]
_LISTED = 4
"""How many texts a message lists."""


@dataclass(frozen=True)
class Operation(ABC):
    """A step from a list of tensors to a list of tensors that loses nothing."""

    name: ClassVar[str]

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """The new tensors; views where possible.

        Raises:
            CheckpointError: If the step was made for other shapes.
        """
        self._check(tensors)
        return self._made(tensors)

    def pieces(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        """The new tensors, each as pieces of any shape whose entries follow each other; views where possible.

        Raises:
            CheckpointError: If the step was made for other shapes.
        """
        self._check(tensors)
        return self._pieces(tensors)

    @abstractmethod
    def shapes(self, shapes: list[Shape]) -> list[Shape]:
        """Shapes of the new tensors, without any tensor.

        Raises:
            CheckpointError: If the step was made for other shapes.
        """

    @abstractmethod
    def inverse(self) -> "Operation":
        """The step back."""

    @abstractmethod
    def _made(self, tensors: list[Tensor]) -> list[Tensor]:
        """The new tensors; those given have the right shapes."""

    def _pieces(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        return [[tensor] for tensor in self._made(tensors)]

    def _check(self, tensors: list[Tensor]) -> None:
        self.shapes([tuple(tensor.shape) for tensor in tensors])

    def _require(self, rule: str, *, is_met: bool) -> None:
        """Refuse options that fit no tensor.

        Raises:
            ConfigError: If they break the rule.
        """
        if not is_met:
            raise ConfigError(f"`{rule}` must hold, got {self}; correct the operation.")

    def _misfit(self, needed: str, shapes: list[Shape]) -> CheckpointError:
        got = map(str, shapes) if len(shapes) <= _LISTED else (f"{n} × {one}" for one, n in Counter(shapes).items())
        return CheckpointError(f"{self.name} needs {needed}, got {listed(got)}")


def listed(texts: Iterable[str]) -> str:
    """Texts in a row, only the first of many."""
    every = list(texts)
    more = f" and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return (", ".join(every[:_LISTED]) + more) or "nothing"
