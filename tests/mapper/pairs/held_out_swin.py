"""Swin Transformer: timm's layout, merging at the start of a stage, to transformers', at the end of the one before."""

import torch
from torch import Tensor, nn
from transformers import SwinConfig, SwinForImageClassification

from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.held_out_entries import renamed, split
from tests.mapper.pairs.held_out_layers import Mlp, PatchEmbed, attend, relative_index
from tests.mapper.pairs.pair import Pair, Shapes


class WindowAttention(nn.Module):
    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.register_buffer("relative_position_index", relative_index(window), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(len(x) // len(mask), 1, 1, 1)
        return self.proj(attend(*self.qkv(x).chunk(3, -1), self.heads, bias))


def windows(x: Tensor, size: int) -> Tensor:
    """``(batch * windows, size * size, width)`` from ``(batch, height, width, channels)``."""
    return x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3).flatten(3, 4).flatten(0, 2)


def unwindows(x: Tensor, size: int, side: int) -> Tensor:
    many = side // size
    return x.unflatten(1, (size, size)).unflatten(0, (-1, many, many)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def _mask(self, side: int) -> Tensor | None:
        if not self.shift:
            return None
        at = torch.arange(side)
        region = (at >= side - self.window).long() + (at >= side - self.shift).long()
        regions = windows((region[:, None] * 3 + region).view(1, side, side, 1), self.window).squeeze(-1)
        return torch.where(regions[:, None] == regions[:, :, None], 0.0, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        side = x.shape[1]
        rolled = self.norm1(x).roll((-self.shift, -self.shift), (1, 2))
        mixed = self.attn(windows(rolled, self.window), self._mask(side))
        x = x + unwindows(mixed, self.window, side).roll((self.shift, self.shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, window: int, side: int, merge: bool) -> None:
        super().__init__()
        self.downsample = PatchMerging(dim // 2) if merge else nn.Identity()
        shift = window // 2 if side > window else 0
        self.blocks = nn.Sequential(*(Block(dim, heads, window, shift * (i % 2)) for i in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class TimmSwin(nn.Module):
    def __init__(
        self, image: int, width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, classes: int
    ) -> None:
        super().__init__()
        self.side = image // 4
        self.patch_embed = PatchEmbed(width, 4, norm=True)
        self.layers = nn.Sequential(
            *(Stage(width << i, depth, heads[i], window, self.side >> i, merge=i > 0) for i, depth in enumerate(depths))
        )
        last = width << len(depths) - 1
        self.norm = nn.LayerNorm(last)
        self.head = nn.ModuleDict({"fc": nn.Linear(last, classes)})

    def forward(self, image: Tensor) -> Tensor:
        x = self.layers(self.patch_embed(image).unflatten(1, (self.side, self.side)))
        return self.head["fc"](self.norm(x).mean((1, 2)))


def source(tiny: bool) -> nn.Module:
    if tiny:
        return TimmSwin(32, 24, (2, 2), (2, 4), 4, 7)
    return TimmSwin(224, 96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 1000)


def target(tiny: bool) -> nn.Module:
    small = {"image_size": 32, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    config = SwinConfig(num_labels=7 if tiny else 1000, **(small if tiny else {}))
    config._attn_implementation = "eager"
    return SwinForImageClassification(config)


def truth(source: Shapes, target: Shapes) -> WeightMap:
    block, new = r"layers\.(\d+)\.blocks\.(\d+)", r"swin.encoder.layers.\1.blocks.\2"
    rules = [
        (
            rf"^{block}\.attn\.relative_position_bias_table",
            rf"{new}.attention.relative_position_bias.relative_position_bias_table",
        ),
        (rf"^{block}\.attn\.proj", rf"{new}.attention.o_proj"),
        (rf"^{block}\.norm1", rf"{new}.layernorm_before"),
        (rf"^{block}\.norm2", rf"{new}.layernorm_after"),
        (rf"^{block}\.mlp", rf"{new}.mlp"),
        (r"^norm\.", "swin.layernorm."),
        (r"^patch_embed\.proj", "swin.embeddings.patch_embeddings.projection"),
        (r"^patch_embed\.norm", "swin.embeddings.norm"),
        (r"^head\.fc", "classifier"),
        *((rf"^layers\.{i}\.downsample", f"swin.encoder.layers.{i - 1}.downsample") for i in range(1, 4)),
    ]
    parts = [rf"{new}.attention.{name}_proj.\3" for name in "qkv"]
    qkv = split(source, target, rf"{block}\.attn\.qkv\.(weight|bias)", parts)
    return WeightMap((*renamed(source, target, rules), *qkv))


SWIN = Pair(
    "swin_t: timm to transformers",
    source,
    target,
    truth,
    inputs=lambda: torch.randn(2, 3, 32, 32),
    output=lambda out: getattr(out, "logits", out),
)
