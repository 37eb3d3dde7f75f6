"""Rows of tokens and images, padded to a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from lit_wsl.tensors.objectives import IGNORED

Batch = dict[str, Tensor]
"""``input_ids``, ``attention_mask`` and ``labels``, shape ``(b, s)``, padded on the right; ``batch_num_images``, shape
``(b,)``; and, where there are images, ``pixel_values``, shape ``(n, patches, channels, h, w)``, and ``image_sizes``,
shape ``(n, 2)``."""


@dataclass(frozen=True)
class Example:
    """One row: ids and labels of length ``s``, and its ``n`` images."""

    input_ids: list[int]
    labels: list[int]
    pixel_values: Tensor | None = None
    image_sizes: Tensor | None = None


def collate(examples: Sequence[Example], padding: int = 0) -> Batch:
    """Pad tokens to the longest row, and images to the most patches.

    Args:
        examples: At least one.
        padding: Token id of padding.
    """
    ids, labels = ([torch.tensor(row) for row in rows] for rows in zip(*map(_tokens, examples), strict=True))
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=padding),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        "batch_num_images": torch.tensor([0 if e.image_sizes is None else len(e.image_sizes) for e in examples]),
    }
    pixels = [example.pixel_values for example in examples if example.pixel_values is not None]
    if pixels:
        most = max(images.shape[1] for images in pixels)
        filled = [pad(images, (0, 0, 0, 0, 0, 0, 0, most - images.shape[1])) for images in pixels]
        batch["pixel_values"] = torch.cat(filled)
        batch["image_sizes"] = torch.cat([e.image_sizes for e in examples if e.image_sizes is not None])
    return batch


def _tokens(example: Example) -> tuple[list[int], list[int]]:
    return example.input_ids, example.labels
