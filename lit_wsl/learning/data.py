"""Batches of several tasks at once."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.evaluation.split_loader import classes_of, indexed, split_loader
from lit_wsl.evaluation.subset import SubsetSpec
from lit_wsl.evaluation.task import Task
from lit_wsl.evaluation.tasks import load_tasks
from lit_wsl.learning.sampling import EndlessRows, Sampling
from lit_wsl.training.options import check_least
from lit_wsl.training.resumable import resumable_loader
from lit_wsl.training.tasks import Split


class MergeTaskData(LightningDataModule):
    """One batch of every task a step, rows without end.

    Args:
        tasks: The registry: a mapping, or the path of a YAML file; Python code may give made tasks.
        names: Which of them; default all.
        base: Model whose tokenizer texts take that name none.
        split: Rows to learn on.
        validation_split: Rows that the objective is validated on; default none.
        batch_size: Rows of each task in a batch.
        batches: Batches in an epoch; default one pass through the largest task.
        seed: Seed of the order.
        sampling: How rows are drawn: ``{default: {enabled, strategy}, per_task: {...}}`` with the strategies ``none``,
            ``uniform``, ``inverse``, ``sqrt_inverse`` and ``balanced``.
        subset: Learn on some rows only: ``max_samples``, ``shuffle``, ``seed``, ``per_task``.
        num_workers: Processes that load batches, for each task.
        pin_memory: Load into memory that a GPU reads fast, where there is one.
        non_blocking: Copy to the GPU while it computes.

    Raises:
        ConfigError: If a task or a setting is unknown, or there are no tasks.
    """

    def __init__(
        self,
        tasks: dict[str, dict] | str,
        names: list[str] | None = None,
        base: str | None = None,
        split: Literal["train", "validation", "test"] = "validation",
        validation_split: Literal["train", "validation", "test"] | None = None,
        batch_size: int = 16,
        batches: int | None = None,
        seed: int = 0,
        sampling: dict[str, Any] | None = None,
        subset: dict[str, Any] | None = None,
        num_workers: int = 0,
        *,
        pin_memory: bool = False,
        non_blocking: bool = True,
    ) -> None:
        super().__init__()
        check_least(1, batch_size=batch_size, batches=batches)
        check_least(0, num_workers=num_workers)
        self.tasks = _made(tasks, names, base)
        self.split, self.validation_split = split, validation_split
        self.batch_size, self.batches, self.seed = batch_size, batches, seed
        self.sampling = Sampling.read(sampling, list(self.tasks))
        self.subset = SubsetSpec.read(subset, seed)
        self._non_blocking = non_blocking
        self._options: dict[str, Any] = {
            "num_workers": num_workers,
            "pin_memory": pin_memory and torch.cuda.is_available(),
            "persistent_workers": num_workers > 0,
        }

    def __str__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.tasks)}; {self.split})"

    def train_dataloader(self) -> CombinedLoader:
        """A mapping of every task's batch."""
        return self.epoch(self.batches)

    def epoch(self, batches: int | None) -> CombinedLoader:
        """The same with another number of batches, the first of which are those of any other number."""
        rows = {name: self._rows(task, self.split) for name, task in self.tasks.items()}
        rank, world = self._place()
        largest = max(len(cast(Any, loader.dataset)) for loader in rows.values())
        batches = batches or -(-largest // (self.batch_size * world))
        loaders = {name: self._endless(name, loader, batches, rank, world) for name, loader in rows.items()}
        return CombinedLoader(loaders, "min_size")

    def val_dataloader(self) -> CombinedLoader | list[Any]:
        """Every row once; a task that is over gives None."""
        if self.validation_split is None:
            return []
        loaders = {name: split_loader(task, self.validation_split) for name, task in self.tasks.items()}
        return CombinedLoader(loaders, "max_size")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch, as Lightning does where copies need not be waited for."""
        if self._non_blocking:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        return apply_to_collection(batch, torch.Tensor, lambda tensor: tensor.to(device))

    def _rows(self, task: Task, split: Split) -> DataLoader[Any]:
        return indexed(split_loader(task, split, self.subset), task.name, "learning", "give the data such a loader")

    def _endless(self, name: str, loader: DataLoader[Any], batches: int, rank: int, world: int) -> DataLoader[Any]:
        dataset: Any = loader.dataset
        weights = None
        if self.sampling.needs_classes(name):
            what = f"Task {name!r}: `sampling` by {self.sampling.of(name)!r}"
            weights = self.sampling.weights(name, classes_of(dataset, self.tasks[name].label_column, what))
        sampler = EndlessRows(len(dataset), self.batch_size, batches, f"{self.seed}/{name}", weights, rank, world)
        return resumable_loader(
            dataset, sampler=sampler, batch_size=self.batch_size, collate_fn=loader.collate_fn, **self._options
        )

    def _place(self) -> tuple[int, int]:
        """Number of this process, and of all."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def first_batches(trainer: Trainer, count: int) -> Iterator[Mapping[str, Any]]:
    """The first batches of a run, without a step in the loader that the trainer uses.

    Of other data than ours there are as many as an epoch has, at most.
    """
    data: Any = getattr(trainer, "datamodule", None)
    source: Any = trainer.train_dataloader if data is None else data.train_dataloader()
    if isinstance(data, MergeTaskData):
        source = data.epoch(count)
    loaders = source.iterables if isinstance(source, CombinedLoader) else source
    for batch, _, _ in islice(iter(CombinedLoader(loaders, "max_size_cycle")), count):
        yield batch


def _made(tasks: Mapping[str, Any] | str, names: list[str] | None, base: str | None) -> dict[str, Task]:
    """The tasks that are named, in that order.

    Raises:
        ConfigError: If one is unknown, or there are none.
    """
    if isinstance(tasks, str) or not all(isinstance(task, Task) for task in tasks.values()):
        made = load_tasks(tasks, base=base, names=names)
    else:
        unknown = next((name for name in names or () if name not in tasks), None)
        if unknown is not None:
            raise ConfigError(f"The data have no task {unknown!r}. {did_you_mean(unknown, tasks)}")
        made = {name: tasks[name] for name in (tasks if names is None else names)}
    if not made:
        raise ConfigError("The data have no tasks; name one at least.")
    return made
