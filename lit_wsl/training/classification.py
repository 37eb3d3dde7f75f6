"""A text encoder with a task head, trained whole or through LoRA."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from transformers import AutoModel

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.models.lora import LoraSpec
from lit_wsl.state.adapters import HEAD_FILE
from lit_wsl.state.locate import model_dir
from lit_wsl.training.encoder import PromptHead, class_prototypes, embed, load_head
from lit_wsl.training.module import MeasuredModule, adamw
from lit_wsl.training.text import Batch
from lit_wsl.training.tokenizer import read_tokenizer


class SequenceClassificationModule(MeasuredModule):
    """An encoder, masked mean pooling, unit-length embeddings and a head.

    It measures ``loss``, ``acc`` over all rows, and ``f1`` averaged over the classes.

    Args:
        model: The encoder: a directory, ``package:NAME/dir``, or a hub id.
        lora: Adapters to train; without it the whole encoder trains.
        head: ``prompt`` scores by the cosine to frozen embeddings of the class prompts under the base encoder,
            ``linear`` trains a linear layer.
        init_adapter: Directory of an adapter to start from, or to test, such as one that ``lit-wsl compare``
            extracted; its layers, ranks and scales are taken over, or must be those of ``lora`` if that is given.
        labels: Class names; the data module gives them on the command line.
        prompts: One prompt per class, for the prompt head; by default the labels themselves.
        encoder_dropout: Dropout inside the encoder while training, in [0, 1); null keeps the model's own. The
            default is none.
        optimizer: Makes the optimizer from the trainable parameters.
        lr_scheduler: Makes a schedule from the optimizer, stepped every epoch.
    """

    backbone_name = "encoder"
    unread = ("pooler.",)

    def __init__(
        self,
        model: str,
        lora: LoraSpec | None = None,
        head: Literal["prompt", "linear"] = "prompt",
        init_adapter: Path | None = None,
        labels: list[str] | None = None,
        prompts: list[str] | None = None,
        encoder_dropout: float | None = 0.0,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(model, lora, optimizer, lr_scheduler)
        self.labels, self.prompts = _check_classes(labels, prompts)
        self.head_kind = head
        self.save_hyperparameters(
            {
                "model": model,
                "lora": asdict(self.lora) if self.lora else None,
                "head": head,
                "labels": self.labels,
                "prompts": self.prompts,
                "encoder_dropout": encoder_dropout,
            }
        )
        directory = model_dir(model)
        self.encoder = AutoModel.from_pretrained(directory)
        if encoder_dropout is not None:
            _set_dropout(self.encoder, encoder_dropout)
        # The head comes first: its prototypes are those of the base, before any adapter.
        self.head = self._make_head(directory)
        self._adapt(init_adapter)
        if init_adapter is not None and isinstance(self.head, nn.Linear):
            _start_head(self.head, Path(init_adapter))
        if (pooler := getattr(self.encoder, "pooler", None)) is not None:
            pooler.requires_grad_(False)  # mean pooling never reads it: it would get no gradient
        self.encoder.train()  # transformers loads in evaluation mode, which Lightning would keep
        self.metrics = self._metrics_by_stage()

    def _make_head(self, directory: Path) -> nn.Module:
        if self.head_kind == "linear":
            return nn.Linear(self.encoder.config.hidden_size, len(self.labels))
        return PromptHead(class_prototypes(self.encoder, read_tokenizer(directory), self.prompts))

    def forward(self, batch: Batch) -> Tensor:
        """Logits of shape ``(b, classes)``."""
        logits: Tensor = self.head(embed(self.encoder, batch))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        loss = F.cross_entropy(self(batch), batch["labels"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["labels"]))
        return loss

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Class probabilities, shape ``(b, classes)``."""
        return self(batch).softmax(dim=-1)

    def _make_metrics(self) -> dict[str, Metric]:
        classes = len(self.labels)
        accuracy = MulticlassAccuracy(num_classes=classes, average="micro")
        return {"loss": MeanMetric(), "acc": accuracy, "f1": MulticlassF1Score(num_classes=classes)}

    def _update(self, metrics: Any, batch: Batch) -> None:
        logits, targets = self(batch), batch["labels"]
        metrics["loss"].update(F.cross_entropy(logits, targets), len(targets))
        metrics["acc"].update(logits, targets)
        metrics["f1"].update(logits, targets)

    def _head_state(self) -> Mapping[str, Tensor]:
        return self.head.state_dict()

    def _head_metadata(self) -> dict[str, str]:
        return {
            "head": self.head_kind,
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "prompts": json.dumps(self.prompts, ensure_ascii=False),
        }


def _start_head(head: nn.Linear, adapter: Path) -> None:
    """Give a linear head the weights beside an adapter; an extracted one has none."""
    path = adapter / HEAD_FILE
    if not path.exists():
        rank_zero_warn(f"{adapter} has no {HEAD_FILE}: the linear head starts from random weights.")
        return
    saved = load_head(path)
    if not isinstance(saved, nn.Linear) or saved.weight.shape != head.weight.shape:
        raise CheckpointError(
            f"{path} is no linear head of {head.out_features} classes over {head.in_features} features; give the "
            "`head` and the `labels` that it was trained with, or remove the file to start from random weights."
        )
    head.load_state_dict(saved.state_dict())


def _check_classes(labels: list[str] | None, prompts: list[str] | None) -> tuple[list[str], list[str]]:
    """Labels and prompts, one each per class."""
    labels = labels or prompts
    if not labels or len(labels) < 2:
        raise ConfigError(f"A classifier needs at least two labels, got {labels}; give `labels`.")
    if repeated := [label for at, label in enumerate(labels) if label in labels[:at]]:
        raise ConfigError(f"Each label names one class, and {repeated[0]!r} stands twice; give `labels` once each.")
    prompts = prompts or labels
    if len(prompts) != len(labels):
        raise ConfigError(f"{len(labels)} labels need as many prompts, got {len(prompts)}.")
    return list(labels), list(prompts)


def _set_dropout(encoder: nn.Module, probability: float) -> None:
    if not 0 <= probability < 1:
        raise ConfigError(f"`0 <= encoder_dropout < 1` must hold, got {probability}.")
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
