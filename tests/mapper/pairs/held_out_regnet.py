"""RegNetY: timm to transformers."""

import re

import torch
from torch import Tensor, nn
from transformers import RegNetConfig, RegNetForImageClassification

from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.held_out_entries import renamed
from tests.mapper.pairs.pair import Pair, Shapes


class ConvBn(nn.Module):
    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Excite(nn.Module):
    def __init__(self, width: int, reduced: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, reduced, 1)
        self.fc2 = nn.Conv2d(reduced, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Bottleneck(nn.Module):
    def __init__(self, before: int, after: int, stride: int, group: int) -> None:
        super().__init__()
        self.conv1 = ConvBn(before, after, 1)
        self.conv2 = ConvBn(after, after, 3, stride, after // group)
        self.se = Excite(after, round(before / 4))
        self.conv3 = ConvBn(after, after, 1)
        same = before == after and stride == 1
        self.downsample = nn.Identity() if same else ConvBn(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv3(self.se(self.conv2(self.conv1(x).relu()).relu()))
        return (inner + self.downsample(x)).relu()


class TimmRegNet(nn.Module):
    def __init__(self, stem: int, widths: tuple[int, ...], depths: tuple[int, ...], group: int, classes: int) -> None:
        super().__init__()
        self.stem = ConvBn(3, stem, 3, 2)
        before, self.stages = stem, len(widths)
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
            stage = nn.Sequential()
            for j in range(depth):
                stage.add_module(f"b{j + 1}", Bottleneck(before, width, 2 if j == 0 else 1, group))
                before = width
            self.add_module(f"s{i}", stage)
        self.head = nn.ModuleDict({"fc": nn.Linear(before, classes)})

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).relu()
        for i in range(self.stages):
            x = getattr(self, f"s{i + 1}")(x)
        return self.head["fc"](x.mean((2, 3)))


def source(tiny: bool) -> nn.Module:
    if tiny:
        return TimmRegNet(16, (24, 48), (2, 3), 8, 7)
    return TimmRegNet(32, (128, 192, 512, 1088), (2, 6, 12, 2), 64, 1000)


def target(tiny: bool) -> nn.Module:
    small = {"embedding_size": 16, "hidden_sizes": [24, 48], "depths": [2, 3], "groups_width": 8, "num_labels": 7}
    return RegNetForImageClassification(RegNetConfig(layer_type="y", **(small if tiny else {"num_labels": 1000})))


def truth(source: Shapes, target: Shapes) -> WeightMap:
    roles = {"conv1": "layer.0", "conv2": "layer.1", "conv3": "layer.3", "downsample": "shortcut"}
    roles |= {r"se\.fc1": "layer.2.attention.0", r"se\.fc2": "layer.2.attention.2"}
    blocks = {tuple(name.split(".")[:2]) for name in source if re.match(r"s\d", name)}
    stages = "regnet.encoder.stages"
    rules = [
        *((rf"^{s}\.{b}\.", f"{stages}.{int(s[1:]) - 1}.layers.{int(b[1:]) - 1}.") for s, b in blocks),
        *((rf"^(regnet\.encoder\S+layers\.\d+)\.{old}\.", rf"\1.{new}.") for old, new in roles.items()),
        (r"^stem\.", "regnet.embedder.embedder."),
        (r"^(regnet\..*)\.conv\.", r"\1.convolution."),
        (r"^(regnet\..*)\.bn\.", r"\1.normalization."),
        (r"^head\.fc", "classifier.1"),
    ]
    return WeightMap(tuple(renamed(source, target, rules)))


REGNET = Pair(
    "regnety_040: timm to transformers",
    source,
    target,
    truth,
    inputs=lambda: torch.randn(2, 3, 32, 32),
    output=lambda out: getattr(out, "logits", out),
)
