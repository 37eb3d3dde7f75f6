"""A task as evaluation sees it: data, the metric that counts, and which way is better."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_wsl.training.text import TextClassificationData

Metric = Literal["accuracy", "macro_f1"]


@dataclass(frozen=True)
class Task:
    """Labelled data with a primary metric.

    The head is the same for every backbone, so that a difference in score is a difference of backbones: built
    from the data's class prompts under the base encoder, or read from a file.
    """

    name: str
    data: TextClassificationData
    metric: Metric = "accuracy"
    head: Path | None = None
    """A ``head.safetensors`` to score with, for instance a trained linear head; default the prompt head."""
