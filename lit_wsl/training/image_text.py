"""An image-text model that learns to answer, trained whole, in part or through LoRA."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from transformers import LlavaOnevisionConfig
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from lit_wsl.models.freezing import freeze as freeze_named
from lit_wsl.models.freezing import freeze_unreached
from lit_wsl.models.image_text import (
    Variant,
    check_variant,
    keep_source,
    load_image_text,
    make_image_text,
    read_image_text_config,
)
from lit_wsl.models.lora import LoraSpec
from lit_wsl.state.locate import model_dir
from lit_wsl.training.llava.answers import answer_loss, answer_positions, score_answers
from lit_wsl.training.llava.collate import Batch
from lit_wsl.training.llava.images import PROCESSOR_FILES
from lit_wsl.training.module import MeasuredModule, adamw

_VISION_TOWER = "vision_tower"
_INPUTS = ("input_ids", "attention_mask", "pixel_values", "image_sizes", "batch_num_images")


class ImageTextModule(MeasuredModule):
    """A LLaVA-OneVision, with or without modality layers, under cross-entropy averaged over the tokens of answers.

    Whatever gets no gradient is frozen, so that training in parallel needs no search for unused parameters. It measures
    ``loss``, ``token_accuracy`` and ``exact_match``, the share of answers whose tokens are all the likeliest.

    Args:
        model: A directory with weights, ``package:NAME/dir``, or a hub id; or a transformers configuration of
            ``model_type`` llava_onevision or llava_onevision_alternating, as the path of a ``.json`` file or as a
            mapping, which gives random weights from the seed.
        variant: The attention that the model must have; ``auto`` takes any.
        force: Train a model of another variant with a warning.
        lora: Adapters to train; without it everything trains that is not frozen.
        init_adapter: Directory of an adapter to start from, or to test; its layers, ranks and scales are taken over,
            or must be those of ``lora`` if that is given.
        freeze: Weights that do not train: parts of a dotted name such as ``language_model.layers.0``, or patterns with
            ``*``. By default the vision tower, if its weights were loaded; nothing if they are random, or with
            ``lora``.
        attn_implementation: ``eager``, ``sdpa`` or ``flex_attention``; by default transformers' choice.
        optimizer: Makes the optimizer from the trainable parameters.
        lr_scheduler: Makes a schedule from the optimizer, stepped every epoch.
    """

    backbone_name = "model"

    def __init__(
        self,
        model: str | dict[str, Any],
        variant: Variant = "auto",
        lora: LoraSpec | None = None,
        init_adapter: Path | None = None,
        freeze: list[str] | None = None,
        attn_implementation: str | None = None,
        *,
        force: bool = False,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        source = keep_source(model)
        check_variant(read_image_text_config(source), variant, force=force, source=source)
        super().__init__(source if isinstance(source, str) else None, lora, optimizer, lr_scheduler)
        self.save_hyperparameters(
            {
                "model": source,
                "variant": variant,
                "lora": asdict(self.lora) if self.lora else None,
                "freeze": freeze,
                "attn_implementation": attn_implementation,
                "force": force,
            }
        )
        build: Any = load_image_text if isinstance(source, str) else make_image_text
        self.model: Any = build(source, attn_implementation)
        self._adapt(init_adapter)
        if freeze is None:
            freeze = [_VISION_TOWER] if isinstance(source, str) and self.lora is None else []
        freeze_named(self.model, freeze)
        freeze_unreached(self.model)
        self.model.train()  # transformers loads in evaluation mode, which Lightning would keep
        self.metrics = self._metrics_by_stage()

    def forward(self, batch: Batch, positions: Tensor | None = None) -> Tensor:
        """Logits of the next token, of shape ``(b, s, vocabulary)``, or ``(b, k, vocabulary)`` at ``positions``."""
        inputs = {name: batch[name] for name in _INPUTS if name in batch}
        output = self.model(**inputs, use_cache=False, logits_to_keep=0 if positions is None else positions)
        logits: Tensor = output.logits
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the tokens of answers."""
        positions = answer_positions(batch["labels"])
        loss = answer_loss(self(batch, positions), batch["labels"], positions)
        if "pixel_values" not in batch and self._learns_to_see():
            loss = loss + self._no_image()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["labels"]))
        return loss

    def _learns_to_see(self) -> bool:
        """Whether anything trains that only images reach."""
        inner = self.model.model
        parts = (*inner.vision_tower.parameters(), *inner.multi_modal_projector.parameters(), inner.image_newline)
        return any(parameter.requires_grad for parameter in parts)

    def _no_image(self) -> Tensor:
        """Zero, with a zero gradient for all that sees images: a process without one must not keep others waiting."""
        config: LlavaOnevisionConfig = self.model.config
        vision: Any = config.vision_config
        side = vision.image_size
        patches = image_size_to_num_patches([side, side], config.image_grid_pinpoints, side)
        blank = torch.zeros(1, patches, vision.num_channels, side, side, device=self.device)
        features = self.model.get_image_features(blank, torch.tensor([[side, side]])).pooler_output
        return torch.cat(list(features)).sum() * 0

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The likeliest token after each token, shape ``(b, s)``."""
        return self(batch).argmax(dim=-1)

    def _make_metrics(self) -> dict[str, Metric]:
        return {name: MeanMetric() for name in ("loss", "token_accuracy", "exact_match")}

    def _update(self, metrics: Any, batch: Batch) -> None:
        labels = batch["labels"]
        positions = answer_positions(labels)
        logits = self(batch, positions)
        answers = score_answers(logits, labels, positions)
        metrics["loss"].update(answer_loss(logits, labels, positions), answers.right_tokens.numel())
        metrics["token_accuracy"].update(answers.right_tokens.float())
        metrics["exact_match"].update(answers.right_answers.float())

    def _save_tokenizer(self, directory: Path) -> None:
        """Write the base's tokenizer, and how it prepares images."""
        super()._save_tokenizer(directory)
        base = None if self.base_model is None else model_dir(self.base_model)
        for name in PROCESSOR_FILES:
            if base is not None and (base / name).is_file():
                shutil.copyfile(base / name, directory / name)
