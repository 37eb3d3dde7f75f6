"""A U-Net spelled twice: levels counted from the top or from the bottom, the decoder before or after the encoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.held_out_entries import renamed
from tests.mapper.pairs.pair import Pair, Shapes

WIDTHS, WIDTHS_TINY = (64, 128, 256, 512, 1024), (8, 12, 20)


class DoubleConv(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()


class Up(nn.Module):
    def __init__(self, width: int, before: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(before, width, 2, 2)
        self.conv = DoubleConv(2 * width, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat((skip, self.up(x)), 1))


class UNet(nn.Module):
    """Encoder from the full resolution down, decoder in the order it runs."""

    def __init__(self, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        *levels, bottom = widths
        self.encoder = nn.ModuleList(DoubleConv(b, w) for b, w in zip((3, *levels), levels, strict=False))
        self.bottleneck = DoubleConv(levels[-1], bottom)
        self.decoder = nn.ModuleList(Up(levels[i], widths[i + 1]) for i in reversed(range(len(levels))))
        self.head = nn.Conv2d(levels[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in self.encoder:
            skips.append(level(x))
            x = functional.max_pool2d(skips[-1], 2)
        x = self.bottleneck(x)
        for level in self.decoder:
            x = level(x, skips.pop())
        return self.head(x)


class Expanding(nn.Module):
    """The same step as :class:`Up`, its convolutions first."""

    def __init__(self, width: int, before: int) -> None:
        super().__init__()
        self.fuse = _stack(2 * width, width)
        self.grow = nn.ConvTranspose2d(before, width, 2, 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.fuse(torch.cat((skip, self.grow(x)), 1))


def _stack(before: int, after: int) -> nn.Sequential:
    first = nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    second = nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    return nn.Sequential(*first, *second)


class Hourglass(nn.Module):
    """The expanding path first and from the full resolution down; the contracting path from the deepest level up."""

    def __init__(self, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        *levels, bottom = widths
        befores = (3, *levels)
        self.to_mask = nn.Conv2d(levels[0], classes, 1)
        self.expanding = nn.ModuleList(Expanding(levels[i], widths[i + 1]) for i in range(len(levels)))
        self.contracting = nn.ModuleList(_stack(befores[i], levels[i]) for i in reversed(range(len(levels))))
        self.waist = _stack(levels[-1], bottom)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in reversed(self.contracting):
            skips.append(level(x))
            x = functional.max_pool2d(skips[-1], 2)
        x = self.waist(x)
        for level, skip in zip(reversed(self.expanding), reversed(skips), strict=True):
            x = level(x, skip)
        return self.to_mask(x)


def truth(source: Shapes, target: Shapes) -> WeightMap:
    levels = len({name.split(".")[1] for name in source if name.startswith("encoder.")})
    inner = {"conv1": "0", "bn1": "1", "conv2": "3", "bn2": "4"}
    rules = [
        *((rf"^encoder\.{i}\.", f"contracting.{levels - 1 - i}.") for i in range(levels)),
        *((rf"^decoder\.{i}\.up\.", f"expanding.{levels - 1 - i}.grow.") for i in range(levels)),
        *((rf"^decoder\.{i}\.conv\.", f"expanding.{levels - 1 - i}.fuse.") for i in range(levels)),
        (r"^bottleneck", "waist"),
        (r"^head", "to_mask"),
        *((rf"\.{old}\.", f".{new}.") for old, new in inner.items()),
    ]
    return WeightMap(tuple(renamed(source, target, rules)))


UNET = Pair(
    "unet: two spellings",
    lambda tiny: UNet(WIDTHS_TINY, 5) if tiny else UNet(WIDTHS, 2),
    lambda tiny: Hourglass(WIDTHS_TINY, 5) if tiny else Hourglass(WIDTHS, 2),
    truth,
    inputs=lambda: torch.randn(2, 3, 16, 16),
)
