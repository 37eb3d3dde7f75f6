"""Pairs of vision models: transformers and timm."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from lit_wsl.state.operations import Operation, Reshape

from .outputs import logits
from .pair import Pair
from .rules import Rule, Shape, fused, renames, reverse, rule, truth
from .vision import ConvNeXt, ResNet, ViT


def images(size: int) -> Tensor:
    """Two random images."""
    return torch.randn(2, 3, size, size)


def vit_hf(tiny: bool) -> nn.Module:  # noqa: FBT001
    sizes = {
        "image_size": 24,
        "patch_size": 8,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    config = ViTConfig(
        **(sizes if tiny else {}), num_labels=7 if tiny else 1000, layer_norm_eps=1e-6, attn_implementation="eager"
    )
    return ViTForImageClassification(config)


def vit_timm(tiny: bool) -> nn.Module:  # noqa: FBT001
    if tiny:
        return ViT(image=24, patch=8, width=48, depth=3, heads=4, hidden=64, classes=7)
    return ViT(image=224, patch=16, width=768, depth=12, heads=12, hidden=3072, classes=1000)


VIT = truth(
    renames("""
        vit.embeddings.cls_token                      cls_token
        vit.embeddings.position_embeddings            pos_embed
        vit.embeddings.patch_embeddings.projection.{} patch_embed.proj.{}
        vit.layers.{}.layernorm_before.{}             blocks.{}.norm1.{}
        vit.layers.{}.attention.o_proj.{}             blocks.{}.attn.proj.{}
        vit.layers.{}.layernorm_after.{}              blocks.{}.norm2.{}
        vit.layers.{}.mlp.fc1.{}                      blocks.{}.mlp.fc1.{}
        vit.layers.{}.mlp.fc2.{}                      blocks.{}.mlp.fc2.{}
        vit.layernorm.{}                              norm.{}
        classifier.{}                                 head.{}
    """),
    rule(
        " ".join(f"vit.layers.{{}}.attention.{part}_proj.{{}}" for part in "qkv"),
        "blocks.{}.attn.qkv.{}",
        fused,
    ),
)


def resnet_timm(tiny: bool) -> nn.Module:  # noqa: FBT001
    if tiny:
        return ResNet(stem=8, planes=(4, 6, 10, 16), depths=(1, 2, 3, 2), classes=7)
    return ResNet(stem=64, planes=(64, 128, 256, 512), depths=(3, 4, 6, 3), classes=1000)


def resnet_hf(tiny: bool) -> nn.Module:  # noqa: FBT001
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 24, 40, 64], "depths": [1, 2, 3, 2]}
    config = ResNetConfig(**(sizes if tiny else {}), num_labels=7 if tiny else 1000)
    return ResNetForImageClassification(config)


def _stage(stage: int) -> list[Rule]:
    old, new = f"layer{stage + 1}.{{}}", f"resnet.encoder.stages.{stage}.layers.{{}}"
    lines = [
        (f"{old}.downsample.0.{{}}", f"{new}.shortcut.convolution.{{}}"),
        (f"{old}.downsample.1.{{}}", f"{new}.shortcut.normalization.{{}}"),
    ]
    for place in range(3):
        lines.append((f"{old}.conv{place + 1}.{{}}", f"{new}.layer.{place}.convolution.{{}}"))
        lines.append((f"{old}.bn{place + 1}.{{}}", f"{new}.layer.{place}.normalization.{{}}"))
    return [rule(*line) for line in lines]


RESNET = truth(
    renames("""
        conv1.{} resnet.embedder.embedder.convolution.{}
        bn1.{}   resnet.embedder.embedder.normalization.{}
        fc.{}    classifier.1.{}
    """),
    [each for stage in range(4) for each in _stage(stage)],
)


def convnext_timm(tiny: bool, *, conv_mlp: bool = False) -> nn.Module:  # noqa: FBT001
    if tiny:
        return ConvNeXt(widths=(8, 12, 20, 32), depths=(1, 2, 3, 2), classes=7, conv_mlp=conv_mlp)
    return ConvNeXt(widths=(96, 192, 384, 768), depths=(3, 3, 9, 3), classes=1000, conv_mlp=conv_mlp)


def convnext_timm_conv(tiny: bool) -> nn.Module:  # noqa: FBT001
    return convnext_timm(tiny, conv_mlp=True)


def convnext_hf(tiny: bool) -> nn.Module:  # noqa: FBT001
    sizes = {"hidden_sizes": [8, 12, 20, 32], "depths": [1, 2, 3, 2]}
    config = ConvNextConfig(**(sizes if tiny else {}), num_labels=7 if tiny else 1000, layer_norm_eps=1e-6)
    return ConvNextForImageClassification(config)


def _flattened(sources: Sequence[Shape], targets: Sequence[Shape]) -> tuple[Operation, ...]:
    """A 1x1 convolution becomes a matrix."""
    return () if sources[0] == targets[0] else (Reshape(sources[0], targets[0]),)


CONVNEXT = truth(
    renames("""
        stem.0.{}                     convnext.embeddings.patch_embeddings.{}
        stem.1.{}                     convnext.embeddings.layernorm.{}
        stages.{}.downsample.{}.{}    convnext.encoder.stages.{}.downsampling_layer.{}.{}
        stages.{}.blocks.{}.gamma     convnext.encoder.stages.{}.layers.{}.layer_scale_parameter
        stages.{}.blocks.{}.conv_dw.{} convnext.encoder.stages.{}.layers.{}.dwconv.{}
        stages.{}.blocks.{}.norm.{}   convnext.encoder.stages.{}.layers.{}.layernorm.{}
        head.norm.{}                  convnext.layernorm.{}
        head.fc.{}                    classifier.{}
    """),
    renames(
        """
        stages.{}.blocks.{}.mlp.fc1.{} convnext.encoder.stages.{}.layers.{}.pwconv1.{}
        stages.{}.blocks.{}.mlp.fc2.{} convnext.encoder.stages.{}.layers.{}.pwconv2.{}
        """,
        _flattened,
    ),
)

VISION = [
    Pair("vit hf→timm", vit_hf, vit_timm, VIT, lambda: images(24), logits),
    Pair("vit timm→hf", vit_timm, vit_hf, reverse(VIT), lambda: images(24), logits),
    Pair("resnet timm→hf", resnet_timm, resnet_hf, RESNET, lambda: images(64), logits),
    Pair("convnext timm→hf", convnext_timm, convnext_hf, CONVNEXT, lambda: images(64), logits),
    Pair("convnext timm conv mlp→hf", convnext_timm_conv, convnext_hf, CONVNEXT, lambda: images(64), logits),
]
