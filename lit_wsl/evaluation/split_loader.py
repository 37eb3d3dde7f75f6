"""The loader of a task's split, or of some of its rows."""

from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.evaluation.subset import SubsetCache, SubsetSpec, text_rows
from lit_wsl.evaluation.task import Task
from lit_wsl.training.tasks import SPLITS, Split, cache_directory
from lit_wsl.training.text import TextClassificationData

_LOADERS = {"train": "train_dataloader", "validation": "val_dataloader", "test": "test_dataloader"}


def subset_cache() -> SubsetCache:
    """Where the rows of subsets are remembered: in the cache of the built-in tasks."""
    return SubsetCache(cache_directory() / "eval_subsets")


def split_loader(task: Task, split: Split, subset: SubsetSpec | None = None, cache: SubsetCache | None = None) -> Any:
    """The data module's own loader, or one of some of its rows.

    Raises:
        ConfigError: If the split or the subset cannot be had.
    """
    if split not in SPLITS:
        raise ConfigError(f"Unknown split {split!r}. {did_you_mean(split, SPLITS)}")
    cache, data = cache or subset_cache(), task.data
    data.prepare_data()
    data.setup({"train": "fit", "validation": "validate", "test": "test"}[split])
    if isinstance(data, TextClassificationData):
        return data.ordered(split, text_rows(cache, task.name, data, split, subset))
    loader = getattr(data, _LOADERS[split])()
    return loader if subset is None else _part(loader, task, split, subset, cache)


def indexed(loader: Any, task: str, wanted: str, remedy: str) -> DataLoader[Any]:
    """The loader, if it is one over a dataset with indices.

    Raises:
        ConfigError: If it is not.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise ConfigError(
            f"Task {task!r}: {wanted} needs one DataLoader over a dataset with indices, got {type(loader).__name__}; "
            f"{remedy}."
        )
    return loader


def _part(loader: Any, task: Task, split: Split, subset: SubsetSpec, cache: SubsetCache) -> DataLoader[Any]:
    loader = indexed(loader, task.name, "a subset", "leave `eval_subset` out")
    dataset: Any = loader.dataset
    column = subset.of_task(task.name).label_column or task.label_column
    rows = cache.rows(
        subset, task.name, split, len(dataset), lambda: classes_of(dataset, column), _fingerprint(dataset)
    )
    return DataLoader(
        Subset(dataset, rows),
        batch_size=loader.batch_size or 1,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
    )


def classes_of(dataset: Any, column: str | None, what: str = "A stratified subset") -> list[Hashable]:
    """The class of every row of a dataset.

    Args:
        dataset: Rows by index: mappings, or tuples whose last entry is the class.
        column: Name of the class in a mapping.
        what: What needs the classes, for the message.

    Raises:
        ConfigError: If no class can be found.
    """
    if column is not None and column in (getattr(dataset, "column_names", None) or ()):
        return [_plain_class(value) for value in dataset[column]]  # a table of Hugging Face reads one column
    rows = [dataset[index] for index in range(len(dataset))]
    if column is not None and all(isinstance(row, Mapping) and column in row for row in rows):
        return [_plain_class(row[column]) for row in rows]
    if column is None and all(isinstance(row, tuple | list) and row for row in rows):
        return [_plain_class(row[-1]) for row in rows]
    raise ConfigError(f"{what} needs the class of every row; give `label_column`, a key that rows have.")


def _plain_class(value: Any) -> Hashable:
    return value.item() if isinstance(value, Tensor) else value


def _fingerprint(dataset: Any) -> str | None:
    """What a table of Hugging Face calls its content; None for others."""
    found = getattr(dataset, "_fingerprint", None)
    return found if isinstance(found, str) else None


def row_count(loader: Any) -> int:
    """Rows of a loader; 0 where it does not tell."""
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return 0
