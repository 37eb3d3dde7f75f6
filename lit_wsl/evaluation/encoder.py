"""Evaluate many backbones of one encoder: the model, the heads and the tokenised data are made once."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from transformers import AutoModel, AutoTokenizer

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.evaluation.task import Task
from lit_wsl.state.locate import model_dir
from lit_wsl.training.encoder import PromptHead, class_prototypes, embed, load_head

Split = Literal["validation", "test"]


class EncoderEvaluator:
    """Scores state dicts of one encoder on several tasks.

    Args:
        model: The base encoder: a directory, ``package:NAME/dir``, or a hub id.
        tasks: What to measure. Their prompt heads come from the base encoder.
        device: Where to run.
    """

    def __init__(self, model: str, tasks: Sequence[Task], device: torch.device | str = "cpu") -> None:
        directory = model_dir(model)
        self.tasks = list(tasks)
        self._device = torch.device(device)
        self._encoder = AutoModel.from_pretrained(directory).to(self._device).eval()
        self._base = {name: tensor.clone() for name, tensor in self._encoder.state_dict().items()}
        tokenizer = AutoTokenizer.from_pretrained(directory)
        self._heads = {task.name: self._make_head(task, tokenizer) for task in self.tasks}

    def _make_head(self, task: Task, tokenizer: object) -> nn.Module:
        if task.head is not None:
            return load_head(task.head).to(self._device)
        prompts = task.data.prompts or task.data.labels
        return PromptHead(class_prototypes(self._encoder, tokenizer, prompts)).to(self._device)

    def evaluate(self, state: Mapping[str, Tensor] | None, split: Split) -> dict[str, float]:
        """Score of one backbone on every task.

        Args:
            state: State dict of the encoder, merged or tuned; None is the base.
            split: Rows to use. Choose parameters on ``validation``, report ``test``.

        Returns:
            Task name to its primary metric.
        """
        self._load(self._base if state is None else state)
        return {task.name: self._score(task, split) for task in self.tasks}

    def evaluate_task(self, task: Task, state: Mapping[str, Tensor] | None, split: Split) -> float:
        """Score of one backbone on one task."""
        self._load(self._base if state is None else state)
        return self._score(task, split)

    def _load(self, state: Mapping[str, Tensor]) -> None:
        """Put a backbone in place; every parameter must be there, buffers keep their values."""
        known = {name: state[name] for name in self._base if name in state}
        missing = [name for name, _ in self._encoder.named_parameters() if name not in known]
        if missing:
            raise CheckpointError(
                f"The state dict lacks {len(missing)} of the encoder's parameters, first {missing[0]!r}."
            )
        wrong = next((name for name in known if known[name].shape != self._base[name].shape), None)
        if wrong is not None:
            shapes = tuple(known[wrong].shape), tuple(self._base[wrong].shape)
            raise CheckpointError(f"Shape mismatch at {wrong!r}: the state dict {shapes[0]}, the encoder {shapes[1]}.")
        self._encoder.load_state_dict({**self._base, **known})

    @torch.inference_mode()
    def _score(self, task: Task, split: Split) -> float:
        metric = _metric(task).to(self._device)
        head = self._heads[task.name]
        if split not in ("validation", "test"):
            raise ConfigError(f"Split must be validation or test, got {split!r}.")
        loader = task.data.val_dataloader() if split == "validation" else task.data.test_dataloader()
        for batch in loader:
            on_device = {name: tensor.to(self._device) for name, tensor in batch.items()}
            metric.update(head(embed(self._encoder, on_device)), on_device["labels"])
        return float(metric.compute())


def _metric(task: Task) -> Metric:
    classes = len(task.data.labels)
    if task.metric == "accuracy":
        return MulticlassAccuracy(num_classes=classes, average="micro")
    return MulticlassF1Score(num_classes=classes, average="macro")
