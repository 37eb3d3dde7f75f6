"""Encoders: BERT under other names, BERT on `torch.nn.TransformerEncoder`, CLIP in the layout of open_clip."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import attend, heads_of


@dataclass(frozen=True)
class EncoderSizes:
    """Sizes of a BERT."""

    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int
    hidden: int


class SelfAttention(nn.Module):
    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.wq = nn.Linear(sizes.width, sizes.width)
        self.wk = nn.Linear(sizes.width, sizes.width)
        self.wv = nn.Linear(sizes.width, sizes.width)
        self.wo = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_of(made(x), self.heads) for made in (self.wq, self.wk, self.wv))
        return self.wo(attend(q, k, v, causal=False))


class RenamedBlock(nn.Module):
    """The norms are registered first, the feed-forward layer before the attention."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(sizes.width, eps=1e-12)
        self.ffn_norm = nn.LayerNorm(sizes.width, eps=1e-12)
        self.ffn_up = nn.Linear(sizes.width, sizes.hidden)
        self.ffn_down = nn.Linear(sizes.hidden, sizes.width)
        self.self_attn = SelfAttention(sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn_norm(x + self.self_attn(x))
        return self.ffn_norm(x + self.ffn_down(functional.gelu(self.ffn_up(x))))


class RenamedBert(nn.Module):
    """A BERT for classification with names of its own, its head registered first."""

    def __init__(self, sizes: EncoderSizes, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(sizes.width, classes)
        self.pool = nn.Linear(sizes.width, sizes.width)
        self.blocks = nn.ModuleList(RenamedBlock(sizes) for _ in range(sizes.depth))
        self.embed_norm = nn.LayerNorm(sizes.width, eps=1e-12)
        self.segment_embed = nn.Embedding(2, sizes.width)
        self.pos_embed = nn.Embedding(sizes.context, sizes.width)
        self.tok_embed = nn.Embedding(sizes.vocabulary, sizes.width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_embed(ids) + self.pos_embed.weight[: ids.shape[1]] + self.segment_embed.weight[0]
        x = self.embed_norm(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(x[:, 0]).tanh())


class TorchBert(nn.Module):
    """A BERT whose layers are torch's own, with query, key and value in `in_proj_weight`."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position_embedding = nn.Embedding(sizes.context, sizes.width)
        self.type_embedding = nn.Embedding(2, sizes.width)
        self.embedding_norm = nn.LayerNorm(sizes.width, eps=1e-12)
        layer = nn.TransformerEncoderLayer(
            sizes.width, sizes.heads, sizes.hidden, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, sizes.depth, enable_nested_tensor=False)
        self.pooler = nn.Linear(sizes.width, sizes.width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]] + self.type_embedding.weight[0]
        x = self.encoder(self.embedding_norm(x))
        return torch.cat((x, self.pooler(x[:, :1]).tanh()), dim=1)


@dataclass(frozen=True)
class TowerSizes:
    """Sizes of one of CLIP's transformers."""

    width: int
    depth: int
    heads: int
    hidden: int


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()


class ResidualBlock(nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(sizes.width)
        self.attn = nn.MultiheadAttention(sizes.width, sizes.heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(sizes.width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(sizes.width, sizes.hidden))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(sizes.hidden, sizes.width))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(sizes) for _ in range(sizes.depth))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, sizes: TowerSizes, image: int, patch: int, joint: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(sizes.width))
        self.positional_embedding = nn.Parameter(torch.zeros((image // patch) ** 2 + 1, sizes.width))
        self.proj = nn.Parameter(torch.zeros(sizes.width, joint))
        self.conv1 = nn.Conv2d(3, sizes.width, patch, stride=patch, bias=False)
        self.ln_pre = nn.LayerNorm(sizes.width)
        self.transformer = Tower(sizes)
        self.ln_post = nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_embedding.expand(len(x), 1, -1), x), dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """open_clip's `CLIP`; gives image and text features and the scale between them."""

    def __init__(
        self, vision: TowerSizes, text: TowerSizes, *, image: int, patch: int, vocabulary: int, context: int, joint: int
    ) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(context, text.width))
        self.text_projection = nn.Parameter(torch.zeros(text.width, joint))
        self.logit_scale = nn.Parameter(torch.ones([]) * math.log(1 / 0.07))
        self.visual = Visual(vision, image, patch, joint)
        self.transformer = Tower(text)
        self.token_embedding = nn.Embedding(vocabulary, text.width)
        self.ln_final = nn.LayerNorm(text.width)
        self.register_buffer("attn_mask", torch.full((context, context), float("-inf")).triu(1), persistent=False)

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        length = ids.shape[1]
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, self.attn_mask[:length, :length]))
        text = x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection
        image = functional.normalize(self.visual(images), dim=-1)
        return image, functional.normalize(text, dim=-1), self.logit_scale.exp()
