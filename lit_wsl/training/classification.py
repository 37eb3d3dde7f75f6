"""A text encoder with a task head, trained whole or through LoRA."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from transformers import AutoModel, AutoTokenizer

from lit_wsl.errors import ConfigError
from lit_wsl.models.lora import LoraSpec, inject_lora, load_adapter, save_adapter
from lit_wsl.state.adapters import HEAD_FILE
from lit_wsl.state.locate import model_dir
from lit_wsl.state.publish import published_directory
from lit_wsl.state.writer import write_tensors
from lit_wsl.training.encoder import PromptHead, class_prototypes, embed, load_head
from lit_wsl.training.text import Batch


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


class SequenceClassificationModule(LightningModule):
    """An encoder, masked mean pooling, unit-length embeddings and a head.

    Args:
        model: The encoder: a directory, ``package:NAME/dir``, or a hub id.
        lora: Adapters to train; without it the whole encoder trains.
        head: ``prompt`` scores by the cosine to frozen embeddings of the class prompts under the base encoder,
            ``linear`` trains a linear layer.
        adapter: Directory of a trained adapter to start from, or to test; ``lora`` must fit it.
        labels: Class names; the data module gives them on the command line.
        prompts: One prompt per class, for the prompt head; by default the labels themselves.
        encoder_dropout: Dropout inside the encoder while training, in [0, 1); null keeps the model's own. The
            default is none.
        optimizer: Makes the optimizer from the trainable parameters.
        lr_scheduler: Makes a schedule from the optimizer, stepped every epoch.
    """

    def __init__(
        self,
        model: str,
        lora: LoraSpec | None = None,
        head: Literal["prompt", "linear"] = "prompt",
        adapter: Path | None = None,
        labels: list[str] | None = None,
        prompts: list[str] | None = None,
        encoder_dropout: float | None = 0.0,
        optimizer: OptimizerCallable = _adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        # A checkpoint holds the specification as a plain mapping, which `load_from_checkpoint` gives back.
        self.lora = LoraSpec(**lora) if isinstance(lora, Mapping) else lora
        self.labels, self.prompts = _check_classes(labels, prompts)
        self.base_model = model
        self.head_kind = head
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
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
        if self.lora:
            inject_lora(self.encoder, self.lora)
        if adapter is not None:
            self._load(Path(adapter))
        if (pooler := getattr(self.encoder, "pooler", None)) is not None:
            pooler.requires_grad_(False)  # mean pooling never reads it: it would get no gradient
        self.encoder.train()  # transformers loads in evaluation mode, which Lightning would keep
        self.metrics = nn.ModuleDict({stage: _metrics(stage, len(self.labels)) for stage in ("val", "test")})

    def _load(self, directory: Path) -> None:
        """Take over the trained adapter and head of a directory."""
        if self.lora is None:
            raise ConfigError(f"To load the adapter {directory}, give the `lora` settings that it was trained with.")
        load_adapter(self.encoder, self.lora, directory)
        if self.head_kind == "linear":
            self.head.load_state_dict(load_head(directory / HEAD_FILE).state_dict())

    def _make_head(self, directory: Path) -> nn.Module:
        if self.head_kind == "linear":
            return nn.Linear(self.encoder.config.hidden_size, len(self.labels))
        tokenizer = AutoTokenizer.from_pretrained(directory)
        return PromptHead(class_prototypes(self.encoder, tokenizer, self.prompts))

    def forward(self, batch: Batch) -> Tensor:
        """Logits of shape ``(b, classes)``."""
        logits: Tensor = self.head(embed(self.encoder, batch))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        loss = F.cross_entropy(self(batch), batch["labels"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``val/loss``, ``val/acc`` and ``val/f1``."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``test/loss``, ``test/acc`` and ``test/f1``."""
        self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Class probabilities, shape ``(b, classes)``."""
        return self(batch).softmax(dim=-1)

    def _evaluate(self, stage: Literal["val", "test"], batch: Batch) -> None:
        logits, targets = self(batch), batch["labels"]
        metrics = self.metrics[stage]
        assert isinstance(metrics, MetricCollection)
        metrics.update(logits, targets)
        size = len(targets)
        self.log(f"{stage}/loss", F.cross_entropy(logits, targets), batch_size=size)
        self.log_dict(metrics, prog_bar=True, batch_size=size)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the named trainable parameters, with its schedule if there is one."""
        optimizer = self.optimizer([(n, p) for n, p in self.named_parameters() if p.requires_grad])
        if self.lr_scheduler is None:
            return optimizer
        scheduler: Any = self.lr_scheduler(optimizer)
        monitor = getattr(scheduler, "monitor", "val/loss")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor}}

    def save_adapter(self, directory: Path) -> None:
        """Write the adapters as a PEFT directory, with the head in ``head.safetensors``.

        Raises:
            ConfigError: If the module trains without LoRA.
            CheckpointError: If the directory cannot be written.
        """
        if self.lora is None:
            raise ConfigError("No adapter to save: the module trains without `lora`; use `save_pretrained`.")
        save_adapter(self.encoder, self.lora, directory, self.base_model, self.head.state_dict(), self._head_metadata())

    def save_pretrained(self, directory: Path) -> None:
        """Write what was trained: a PEFT directory with LoRA, else the encoder and tokenizer in HF's layout.

        Raises:
            CheckpointError: If the directory cannot be written.
        """
        if self.lora is not None:
            self.save_adapter(directory)
            return
        with published_directory(Path(directory), overwrite=True) as scratch:
            self.encoder.save_pretrained(scratch)
            AutoTokenizer.from_pretrained(model_dir(self.base_model)).save_pretrained(scratch)
            write_tensors(scratch / HEAD_FILE, self.head.state_dict(), self._head_metadata())

    def _head_metadata(self) -> dict[str, str]:
        return {
            "head": self.head_kind,
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "prompts": json.dumps(self.prompts, ensure_ascii=False),
        }


def _check_classes(labels: list[str] | None, prompts: list[str] | None) -> tuple[list[str], list[str]]:
    """Labels and prompts, one each per class."""
    labels = labels or prompts
    if not labels or len(labels) < 2:
        raise ConfigError(f"A classifier needs at least two labels, got {labels}; give `labels`.")
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


def _metrics(stage: str, classes: int) -> MetricCollection:
    accuracy = MulticlassAccuracy(num_classes=classes, average="micro")
    return MetricCollection({f"{stage}/acc": accuracy, f"{stage}/f1": MulticlassF1Score(num_classes=classes)})
