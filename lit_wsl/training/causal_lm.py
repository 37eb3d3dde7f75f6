"""A language model that predicts the next token, trained whole or through LoRA."""

import copy
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.text import Perplexity

from lit_wsl.errors import ConfigError, DataError
from lit_wsl.models.language import load_causal_lm, make_causal_lm, read_model_config, untie_embeddings
from lit_wsl.models.lora import LoraSpec
from lit_wsl.state.adapters import read_adapter_config
from lit_wsl.tensors.objectives import IGNORED
from lit_wsl.training.module import MeasuredModule, adamw
from lit_wsl.training.token_loss import token_loss

Batch = dict[str, Tensor]
"""``input_ids``, ``labels`` and, where there is padding, ``attention_mask``, shape ``(b, s)``."""

_POSITION_TABLE = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings)$")
"""Names of learned or stored positions in transformers' models."""


class CausalLMModule(MeasuredModule):
    """A transformers language model under next-token cross-entropy, averaged over the predicted tokens.

    It measures ``loss`` and ``perplexity``.

    Args:
        model: A directory with weights, ``package:NAME/dir``, or a hub id; or a transformers configuration, as the
            path of a ``.json`` file or as a mapping with ``model_type``, which gives random weights from the seed.
            Without it the base that ``init_adapter`` names.
        lora: Adapters to train; without it the whole model trains.
        init_adapter: Directory of an adapter to start from, or to test, such as one that ``lit-wsl compare``
            extracted; its layers, ranks and scales are taken over, or must be those of ``lora`` if that is given.
        untie_embeddings: Give the output embedding a weight of its own where it shares that of the input.
        optimizer: Makes the optimizer from the trainable parameters.
        lr_scheduler: Makes a schedule from the optimizer, stepped every epoch.
    """

    backbone_name = "model"

    def __init__(
        self,
        model: str | dict[str, Any] | None = None,
        lora: LoraSpec | None = None,
        init_adapter: Path | None = None,
        *,
        untie_embeddings: bool = False,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        source = _source(model if model is not None else _base_of(init_adapter))
        super().__init__(source if isinstance(source, str) else None, lora, optimizer, lr_scheduler)
        self.save_hyperparameters(
            {
                "model": source,
                "lora": asdict(self.lora) if self.lora else None,
                "untie_embeddings": untie_embeddings,
            }
        )
        self.model = _build(source, untie=untie_embeddings)
        self._adapt(init_adapter)
        self.model.train()  # transformers loads in evaluation mode, which Lightning would keep
        self.metrics = self._metrics_by_stage()

    def setup(self, stage: str) -> None:
        """Refuse data beyond the vocabulary or the positions of the model, before any step.

        Raises:
            DataError: If the data module's ``largest_id`` has no embedding, or its ``block_size`` exceeds the table
                of positions. Positions that are computed, such as rotary ones, have no end.
        """
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        length, positions = getattr(data, "block_size", None), _positions(self.model)
        if length is not None and positions is not None and length > positions:
            raise DataError(
                f"The data has blocks of {length} tokens, the model {positions} positions; "
                f"set `block_size` to at most {positions}."
            )
        largest = getattr(data, "largest_id", None)
        vocabulary = self.model.config.get_text_config().vocab_size
        if largest is not None and largest >= vocabulary:
            raise DataError(
                f"The data has token id {largest}, the model a vocabulary of {vocabulary}; "
                "give the data the tokenizer of the model."
            )

    def forward(self, batch: Batch) -> Tensor:
        """Logits of shape ``(b, s, vocabulary)``."""
        output = self.model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), use_cache=False)
        logits: Tensor = output.logits
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the predicted tokens."""
        loss, _ = next_token_loss(self(batch), batch["labels"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["labels"]))
        return loss

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logits of shape ``(b, s, vocabulary)``."""
        logits: Tensor = self(batch)
        return logits

    def _make_metrics(self) -> dict[str, Metric]:
        return {"loss": MeanMetric(), "perplexity": Perplexity(ignore_index=IGNORED)}

    def _update(self, metrics: Any, batch: Batch) -> None:
        logits, labels = self(batch), batch["labels"]
        metrics["loss"].update(*next_token_loss(logits, labels))
        metrics["perplexity"].update(logits[:, :-1].float(), labels[:, 1:])


def next_token_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of every position's prediction of the next label, and the number of those labels.

    Args:
        logits: Shape ``(b, s, vocabulary)``.
        labels: Shape ``(b, s)``; -100 is not predicted.

    Returns:
        The mean in float32, zero if nothing is predicted, and the count.
    """
    return token_loss(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def _build(source: str | dict[str, Any], *, untie: bool) -> Any:
    model = load_causal_lm(source) if isinstance(source, str) else make_causal_lm(source)
    if untie:
        untie_embeddings(model)
    return model


def _positions(model: Any) -> int | None:
    """Length of the model's table of positions; None where they are computed."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    modules = (name for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    tables = (*modules, *(name for name, _ in model.named_buffers()))
    return positions if any(_POSITION_TABLE.search(name) for name in tables) else None


def _base_of(adapter: Path | None) -> str:
    """Where an adapter says that its base is."""
    if adapter is None:
        raise ConfigError("No model: give `model`, or `init_adapter` with an adapter that names its base.")
    base = read_adapter_config(Path(adapter)).base_model_name_or_path
    if not base:
        raise ConfigError(f"{adapter} does not say which model is its base; give that as `model`.")
    return base


def _source(model: str | dict[str, Any]) -> str | dict[str, Any]:
    """Where the weights are, or the configuration itself, so that a checkpoint needs no file beside it."""
    if isinstance(model, str):
        return read_model_config(Path(model)) if model.endswith(".json") else model
    return copy.deepcopy(model)
