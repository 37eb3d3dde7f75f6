"""Vision transformers: timm's BEiT and distilled DeiT to transformers, transformers' DINOv2 to timm."""

import torch
from torch import Tensor, nn
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2Model,
)

from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.held_out_entries import fused, renamed, split
from tests.mapper.pairs.held_out_layers import Mlp, PatchEmbed, attend, relative_index
from tests.mapper.pairs.pair import Pair, Shapes

EPS = 1e-6


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend(*self.qkv(x).chunk(3, -1), self.heads))


class BeitAttention(nn.Module):
    """Attention without a bias of keys, with learned biases of offsets; the last three rows belong to the class."""

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("k_bias", torch.zeros(dim), persistent=False)
        self.v_bias = nn.Parameter(torch.zeros(dim))
        rows = (2 * side - 1) ** 2 + 3
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        index = nn.functional.pad(relative_index(side), (1, 0, 1, 0), value=rows - 2)
        index[0] = rows - 3
        index[0, 0] = rows - 1
        self.register_buffer("relative_position_index", index, persistent=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x) + torch.cat((self.q_bias, self.k_bias, self.v_bias))
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        return self.proj(attend(*qkv.chunk(3, -1), self.heads, bias))


class LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, scaled: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = Attention(dim, heads)
        self.ls1 = LayerScale(dim) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls2 = LayerScale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class BeitBlock(nn.Module):
    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = BeitAttention(dim, heads, side)
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = Mlp(dim, 4 * dim)
        self.gamma_1 = nn.Parameter(torch.ones(dim))
        self.gamma_2 = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class TimmBeit(nn.Module):
    def __init__(self, image: int, patch: int, dim: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(dim, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.Sequential(*(BeitBlock(dim, heads, image // patch) for _ in range(depth)))
        self.fc_norm = nn.LayerNorm(dim, EPS)
        self.head = nn.Linear(dim, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        x = self.blocks(torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1))
        return self.head(self.fc_norm(x[:, 1:].mean(1)))


class TimmViT(nn.Module):
    """The features of DINOv2 where ``classes`` is None, else distilled DeiT."""

    def __init__(self, image: int, patch: int, dim: int, depth: int, heads: int, classes: int | None) -> None:
        super().__init__()
        self.distilled = classes is not None
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1 + self.distilled, dim))
        if classes is not None:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = PatchEmbed(dim, patch)
        self.blocks = nn.Sequential(*(Block(dim, heads, scaled=not self.distilled) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, EPS)
        if classes is not None:
            self.head = nn.Linear(dim, classes)
            self.head_dist = nn.Linear(dim, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        tokens = [self.cls_token, self.dist_token] if self.distilled else [self.cls_token]
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in tokens), x], 1)
        x = self.norm(self.blocks(x + self.pos_embed))
        return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2 if self.distilled else x


def _config(config: type, tiny: bool, image: int, **values: object) -> object:
    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "num_labels": 7, "image_size": image}
    small |= {"intermediate_size": 96} if config is not Dinov2Config else {}
    made = config(layer_norm_eps=EPS, **values, **(small if tiny else {"num_labels": 1000}))
    made._attn_implementation = "eager"
    return made


def beit_target(tiny: bool) -> nn.Module:
    config = _config(BeitConfig, tiny, 48, use_relative_position_bias=True, use_mean_pooling=True)
    return BeitForImageClassification(config)


def deit_target(tiny: bool) -> nn.Module:
    return DeiTForImageClassificationWithTeacher(_config(DeiTConfig, tiny, 48))


def dino_source(tiny: bool) -> nn.Module:
    return Dinov2Model(_config(Dinov2Config, tiny, 42, **({} if tiny else {"image_size": 518})))


def _to_hf(root: str) -> list[tuple[str, str]]:
    return [
        (r"^blocks\.(\d+)\.attn\.proj", rf"{root}.layers.\1.attention.o_proj"),
        (r"^blocks\.(\d+)\.attn\.([qv])_bias", rf"{root}.layers.\1.attention.\2_proj.bias"),
        (r"^blocks\.(\d+)\.attn\.relative", rf"{root}.layers.\1.relative_position_bias.relative"),
        (r"^blocks\.(\d+)\.norm1", rf"{root}.layers.\1.layernorm_before"),
        (r"^blocks\.(\d+)\.norm2", rf"{root}.layers.\1.layernorm_after"),
        (r"^blocks\.(\d+)\.gamma_", rf"{root}.layers.\1.lambda_"),
        (r"^blocks\.(\d+)\.mlp", rf"{root}.layers.\1.mlp"),
        (r"^patch_embed\.proj", f"{root}.embeddings.patch_embeddings.projection"),
        (r"^cls_token", f"{root}.embeddings.cls_token"),
        (r"^dist_token", f"{root}.embeddings.distillation_token"),
        (r"^pos_embed", f"{root}.embeddings.position_embeddings"),
        (r"^norm\.", f"{root}.layernorm."),
        (r"^fc_norm", f"{root}.pooler.layernorm"),
        (r"^head_dist", "distillation_classifier"),
        (r"^head", "cls_classifier" if root == "deit" else "classifier"),
    ]


def _timm_truth(root: str, source: Shapes, target: Shapes) -> WeightMap:
    parts = [rf"{root}.layers.\1.attention.{name}_proj.\2" for name in "qkv"]
    qkv = split(source, target, r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", parts)
    return WeightMap((*renamed(source, target, _to_hf(root)), *qkv))


def beit_truth(source: Shapes, target: Shapes) -> WeightMap:
    return _timm_truth("beit", source, target)


def deit_truth(source: Shapes, target: Shapes) -> WeightMap:
    return _timm_truth("deit", source, target)


def dino_truth(source: Shapes, target: Shapes) -> WeightMap:
    rules = [
        (r"^encoder\.layer\.(\d+)\.attention\.o_proj", r"blocks.\1.attn.proj"),
        (r"^encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.gamma"),
        (r"^encoder\.layer\.", "blocks."),
        (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"^embeddings\.position_embeddings", "pos_embed"),
        (r"^embeddings\.cls_token", "cls_token"),
        (r"^layernorm", "norm"),
    ]
    parts = [rf"encoder.layer.\1.attention.{name}_proj.\2" for name in "qkv"]
    qkv = fused(source, target, r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", parts)
    return WeightMap((*renamed(source, target, rules), *qkv))


BEIT = Pair(
    "beit_b: timm to transformers",
    lambda tiny: TimmBeit(48, 16, 24, 2, 3, 7) if tiny else TimmBeit(224, 16, 768, 12, 12, 1000),
    beit_target,
    beit_truth,
    inputs=lambda: torch.randn(2, 3, 48, 48),
    output=lambda out: getattr(out, "logits", out),
)
DINOV2 = Pair(
    "dinov2_b: transformers to timm",
    dino_source,
    lambda tiny: TimmViT(42, 14, 24, 2, 3, None) if tiny else TimmViT(518, 14, 768, 12, 12, None),
    dino_truth,
    inputs=lambda: torch.randn(2, 3, 42, 42),
    output=lambda out: getattr(out, "last_hidden_state", out),
)
DEIT = Pair(
    "deit_b_distilled: timm to transformers",
    lambda tiny: TimmViT(48, 16, 24, 2, 3, 7) if tiny else TimmViT(224, 16, 768, 12, 12, 1000),
    deit_target,
    deit_truth,
    inputs=lambda: torch.randn(2, 3, 48, 48),
    output=lambda out: getattr(out, "logits", out),
)
