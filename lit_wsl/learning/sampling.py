"""Rows without end: which rows of a task make its batches, on every process."""

import zlib
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from lit_wsl.errors import ConfigError, did_you_mean

STRATEGIES = ("none", "uniform", "inverse", "sqrt_inverse", "balanced")
"""How often rows of a class are drawn, by the number n of its rows: all rows alike, or by weights 1/n, 1/sqrt(n), or
N/(C n) for C classes and N rows in all."""
_OFF = ("none", "uniform")


class EndlessRows(DistributedSampler[int]):
    """Rows for a number of batches an epoch: one permutation after another, or draws with replacement by weight.

    The order depends on the seed, the task and the epoch alone. With W processes a batch of ``W * batch_size`` rows is
    cut into W parts, so that they see together what one process with that batch size sees.

    Args:
        size: Number of rows.
        batch_size: Rows of a batch on one process.
        batches: Batches in an epoch.
        key: Seed and task.
        weights: Of each row, shape ``(size,)``; None for permutations.
        rank: Number of this process.
        world: Number of processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        batches: int,
        key: str,
        weights: Tensor | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(_Rows(size), num_replicas=world, rank=rank)
        self._size, self._batch_size, self._batches = size, batch_size, batches
        self._key, self._weights = key, weights

    def __len__(self) -> int:
        return self._batches * self._batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._key}/{self.epoch}".encode()))
        rows = self._drawn(self._batches * self.num_replicas * self._batch_size, generator)
        return iter(rows.view(self._batches, self.num_replicas, self._batch_size)[:, self.rank].flatten().tolist())

    def _drawn(self, count: int, generator: torch.Generator) -> Tensor:
        if self._weights is not None:
            return torch.multinomial(self._weights, count, replacement=True, generator=generator)
        rounds = -(-count // self._size)
        return torch.cat([torch.randperm(self._size, generator=generator) for _ in range(rounds)])[:count]


class _Rows(Dataset[int]):
    """A number of rows, which is all that torch's sampler asks for."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


@dataclass(frozen=True)
class Sampling:
    """How rows are drawn, for all tasks and for single ones.

    Raises:
        ConfigError: If a field or a strategy is unknown.
    """

    default: str = "none"
    """``none``, ``uniform``, ``inverse``, ``sqrt_inverse`` or ``balanced``; in a file also ``{enabled, strategy}``."""
    per_task: Mapping[str, str] = field(default_factory=dict)
    """The same by the name of a task."""

    @classmethod
    def read(cls, given: Mapping[str, Any] | None, tasks: Sequence[str]) -> "Sampling":
        """The sampling that ``{default: {enabled, strategy}, per_task: {task: {enabled, strategy}}}`` describes."""
        given = given or {}
        _check_keys(given, ("default", "per_task"), "sampling")
        per_task = given.get("per_task") or {}
        if not isinstance(per_task, Mapping):
            raise ConfigError(f"`sampling.per_task` must be a mapping of tasks, got {per_task!r}.")
        _check_keys(per_task, tasks, "sampling.per_task")
        default = _strategy(given.get("default"), "sampling.default", is_on=False)
        own = {name: _strategy(one, f"sampling.per_task.{name}", is_on=True) for name, one in per_task.items()}
        return cls(default, own)

    def weights(self, task: str, classes: Sequence[Hashable]) -> Tensor | None:
        """Weight of every row of a task, or None where all count alike.

        Args:
            task: Its name.
            classes: Class of every row.
        """
        strategy = self.of(task)
        if strategy in _OFF:
            return None
        counts = Counter(classes)
        scale = len(classes) / len(counts) if strategy == "balanced" else 1.0
        power = 0.5 if strategy == "sqrt_inverse" else 1.0
        return torch.tensor([scale / counts[one] ** power for one in classes], dtype=torch.float64)

    def of(self, task: str) -> str:
        """The strategy of a task."""
        return self.per_task.get(task, self.default)

    def needs_classes(self, task: str) -> bool:
        """Whether the classes of its rows matter."""
        return self.of(task) not in _OFF


def _strategy(given: Any, where: str, *, is_on: bool) -> str:
    """A strategy's name; ``none`` where it is not enabled."""
    if given is None:
        return "none"
    values = {"strategy": given, "enabled": True} if isinstance(given, str) else given
    if not isinstance(values, Mapping):
        raise ConfigError(f"`{where}` must be a mapping with `strategy`, got {given!r}.")
    _check_keys(values, ("enabled", "strategy"), where)
    name = str(values.get("strategy", "uniform"))
    if name not in STRATEGIES:
        raise ConfigError(f"Unknown `{where}.strategy` {name!r}. {did_you_mean(name, STRATEGIES)}")
    return name if values.get("enabled", is_on) else "none"


def _check_keys(given: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(given, Mapping):
        raise ConfigError(f"`{where}` must be a mapping, got {given!r}.")
    unknown = next((key for key in given if key not in known), None)
    if unknown is not None:
        raise ConfigError(f"`{where}` has no {unknown!r}. {did_you_mean(str(unknown), known)}")
