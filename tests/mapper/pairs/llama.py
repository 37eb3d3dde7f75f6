"""Llama in the layout of its authors and of torchtune: names, order and shapes of their tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import attend, heads_of, rotate_pairs
from .language import RMSNorm


@dataclass(frozen=True)
class LlamaSizes:
    """Sizes of a Llama."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    groups: int
    hidden: int
    base: float = 10000.0

    @property
    def small(self) -> int:
        """Rows of the keys and of the values."""
        return self.width // self.heads * self.groups


def _linear(inside: int, outside: int) -> nn.Linear:
    return nn.Linear(inside, outside, bias=False)


def _attend(q: Tensor, k: Tensor, v: Tensor, sizes: LlamaSizes) -> Tensor:
    q, k, v = heads_of(q, sizes.heads), heads_of(k, sizes.groups), heads_of(v, sizes.groups)
    return attend(rotate_pairs(q, sizes.base), rotate_pairs(k, sizes.base), v, causal=True)


class MetaAttention(nn.Module):
    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.wq = _linear(sizes.width, sizes.width)
        self.wk = _linear(sizes.width, sizes.small)
        self.wv = _linear(sizes.width, sizes.small)
        self.wo = _linear(sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(_attend(self.wq(x), self.wk(x), self.wv(x), self.sizes))


class FeedForward(nn.Module):
    """`w1` is the gate, `w2` the way down, `w3` the way up."""

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.w1 = _linear(sizes.width, sizes.hidden)
        self.w2 = _linear(sizes.hidden, sizes.width)
        self.w3 = _linear(sizes.width, sizes.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class MetaBlock(nn.Module):
    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.attention = MetaAttention(sizes)
        self.feed_forward = FeedForward(sizes)
        self.attention_norm = RMSNorm(sizes.width, 1e-5)
        self.ffn_norm = RMSNorm(sizes.width, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class MetaLlama(nn.Module):
    """Meta's own `Transformer`."""

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(MetaBlock(sizes) for _ in range(sizes.depth))
        self.norm = RMSNorm(sizes.width, 1e-5)
        self.output = _linear(sizes.width, sizes.vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


class ScaleNorm(nn.Module):
    """torchtune's `RMSNorm`, whose parameter is `scale`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.scale.shape, self.scale, 1e-5)


class TuneAttention(nn.Module):
    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.q_proj = _linear(sizes.width, sizes.width)
        self.k_proj = _linear(sizes.width, sizes.small)
        self.v_proj = _linear(sizes.width, sizes.small)
        self.output_proj = _linear(sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_proj(_attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.sizes))


class TuneBlock(nn.Module):
    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.attn = TuneAttention(sizes)
        self.mlp = FeedForward(sizes)
        self.sa_norm = ScaleNorm(sizes.width)
        self.mlp_norm = ScaleNorm(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.sa_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class TuneLlama(nn.Module):
    """torchtune's `TransformerDecoder` with the parts of Llama 3."""

    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(TuneBlock(sizes) for _ in range(sizes.depth))
        self.norm = ScaleNorm(sizes.width)
        self.output = _linear(sizes.width, sizes.vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))
