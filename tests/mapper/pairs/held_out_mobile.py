"""MobileNetV2 and EfficientNet-B0: timm's stages of blocks to transformers' flat list of blocks."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    EfficientNetConfig,
    EfficientNetForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
)

from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.held_out_entries import renamed
from tests.mapper.pairs.pair import Pair, Shapes

STAGE = tuple[int, int, int, int, int]
"""Expansion, width, repeats, stride and kernel of a stage."""


@dataclass(frozen=True)
class Net:
    stages: tuple[STAGE, ...]
    stem: int
    head: int
    classes: int
    eps: float
    excites: bool
    """Squeeze and excitation, and padding to the bottom right as in TensorFlow."""
    activation: Callable[[Tensor], Tensor]


class Conv(nn.Conv2d):
    """A convolution that keeps the size, up to its stride."""

    def __init__(self, net: Net, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride, groups=groups, bias=False)
        total = kernel - stride if net.excites else 2 * (kernel // 2)
        self.around = (total // 2, total - total // 2) * 2 if kernel > 1 else (0, 0, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, self.around))


class Excite(nn.Module):
    def __init__(self, width: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(width, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_expand(functional.silu(self.conv_reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class Separable(nn.Module):
    """The first block, without expansion."""

    def __init__(self, net: Net, before: int, after: int, stride: int, kernel: int) -> None:
        super().__init__()
        self.act = net.activation
        self.conv_dw = Conv(net, before, before, kernel, stride, before)
        self.bn1 = nn.BatchNorm2d(before, net.eps)
        self.se = Excite(before, before // 4) if net.excites else nn.Identity()
        self.conv_pw = Conv(net, before, after, 1)
        self.bn2 = nn.BatchNorm2d(after, net.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pw(self.se(self.act(self.bn1(self.conv_dw(x))))))


class Inverted(nn.Module):
    def __init__(self, net: Net, before: int, after: int, ratio: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = before * ratio
        self.act, self.is_residual = net.activation, stride == 1 and before == after
        self.conv_pw = Conv(net, before, wide, 1)
        self.bn1 = nn.BatchNorm2d(wide, net.eps)
        self.conv_dw = Conv(net, wide, wide, kernel, stride, wide)
        self.bn2 = nn.BatchNorm2d(wide, net.eps)
        self.se = Excite(wide, before // 4) if net.excites else nn.Identity()
        self.conv_pwl = Conv(net, wide, after, 1)
        self.bn3 = nn.BatchNorm2d(after, net.eps)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act(self.bn2(self.conv_dw(self.act(self.bn1(self.conv_pw(x))))))
        inner = self.bn3(self.conv_pwl(self.se(inner)))
        return x + inner if self.is_residual else inner


class TimmMobile(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.act = net.activation
        self.conv_stem = Conv(net, 3, net.stem, 3, 2)
        self.bn1 = nn.BatchNorm2d(net.stem, net.eps)
        stages, before = [], net.stem
        for ratio, after, repeats, stride, kernel in net.stages:
            stage: list[nn.Module] = []
            for i in range(repeats):
                step = stride if i == 0 else 1
                if ratio == 1:
                    stage.append(Separable(net, before, after, step, kernel))
                else:
                    stage.append(Inverted(net, before, after, ratio, step, kernel))
                before = after
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = Conv(net, before, net.head, 1)
        self.bn2 = nn.BatchNorm2d(net.head, net.eps)
        self.classifier = nn.Linear(net.head, net.classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.act(self.bn1(self.conv_stem(image))))
        return self.classifier(self.act(self.bn2(self.conv_head(x))).mean((2, 3)))


REPEATS, STRIDES = (1, 2, 3, 4, 3, 3, 1), (1, 2, 2, 2, 1, 2, 1)


def _mobilenet(widths: tuple[int, ...], stem: int, head: int, classes: int) -> Net:
    stages = tuple((1 if i == 0 else 6, widths[i], REPEATS[i], STRIDES[i], 3) for i in range(7))
    return Net(stages, stem, head, classes, 1e-5, excites=False, activation=functional.relu6)


MOBILENET = _mobilenet((16, 24, 32, 64, 96, 160, 320), 32, 1280, 1000)
MOBILENET_TINY = _mobilenet((4, 6, 8, 16, 24, 40, 80), 8, 320, 7)
B0 = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5))
EFFICIENTNET = Net((*B0, (6, 320, 1, 1, 3)), 32, 1280, 1000, 1e-3, excites=True, activation=functional.silu)
B0_TINY = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 5), (6, 40, 1, 1, 3))
EFFICIENTNET_TINY = Net(B0_TINY, 8, 64, 7, 1e-3, excites=True, activation=functional.silu)


def mobilenet_target(tiny: bool) -> nn.Module:
    small = {"depth_multiplier": 0.25, "depth_divisible_by": 2, "min_depth": 2, "finegrained_output": False}
    labels = 7 if tiny else 1000
    config = MobileNetV2Config(num_labels=labels, tf_padding=False, layer_norm_eps=1e-5, **(small if tiny else {}))
    return MobileNetV2ForImageClassification(config)


def efficientnet_target(tiny: bool) -> nn.Module:
    # transformers multiplies all widths, also the 1280 of the head that no option sets.
    small = {"width_coefficient": 0.05, "hidden_dim": 64, "kernel_sizes": [3, 5, 3], "expand_ratios": [1, 6, 6]}
    small |= {"in_channels": [160, 320, 480], "out_channels": [320, 480, 800], "num_block_repeats": [1, 2, 1]}
    small |= {"strides": [1, 2, 1], "num_labels": 7}
    real = {"width_coefficient": 1.0, "hidden_dim": 1280, "num_labels": 1000}
    return EfficientNetForImageClassification(EfficientNetConfig(depth_coefficient=1.0, **(small if tiny else real)))


def _flat(source: Shapes, first: int) -> list[tuple[str, str]]:
    """Rules from ``blocks.stage.index`` to one running index that is ``first`` at the first block."""
    stages = [int(name.split(".")[1]) for name in source if name.startswith("blocks.")]
    blocks = sorted({tuple(map(int, name.split(".")[1:3])) for name in source if name.startswith("blocks.")})
    counts = [sum(stage == each for stage, _ in blocks) for each in range(max(stages) + 1)]
    starts = [0, *accumulate(counts)]
    return [(rf"^blocks\.{stage}\.{i}\.", f"flat.{first + starts[stage] + i}.") for stage, i in blocks]


def mobilenet_truth(source: Shapes, target: Shapes) -> WeightMap:
    """The first block is part of transformers' stem."""
    roles = {"conv_pw": "expand_1x1.convolution", "bn1": "expand_1x1.normalization"}
    roles |= {"conv_dw": "conv_3x3.convolution", "bn2": "conv_3x3.normalization"}
    roles |= {"conv_pwl": "reduce_1x1.convolution", "bn3": "reduce_1x1.normalization"}
    stem = {"conv_dw": "conv_3x3.convolution", "bn1": "conv_3x3.normalization"}
    stem |= {"conv_pw": "reduce_1x1.convolution", "bn2": "reduce_1x1.normalization"}
    outside = {"conv_stem": "conv_stem.first_conv.convolution", "bn1": "conv_stem.first_conv.normalization"}
    outside |= {"conv_head": "conv_1x1.convolution", "bn2": "conv_1x1.normalization"}
    rules = [
        *((rf"^{old}\.", f"mobilenet_v2.{new}.") for old, new in outside.items()),
        *((rf"^blocks\.0\.0\.{old}\.", f"mobilenet_v2.conv_stem.{new}.") for old, new in stem.items()),
        *_flat(source, first=-1),
        *((rf"^flat\.(\d+)\.{old}\.", rf"mobilenet_v2.layer.\1.{new}.") for old, new in roles.items()),
    ]
    return WeightMap(tuple(renamed(source, target, rules)))


def efficientnet_truth(source: Shapes, target: Shapes) -> WeightMap:
    roles = {"conv_pw": "expansion.expand_conv", "bn1": "expansion.expand_bn"}
    roles |= {"conv_dw": "depthwise_conv.depthwise_conv", "bn2": "depthwise_conv.depthwise_norm"}
    roles |= {"conv_pwl": "projection.project_conv", "bn3": "projection.project_bn"}
    excite = {r"se\.conv_reduce": "squeeze_excite.reduce", r"se\.conv_expand": "squeeze_excite.expand"}
    first = {"conv_dw": "depthwise_conv.depthwise_conv", "bn1": "depthwise_conv.depthwise_norm"}
    first |= {"conv_pw": "projection.project_conv", "bn2": "projection.project_bn"}
    outside = {"conv_stem": "embeddings.convolution", "bn1": "embeddings.batchnorm"}
    outside |= {"conv_head": "encoder.top_conv", "bn2": "encoder.top_bn"}
    block = "efficientnet.encoder.blocks"
    rules = [
        *((rf"^{old}\.", f"efficientnet.{new}.") for old, new in outside.items()),
        *((rf"^blocks\.0\.0\.{old}\.", f"{block}.0.{new}.") for old, new in (first | excite).items()),
        *_flat(source, first=0),
        *((rf"^flat\.(\d+)\.{old}\.", rf"{block}.\1.{new}.") for old, new in (roles | excite).items()),
    ]
    return WeightMap(tuple(renamed(source, target, rules)))


MOBILENET_V2 = Pair(
    "mobilenet_v2: timm to transformers",
    lambda tiny: TimmMobile(MOBILENET_TINY if tiny else MOBILENET),
    mobilenet_target,
    mobilenet_truth,
    inputs=lambda: torch.randn(2, 3, 64, 64),
    output=lambda out: getattr(out, "logits", out),
)
EFFICIENTNET_B0 = Pair(
    "efficientnet_b0: timm to transformers",
    lambda tiny: TimmMobile(EFFICIENTNET_TINY if tiny else EFFICIENTNET),
    efficientnet_target,
    efficientnet_truth,
    inputs=lambda: torch.randn(2, 3, 32, 32),
    output=lambda out: getattr(out, "logits", out),
)
