"""A task as evaluation sees it: data, the metric that counts, and which way is better."""

from dataclasses import dataclass
from typing import Literal

from lit_wsl.training.text import TextClassificationData

Metric = Literal["accuracy", "macro_f1"]


@dataclass(frozen=True)
class Task:
    """Labelled data with a primary metric.

    The head is built from the data's class prompts under the base encoder, the same for every backbone, so
    that a difference in score is a difference of backbones.
    """

    name: str
    data: TextClassificationData
    metric: Metric = "accuracy"
    higher_is_better: bool = True
