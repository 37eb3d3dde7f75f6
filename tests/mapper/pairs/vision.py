"""Vision models in the layout of timm: names, order and shapes of its tensors."""

import torch
from torch import Tensor, nn

from .attention import attend, heads_of


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_of(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(attend(q, k, v, causal=False))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, *, conv: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, hidden, 1) if conv else nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, width, 1) if conv else nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """`vit_base_patch16_224`."""

    def __init__(
        self, *, image: int, patch: int, width: int, depth: int, heads: int, hidden: int, classes: int
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(ViTBlock(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class Bottleneck(nn.Module):
    def __init__(self, inside: int, planes: int, stride: int) -> None:
        super().__init__()
        outside = 4 * planes
        self.conv1 = nn.Conv2d(inside, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(planes, outside, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.act3 = nn.ReLU()
        self.downsample = None
        if stride != 1 or inside != outside:
            shortcut = nn.Conv2d(inside, outside, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.act3(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """`resnet50`."""

    def __init__(self, *, stem: int, planes: tuple[int, ...], depths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.act1 = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inside = stem
        for stage, (width, depth) in enumerate(zip(planes, depths, strict=True), start=1):
            blocks = []
            for block in range(depth):
                blocks.append(Bottleneck(inside, width, 2 if block == 0 and stage > 1 else 1))
                inside = 4 * width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int, *, conv_mlp: bool) -> None:
        super().__init__()
        self.conv_mlp = conv_mlp
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = (LayerNorm2d if conv_mlp else nn.LayerNorm)(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width, conv=conv_mlp)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_dw(x)
        y = self.mlp(self.norm(y)) if self.conv_mlp else self._channels_last(y)
        return x + y * self.gamma.reshape(1, -1, 1, 1)

    def _channels_last(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class ConvNeXtStage(nn.Module):
    def __init__(self, inside: int, width: int, depth: int, *, conv_mlp: bool) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if inside != width:
            self.downsample = nn.Sequential(LayerNorm2d(inside, eps=1e-6), nn.Conv2d(inside, width, 2, stride=2))
        self.blocks = nn.Sequential(*(ConvNeXtBlock(width, conv_mlp=conv_mlp) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class ConvNeXtHead(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(width, eps=1e-6)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x.mean((2, 3), keepdim=True)).flatten(1))


class ConvNeXt(nn.Module):
    """`convnext_tiny`; with ``conv_mlp`` the linear layers are 1x1 convolutions, as in `convnext_nano`."""

    def __init__(self, *, widths: tuple[int, ...], depths: tuple[int, ...], classes: int, conv_mlp: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), LayerNorm2d(widths[0], eps=1e-6))
        inside = (widths[0], *widths[:-1])
        sizes = zip(inside, widths, depths, strict=True)
        self.stages = nn.Sequential(*(ConvNeXtStage(*size, conv_mlp=conv_mlp) for size in sizes))
        self.head = ConvNeXtHead(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))
