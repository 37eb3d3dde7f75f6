"""MLP-Mixer: timm to the names of the Flax original, exported in their sorted order, with kernels (..., in, out)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.held_out_entries import renamed
from tests.mapper.pairs.held_out_layers import Mlp as TimmMlp
from tests.mapper.pairs.held_out_layers import PatchEmbed
from tests.mapper.pairs.pair import Pair, Shapes

EPS = 1e-6
MIXER, MIXER_TINY = (224, 16, 768, 384, 3072, 12, 1000), (48, 12, 24, 20, 72, 2, 7)


class TimmBlock(nn.Module):
    def __init__(self, length: int, width: int, tokens: int, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.mlp_tokens = TimmMlp(length, tokens)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.mlp_channels = TimmMlp(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).mT).mT
        return x + self.mlp_channels(self.norm2(x))


class TimmMixer(nn.Module):
    def __init__(
        self, image: int, patch: int, width: int, tokens: int, channels: int, depth: int, classes: int
    ) -> None:
        super().__init__()
        length = (image // patch) ** 2
        self.stem = PatchEmbed(width, patch)
        self.blocks = nn.Sequential(*(TimmBlock(length, width, tokens, channels) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, EPS)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(image))).mean(1))


class Dense(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(after))
        self.kernel = nn.Parameter(torch.zeros(before, after))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel + self.bias


class Stem(nn.Module):
    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))
        self.kernel = nn.Parameter(torch.zeros(patch, patch, 3, width))

    def forward(self, image: Tensor) -> Tensor:
        weight = self.kernel.permute(3, 2, 0, 1)
        return functional.conv2d(image, weight, self.bias, stride=weight.shape[-1]).flatten(2).mT


class LayerNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.scale, self.bias, EPS)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.Dense_0 = Dense(width, hidden)
        self.Dense_1 = Dense(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.Dense_1(functional.gelu(self.Dense_0(x)))


class MixerBlock(nn.Module):
    def __init__(self, length: int, width: int, tokens: int, channels: int) -> None:
        super().__init__()
        self.LayerNorm_0 = LayerNorm(width)
        self.LayerNorm_1 = LayerNorm(width)
        self.channel_mixing = Mlp(width, channels)
        self.token_mixing = Mlp(length, tokens)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixing(self.LayerNorm_0(x).mT).mT
        return x + self.channel_mixing(self.LayerNorm_1(x))


class FlaxMixer(nn.Module):
    """Twelve blocks are exported as 0, 1, 10, 11, 2, …: names sort as text."""

    def __init__(
        self, image: int, patch: int, width: int, tokens: int, channels: int, depth: int, classes: int
    ) -> None:
        super().__init__()
        self.depth = depth
        length = (image // patch) ** 2
        blocks = {f"MixerBlock_{i}": MixerBlock(length, width, tokens, channels) for i in range(depth)}
        named = {"head": Dense(width, classes), "pre_head_layer_norm": LayerNorm(width), "stem": Stem(patch, width)}
        for name, module in sorted((named | blocks).items()):
            self.add_module(name, module)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for i in range(self.depth):
            x = getattr(self, f"MixerBlock_{i}")(x)
        return self.head(self.pre_head_layer_norm(x).mean(1))


def truth(source: Shapes, target: Shapes) -> WeightMap:
    rules = [
        (r"^blocks\.(\d+)\.norm1\.", r"MixerBlock_\1.LayerNorm_0."),
        (r"^blocks\.(\d+)\.norm2\.", r"MixerBlock_\1.LayerNorm_1."),
        (r"^blocks\.(\d+)\.mlp_(token|channel)s\.", r"MixerBlock_\1.\2_mixing."),
        (r"_mixing\.fc1\.", "_mixing.Dense_0."),
        (r"_mixing\.fc2\.", "_mixing.Dense_1."),
        (r"^norm\.", "pre_head_layer_norm."),
        (r"^stem\.proj\.", "stem."),
        (r"(LayerNorm_\d|layer_norm)\.weight", r"\1.scale"),
        (r"\.weight$", ".kernel"),
    ]
    return WeightMap(tuple(renamed(source, target, rules, transposed=r"\.kernel$")))


MLP_MIXER = Pair(
    "mixer_b16: timm to flax",
    lambda tiny: TimmMixer(*(MIXER_TINY if tiny else MIXER)),
    lambda tiny: FlaxMixer(*(MIXER_TINY if tiny else MIXER)),
    truth,
    inputs=lambda: torch.randn(2, 3, 48, 48),
)
