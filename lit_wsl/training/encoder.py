"""Sentence embeddings and the heads that classify them: pure pieces, free of any trainer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_wsl.errors import CheckpointError
from lit_wsl.state.safetensors import SafetensorsFile

PROMPT_SCALE = 20.0


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of the hidden states over the tokens that are no padding.

    Args:
        hidden: Shape ``(b, s, d)``.
        attention_mask: One for tokens, zero for padding, shape ``(b, s)``.

    Returns:
        Shape ``(b, d)``, zero for a row without tokens.
    """
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def embed(encoder: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Unit-length sentence embeddings: masked mean of the last hidden states, L2-normalised.

    Args:
        encoder: A transformers encoder; its output has ``last_hidden_state``.
        batch: ``input_ids`` and ``attention_mask``, shape ``(b, s)``; other entries are ignored.

    Returns:
        Shape ``(b, d)``.
    """
    output = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return F.normalize(mean_pool(output.last_hidden_state, batch["attention_mask"]), dim=-1)


@torch.no_grad()
def class_prototypes(encoder: nn.Module, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Embeddings of the class prompts, one row per class, without dropout.

    Args:
        encoder: A transformers encoder.
        tokenizer: Its tokenizer.
        prompts: One prompt per class.

    Returns:
        Shape ``(classes, d)``.
    """
    batch = tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
    device = next(encoder.parameters()).device
    training = encoder.training
    encoder.eval()
    try:
        return embed(encoder, {name: tensor.to(device) for name, tensor in batch.items()})
    finally:
        encoder.train(training)


class PromptHead(nn.Module):
    """Scores a class by the cosine between a text and the class's prompt, times a fixed scale.

    Args:
        prototypes: Embeddings of the class prompts, shape ``(classes, d)``; frozen.
        scale: Factor on the cosine.

    Reference:
        CLIP, https://arxiv.org/abs/2103.00020, section 3.1.4.
    """

    prototypes: Tensor

    def __init__(self, prototypes: Tensor, scale: float = PROMPT_SCALE) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("prototypes", prototypes.detach().clone())

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits of shape ``(b, classes)`` from embeddings of shape ``(b, d)``."""
        return self.scale * F.normalize(embeddings, dim=-1) @ F.normalize(self.prototypes, dim=-1).T


def load_head(path: Path) -> nn.Module:
    """The head that a ``head.safetensors`` holds, prompt or linear.

    Raises:
        CheckpointError: If the file is damaged or holds no head of ours.
    """
    file = SafetensorsFile(path)
    shapes = {name: info.shape for name, info in file.infos.items()}
    if shapes.keys() == {"prototypes"} and len(shapes["prototypes"]) == 2:
        return PromptHead(file.read("prototypes"))
    if shapes.keys() == {"weight", "bias"} and shapes["weight"][:1] == shapes["bias"] and len(shapes["weight"]) == 2:
        classes, width = shapes["weight"]
        head = nn.Linear(width, classes)
        head.load_state_dict({name: file.read(name) for name in shapes})
        return head
    raise CheckpointError(
        f"{path} holds no head; expected `prototypes` (classes, d), or `weight` (classes, d) and `bias` (classes,), "
        f"got {', '.join(f'{name} {shape}' for name, shape in sorted(shapes.items())) or 'nothing'}."
    )
