"""SegFormer-B0: the authors' checkpoint (a list per kind of layer, fused keys and values) to transformers."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.held_out_entries import renamed, split
from tests.mapper.pairs.held_out_layers import attend
from tests.mapper.pairs.pair import Pair, Shapes

HEADS = (1, 2, 5, 8)
RATIOS = (8, 4, 2, 1)


class OverlapPatchEmbed(nn.Module):
    def __init__(self, before: int, after: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(before, after, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(after)

    def forward(self, x: Tensor) -> Tensor:
        """Channels last."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads, self.ratio = heads, ratio
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if ratio > 1:
            self.sr = nn.Conv2d(dim, dim, ratio, ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        memory = x
        if self.ratio > 1:
            memory = self.norm(self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        key, value = self.kv(memory.flatten(1, 2)).chunk(2, -1)
        return self.proj(attend(self.q(x.flatten(1, 2)), key, value, self.heads)).view_as(x)


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(4 * dim, 4 * dim, 3, 1, 1, groups=4 * dim)})
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.dwconv["dwconv"](self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(functional.gelu(inner))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, ratio)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MixVisionTransformer(nn.Module):
    def __init__(self, dims: tuple[int, ...], depth: int, heads: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = len(dims)
        for i, (before, after) in enumerate(zip((3, *dims), dims, strict=False), 1):
            embed = OverlapPatchEmbed(before, after, 7 if i == 1 else 3, 4 if i == 1 else 2)
            self.add_module(f"patch_embed{i}", embed)
        for i, dim in enumerate(dims, 1):
            blocks = nn.ModuleList(Block(dim, heads[i - 1], RATIOS[i - 1]) for _ in range(depth))
            self.add_module(f"block{i}", blocks)
            self.add_module(f"norm{i}", nn.LayerNorm(dim))

    def forward(self, x: Tensor) -> list[Tensor]:
        made = []
        for i in range(1, self.stages + 1):
            tokens = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                tokens = block(tokens)
            x = getattr(self, f"norm{i}")(tokens).permute(0, 3, 1, 2)
            made.append(x)
        return made


class Projection(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.proj = nn.Linear(before, after)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Fusion(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 1, bias=False)
        self.bn = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


class SegFormerHead(nn.Module):
    """With the classifier of the base class, which nothing uses and every checkpoint holds."""

    def __init__(self, dims: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        self.levels = len(dims)
        self.conv_seg = nn.Conv2d(width, classes, 1)
        for i in reversed(range(len(dims))):
            self.add_module(f"linear_c{i + 1}", Projection(dims[i], width))
        self.linear_fuse = Fusion(len(dims) * width, width)
        self.linear_pred = nn.Conv2d(width, classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[2:]
        maps = [getattr(self, f"linear_c{i + 1}")(features[i]) for i in reversed(range(self.levels))]
        maps = [functional.interpolate(each, size=size, mode="bilinear", align_corners=False) for each in maps]
        return self.linear_pred(self.linear_fuse(torch.cat(maps, 1)))


class SegFormer(nn.Module):
    def __init__(self, dims: tuple[int, ...], depth: int, heads: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        self.backbone = MixVisionTransformer(dims, depth, heads)
        self.decode_head = SegFormerHead(dims, width, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.decode_head(self.backbone(image))


def source(tiny: bool) -> nn.Module:
    if tiny:
        return SegFormer((8, 16, 40, 64), 1, HEADS, 28, 7)
    return SegFormer((32, 64, 160, 256), 2, HEADS, 256, 150)


def target(tiny: bool) -> nn.Module:
    small = {"hidden_sizes": [8, 16, 40, 64], "depths": [1] * 4, "decoder_hidden_size": 28, "num_labels": 7}
    config = SegformerConfig(**(small if tiny else {"num_labels": 150}))
    config._attn_implementation = "eager"
    return SegformerForSemanticSegmentation(config)


def truth(source: Shapes, target: Shapes) -> WeightMap:
    roles = {r"attn\.proj": "attention.o_proj", r"attn\.q": "attention.q_proj"}
    roles |= {r"attn\.sr": "attention.sequence_reduction.sequence_reduction"}
    roles |= {r"attn\.norm": "attention.sequence_reduction.layer_norm"}
    roles |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    stage = "segformer.stages"
    rules = [
        *((rf"^backbone\.block{i + 1}\.(\d+)\.", rf"{stage}.{i}.blocks.\1.") for i in range(4)),
        *((rf"^(segformer.*blocks\.\d+)\.{old}\.", rf"\1.{new}.") for old, new in roles.items()),
        *((rf"^backbone\.patch_embed{i + 1}\.proj", f"{stage}.{i}.patch_embeddings.proj") for i in range(4)),
        *((rf"^backbone\.patch_embed{i + 1}\.norm", f"{stage}.{i}.patch_embeddings.layer_norm") for i in range(4)),
        *((rf"^backbone\.norm{i + 1}\.", f"{stage}.{i}.layer_norm.") for i in range(4)),
        *((rf"^decode_head\.linear_c{i + 1}\.", f"decode_head.linear_projections.{i}.") for i in range(4)),
        (r"linear_fuse\.conv\.", "linear_fuse."),
        (r"linear_fuse\.bn\.", "batch_norm."),
        (r"linear_pred", "classifier"),
    ]
    made = renamed(source, target, rules)
    for i in range(4):
        parts = [rf"{stage}.{i}.blocks.\1.attention.{name}_proj.\2" for name in "kv"]
        made += split(source, target, rf"backbone\.block{i + 1}\.(\d+)\.attn\.kv\.(weight|bias)", parts)
    return WeightMap(tuple(made))


SEGFORMER = Pair(
    "segformer_b0: nvlabs to transformers",
    source,
    target,
    truth,
    inputs=lambda: torch.randn(2, 3, 64, 64),
    output=lambda out: getattr(out, "logits", out),
)
