"""Text classification data: a built-in task, a prepared directory, or CSV and JSONL files."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lit_wsl.errors import ConfigError, DataError, did_you_mean
from lit_wsl.state.locate import model_dir
from lit_wsl.training.options import check_least
from lit_wsl.training.resumable import resumable_loader
from lit_wsl.training.rows import read_rows
from lit_wsl.training.tasks import SPLITS, TASKS, Split, prepare_task
from lit_wsl.training.tokenizer import read_tokenizer

Example = tuple[list[int], int]
"""Token ids and the class index of one text."""

Batch = dict[str, Tensor]
"""``input_ids`` and ``attention_mask``, shape ``(b, s)``, and ``labels``, shape ``(b,)``."""

# Batches are cut from runs of this many batches sorted by length: little padding, still random.
_POOL_BATCHES = 16


@dataclass(frozen=True)
class TextFiles:
    """Where the splits of a task are, and its classes."""

    files: Mapping[Split, Path]
    labels: list[str] | None = None
    prompts: list[str] | None = None


def locate_task(task: str) -> TextFiles:
    """Files and classes of a built-in task, a prepared directory, or a JSON file that lists them.

    Raises:
        ConfigError: If it is none of the three.
        DataError: If the listing is damaged.
    """
    if task in TASKS:
        prepared = prepare_task(task)
        return TextFiles({split: prepared.file(split) for split in SPLITS}, prepared.labels, prepared.prompts)
    path = Path(task).expanduser()
    if path.is_dir():
        return _read_listing(path / "task.json")
    if path.is_file():
        return _read_listing(path)
    raise ConfigError(
        f"Unknown task {task!r}. {did_you_mean(task, TASKS)} A directory with task.json and a JSON file work too."
    )


def _read_listing(path: Path) -> TextFiles:
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
        names = {split: str(listing.get(split, f"{split}.jsonl")) for split in SPLITS}
        labels, prompts = listing["labels"], listing.get("prompts")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is no task listing ({error!r}); it needs `labels`, and may have `prompts` and the files "
            "`train`, `validation`, `test`."
        ) from error
    for name, words in (("labels", labels), ("prompts", prompts)):
        if words is not None and not _is_words(words):
            raise DataError(f"{path}: {name!r} must be a list of texts, got {words!r:.60}.")
    return TextFiles({split: path.parent / name for split, name in names.items()}, labels, prompts)


def _is_words(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)


class TextClassificationData(LightningDataModule):
    """Tokenised texts with class indices, padded per batch, similar lengths together.

    Args:
        tokenizer: Model whose tokenizer is used: a directory, ``package:NAME/dir``, or a hub id.
        task: Built-in task (sentiment, tweets, genre, intent, langid), a directory with ``task.json``, or a
            JSON file ``{labels, prompts, train, validation, test}``. Give this or files.
        train_file: CSV or JSONL file with columns ``text`` and ``label``.
        validation_file: The same, for validation.
        test_file: The same, for testing and predicting.
        labels: Class names in the order of the indices; by default the sorted labels of the training file.
        prompts: One prompt per class, for the prompt head.
        batch_size: Texts in a batch.
        max_length: Tokens after which a text is cut.
        limit_train: Train on the first so many rows only.
        num_workers: Processes that load batches.
        seed: Seed of the training order.
    """

    def __init__(
        self,
        tokenizer: str,
        task: str | None = None,
        train_file: Path | None = None,
        validation_file: Path | None = None,
        test_file: Path | None = None,
        labels: list[str] | None = None,
        prompts: list[str] | None = None,
        batch_size: int = 32,
        max_length: int = 48,
        limit_train: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        given: dict[Split, Path | None] = {
            "train": train_file,
            "validation": validation_file,
            "test": test_file,
        }
        self._given = {split: Path(path) for split, path in given.items() if path is not None}
        if (task is None) == (not self._given):
            raise ConfigError("Give either `task` or `train_file`/`validation_file`/`test_file`.")
        check_least(1, batch_size=batch_size, max_length=max_length, limit_train=limit_train)
        check_least(0, num_workers=num_workers)
        self.tokenizer = tokenizer
        self.task = task
        self.batch_size = batch_size
        self.max_length = max_length
        self.limit_train = limit_train
        self.num_workers = num_workers
        self.seed = seed
        self._given_classes = (labels, prompts)
        self._located: TextFiles | None = None
        self._examples: dict[Split, list[Example]] = {}
        self._pad_id = 0

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the class indices."""
        return self._locate().labels or []

    @property
    def prompts(self) -> list[str] | None:
        """One prompt per class, or None when none were given."""
        return self._locate().prompts

    def _locate(self) -> TextFiles:
        if self._located is None:
            located = locate_task(self.task) if self.task else TextFiles(self._given)
            labels = self._given_classes[0] or located.labels or _labels_of(located.files)
            if repeated := [label for at, label in enumerate(labels) if label in labels[:at]]:
                raise ConfigError(f"Each of `labels` names one class, and {repeated[0]!r} stands twice; remove one.")
            prompts = self._given_classes[1] or located.prompts
            if prompts is not None and len(prompts) != len(labels):
                raise ConfigError(f"{len(labels)} labels need as many prompts, got {len(prompts)}.")
            self._located = TextFiles(located.files, labels, prompts)
        return self._located

    def size(self, split: Split) -> int:
        """Number of rows of a split."""
        return len(self._split(split))

    def prepare_data(self) -> None:
        """Fetch and prepare a built-in task, on one process."""
        self._locate()

    def setup(self, stage: str | None = None) -> None:
        """Tokenise the splits that the stage needs, once.

        Raises:
            ConfigError: If the tokenizer cannot be read.
            DataError: If a file cannot be read, or a row is bad.
        """
        wanted: dict[str, tuple[Split, ...]] = {
            "fit": ("train", "validation"),
            "validate": ("validation",),
            "test": ("test",),
            "predict": ("test",),
        }
        for split in wanted.get(str(stage), SPLITS):
            if split in self._locate().files and split not in self._examples:
                self._examples[split] = self._tokenise(split)

    def _tokenise(self, split: Split) -> list[Example]:
        tokenizer = read_tokenizer(model_dir(self.tokenizer))
        self._pad_id = tokenizer.pad_token_id or 0
        texts, classes = self._read(split)
        ids = tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        return list(zip(ids, classes, strict=True))

    def _read(self, split: Split) -> tuple[list[str], list[int]]:
        """Texts and class indices of a split, in file order."""
        path = self._locate().files[split]
        index = {label: position for position, label in enumerate(self.labels)}
        texts: list[str] = []
        classes: list[int] = []
        for line, text, label in read_rows(path):
            if label not in index:
                raise DataError(f"{path}, line {line}: unknown label {label!r}. {did_you_mean(label, index)}")
            texts.append(text)
            classes.append(index[label])
        if not texts:
            raise DataError(f"{path} has no rows.")
        limit = self.limit_train if split == "train" else None
        return texts[:limit], classes[:limit]

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of similar lengths; the order depends on the seed and the epoch."""
        examples = self._split("train")
        lengths = [len(ids) for ids, _ in examples]
        sampler = LengthBatches(lengths, self.batch_size, torch.Generator().manual_seed(self.seed))
        return resumable_loader(
            _ListDataset(examples), batch_sampler=sampler, collate_fn=self.collate, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Validation batches, sorted by length; none without a file."""
        return self.ordered("validation") if "validation" in self._locate().files else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches, sorted by length."""
        return self.ordered("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Test batches in the order of the file."""
        return self._loader(self._split("test"))

    def examples(self, split: Split) -> Sequence[Example]:
        """Tokenised rows of a split with their classes, in the order of the file."""
        return self._split(split)

    def ordered(self, split: Split, rows: Sequence[int] | None = None) -> DataLoader[Any]:
        """Batches of a split, or of some of its rows, sorted by length."""
        examples = self._split(split)
        chosen = examples if rows is None else [examples[row] for row in rows]
        return self._loader(sorted(chosen, key=lambda example: len(example[0])))

    def _loader(self, examples: list[Example]) -> DataLoader[Any]:
        return DataLoader(
            _ListDataset(examples),
            batch_size=self.batch_size,
            collate_fn=self.collate,
            num_workers=self.num_workers,
        )

    def _split(self, split: Split) -> list[Example]:
        if split not in self._examples:
            if split not in self._locate().files:
                raise ConfigError(f"No {split} rows; give `{split}_file` or a `task`.")
            self._examples[split] = self._tokenise(split)
        return self._examples[split]

    def collate(self, examples: list[Example]) -> Batch:
        """Pad the examples to the longest of them."""
        longest = max(len(ids) for ids, _ in examples)
        input_ids = torch.full((len(examples), longest), self._pad_id)
        attention_mask = torch.zeros((len(examples), longest), dtype=torch.long)
        for row, (ids, _) in enumerate(examples):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            attention_mask[row, : len(ids)] = 1
        labels = torch.tensor([label for _, label in examples])
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


class _ListDataset(torch.utils.data.Dataset[Example]):
    """A list of examples, as a dataset."""

    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


class LengthBatches(torch.utils.data.Sampler[list[int]]):
    """Random batches of similar lengths: shuffle, sort runs of a few batches by length, shuffle the batches.

    Args:
        lengths: Length of every example.
        batch_size: Examples in a batch; the shortest batch may have fewer.
        generator: Source of the order; it advances with every pass.
    """

    def __init__(self, lengths: list[int], batch_size: int, generator: torch.Generator) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.lengths), generator=self.generator).tolist()
        pool = self.batch_size * _POOL_BATCHES
        batches = []
        for start in range(0, len(order), pool):
            near = sorted(order[start : start + pool], key=self.lengths.__getitem__)
            batches += [near[first : first + self.batch_size] for first in range(0, len(near), self.batch_size)]
        for position in torch.randperm(len(batches), generator=self.generator).tolist():
            yield batches[position]


def _labels_of(files: Mapping[Split, Path]) -> list[str]:
    """Sorted labels of the training file, or of the first file there is."""
    path = files.get("train") or next(iter(files.values()))
    return sorted({label for _, _, label in read_rows(path)})
