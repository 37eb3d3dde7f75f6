"""Layers that several held-out models share."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attention of ``heads`` heads over ``(batch, length, width)``; ``bias`` is added to the scores."""
    q, k, v = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def causal(length: int) -> Tensor:
    """Bias that hides what comes later."""
    return torch.full((length, length), -torch.inf).triu(1)


def relative_index(side: int) -> Tensor:
    """Index of every pair of positions of a square window into a table of offsets."""
    ij = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
    offset = ij[:, :, None] - ij[:, None, :] + side - 1
    return offset[0] * (2 * side - 1) + offset[1]


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class PatchEmbed(nn.Module):
    """Non-overlapping patches as a sequence; with ``norm`` normalised."""

    def __init__(self, width: int, patch: int, norm: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.proj(image).flatten(2).mT)
