"""Evaluate many backbones of one encoder: the model, the heads and the tokenised data are made once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.evaluation.content import digest_of, tensors_digest
from lit_wsl.evaluation.metrics import classification_metrics, confusion_counts
from lit_wsl.evaluation.placing import put_in_place
from lit_wsl.evaluation.result import ScoresEveryTask, TaskResult
from lit_wsl.evaluation.subset import Subset, SubsetCache, SubsetSpec, text_rows
from lit_wsl.evaluation.task import Task
from lit_wsl.state.locate import model_dir
from lit_wsl.training.encoder import PromptHead, class_prototypes, embed, load_head
from lit_wsl.training.tasks import SPLITS, Split, cache_directory
from lit_wsl.training.text import Batch, TextClassificationData
from lit_wsl.training.tokenizer import read_tokenizer

METRICS = ("accuracy", "macro_f1", "macro_precision", "macro_recall", "loss")
"""What is measured of a classifier."""


class EncoderEvaluator(ScoresEveryTask):
    """Scores state dicts of one encoder on several tasks.

    Args:
        model: The base encoder: a directory, ``package:NAME/dir``, or a hub id.
        tasks: What to measure. Their prompt heads come from the base encoder.
        device: Where to run.
        cache: Where the rows of subsets are remembered; default in the cache of the built-in tasks.
    """

    def __init__(
        self,
        model: str,
        tasks: Sequence[Task],
        device: torch.device | str = "cpu",
        cache: Path | None = None,
    ) -> None:
        directory = model_dir(model)
        self._tasks = {task.name: task for task in tasks}
        for task in tasks:
            _check(task)
        self._device = torch.device(device)
        self._encoder = AutoModel.from_pretrained(directory).to(self._device).eval()
        self._base = {name: tensor.clone() for name, tensor in self._encoder.state_dict().items()}
        self._tokenizer = read_tokenizer(directory)
        self._heads: dict[str, nn.Module] = {}
        self._subsets = SubsetCache(cache or cache_directory() / "eval_subsets")
        self._batches: dict[tuple[str, Split, str | None], list[Batch]] = {}
        self._rows_digests: dict[tuple[str, Split, str | None], str] = {}
        self._base_digest: str | None = None

    @property
    def registry(self) -> Mapping[str, Task]:
        """The tasks by name."""
        return self._tasks

    def _head(self, task: Task) -> nn.Module:
        """The head of a task, made at its first use: data that are not there concern no other task."""
        if task.name not in self._heads:
            put_in_place(self._encoder, None, self._base)
            self._heads[task.name] = make_head(task, self._encoder, self._tokenizer).to(self._device)
        return self._heads[task.name]

    def evaluate(
        self, state: Mapping[str, Tensor] | None, task: str, split: Split, subset: Subset | None = None
    ) -> TaskResult:
        """Metrics of one backbone on one task.

        Args:
            state: State dict of the encoder, merged or tuned; None is the base.
            task: Name of a known task.
            split: Rows to use. Choose parameters on ``validation``, report ``test``.
            subset: Some of those rows, or how many; None for all.

        Raises:
            CheckpointError: If the state dict is not one of this encoder.
            ConfigError: If the task, the split or the subset cannot be had.
        """
        known = self._task(task)
        batches, head = self._rows(known, split, SubsetSpec.read(subset)), self._head(known)
        put_in_place(self._encoder, state, self._base)
        return self._measure(known, batches, head)

    def digest(self, task: str, split: Split, subset: Subset | None = None) -> str:
        """Hash of all that a score depends on besides the weights that are put in: base, head, metric, rows."""
        known = self._task(task)
        if self._base_digest is None:
            self._base_digest = tensors_digest(self._base)
        chosen = SubsetSpec.read(subset)
        self._rows(known, split, chosen)
        rows = self._rows_digests[task, split, chosen.tag if chosen else None]
        return digest_of(self._base_digest, tensors_digest(self._head(known).state_dict()), known.metric, split, rows)

    def _task(self, name: str) -> Task:
        if name not in self._tasks:
            raise ConfigError(f"Unknown task {name!r}. {did_you_mean(name, self._tasks)}")
        return self._tasks[name]

    def _rows(self, task: Task, split: Split, subset: SubsetSpec | None) -> list[Batch]:
        """Padded batches on the device, made once."""
        if split not in SPLITS:
            raise ConfigError(f"Unknown split {split!r}. {did_you_mean(split, SPLITS)}")
        key = (task.name, split, subset.tag if subset else None)
        if key not in self._batches:
            data = _texts(task)
            rows = text_rows(self._subsets, task.name, data, split, subset)
            self._batches[key] = [
                {name: tensor.to(self._device) for name, tensor in batch.items()} for batch in data.ordered(split, rows)
            ]
            examples = data.examples(split)
            self._rows_digests[key] = digest_of(list(examples) if rows is None else [examples[row] for row in rows])
        return self._batches[key]

    @torch.inference_mode()
    def _measure(self, task: Task, batches: Sequence[Batch], head: nn.Module) -> TaskResult:
        labels = _texts(task).labels
        confusion = torch.zeros(len(labels), len(labels), dtype=torch.long)
        loss = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            logits, targets = head(embed(self._encoder, batch)), batch["labels"]
            confusion += confusion_counts(targets, logits.argmax(dim=1), len(labels)).cpu()
            loss += F.cross_entropy(logits.double(), targets, reduction="sum").cpu()
        rows = int(confusion.sum())
        metrics = {**classification_metrics(confusion), "loss": float(loss) / rows}
        return TaskResult(task.name, metrics, task.metric, task.better, rows, confusion, labels)


def make_head(task: Task, encoder: nn.Module, tokenizer: Any) -> nn.Module:
    """The head that a task's texts are classified with: read from its file, or made of its class prompts.

    Args:
        task: A task whose data are texts.
        encoder: The base encoder, whose embeddings of the prompts the head is made of.
        tokenizer: Its tokenizer.

    Raises:
        ConfigError: If the data are no texts, or the head in the file is one of other classes.
    """
    _check(task)
    data = _texts(task)
    if task.head is None:
        return PromptHead(class_prototypes(encoder, tokenizer, data.prompts or data.labels))
    head = load_head(task.head)
    classes = len(next(iter(head.state_dict().values())))
    if classes != len(data.labels):
        raise ConfigError(f"Task {task.name!r}: {task.head} scores {classes} classes, the data {len(data.labels)}.")
    return head


def _texts(task: Task) -> TextClassificationData:
    """The data of a task, which :func:`_check` has seen."""
    assert isinstance(task.data, TextClassificationData)
    return task.data


def _check(task: Task) -> None:
    if not isinstance(task.data, TextClassificationData):
        raise ConfigError(
            f"Task {task.name!r}: an encoder with a head is evaluated on TextClassificationData, not on "
            f"{type(task.data).__name__}; give the task a `model`."
        )
    if task.metric is not None and task.metric not in METRICS:
        raise ConfigError(f"Task {task.name!r}: unknown metric {task.metric!r}. {did_you_mean(task.metric, METRICS)}")
