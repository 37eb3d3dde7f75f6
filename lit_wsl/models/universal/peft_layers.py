"""The adapted layers of a model that PEFT changed."""

from collections.abc import Iterator
from typing import Any

from peft.tuners.lora import layer as lora
from peft.tuners.lora.variants import DoraEmbeddingVariant, DoraLinearVariant, MiCALinearVariant, _DoraConvNdVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.layout import AdaptedLayer, LowRankPart
from lit_wsl.state.formats import strip_wrappers

_CONVOLUTIONS = (lora.Conv1d, lora.Conv2d, lora.Conv3d)
_FOLDABLE = (lora.Linear, lora.Embedding, *_CONVOLUTIONS)
_DORA = (DoraLinearVariant, DoraEmbeddingVariant, _DoraConvNdVariant)
_KEPT_OUT = "exclude this layer with `exclude_modules`"


def peft_layers(root: nn.Module) -> Iterator[AdaptedLayer]:
    """Every layer of ``root`` that PEFT adapted or copied to be trained.

    Raises:
        CheckpointError: If one cannot be folded into plain weights.
    """
    for path, module in root.named_modules():
        name = strip_wrappers(path)
        if isinstance(module, ModulesToSaveWrapper):
            yield _saved_layer(name, module)
        elif isinstance(module, lora.LoraLayer):
            yield _lora_layer(name, module)
        elif isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            raise CheckpointError(f"{name}: {type(module).__name__} is no LoRA layer and cannot be folded; use LoRA.")


def _saved_layer(name: str, module: ModulesToSaveWrapper) -> AdaptedLayer:
    active = [a for a in module.active_adapters if a in module.modules_to_save]
    if len(active) > 1:
        raise CheckpointError(f"{name}: several copies are active ({', '.join(active)}); activate one adapter.")
    used = bool(active) and not module.disable_adapters
    return AdaptedLayer(name, f"modules_to_save.{active[0]}" if used else "original_module")


def _lora_layer(name: str, module: Any) -> AdaptedLayer:
    _check_foldable(name, module)
    embedding = isinstance(module, lora.Embedding)
    active = [] if module.disable_adapters else [a for a in module.active_adapters if a in module.scaling]
    active = [a for a in active if a not in module.merged_adapters]
    dora = [a for a in active if isinstance(module.lora_variant.get(a), _DORA)]
    if dora and len(active) > 1:
        raise CheckpointError(
            f"{name}: DoRA cannot be folded together with other active adapters; activate {dora[0]!r} alone."
        )
    return AdaptedLayer(
        name,
        "base_layer",
        parts=tuple(_part(name, module, adapter, embedding=embedding) for adapter in active),
        magnitude=f"{name}.lora_magnitude_vector.{dora[0]}.weight" if dora else "",
        transposed=embedding or bool(getattr(module, "fan_in_fan_out", False)),
    )


def _part(name: str, module: Any, adapter: str, *, embedding: bool) -> LowRankPart:
    rank, scale = int(module.r[adapter]), float(module.scaling[adapter])
    if embedding:
        return LowRankPart(f"{name}.lora_embedding_A.{adapter}", f"{name}.lora_embedding_B.{adapter}", rank, scale)
    up = f"{name}.lora_B.{adapter}"
    shift = f"{up}.bias" if module.lora_bias.get(adapter) else ""
    return LowRankPart(f"{name}.lora_A.{adapter}.weight", f"{up}.weight", rank, scale, shift=shift)


def _check_foldable(name: str, module: Any) -> None:
    kind = type(module)
    if kind not in _FOLDABLE:
        raise CheckpointError(f"{name}: a {kind.__module__}.{kind.__name__} cannot be folded; {_KEPT_OUT}.")
    base = module.get_base_layer()
    weight = base.weight
    if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2 or hasattr(weight, "quant_state"):
        raise CheckpointError(
            f"{name}: its weight is quantised ({weight.dtype}) and cannot be folded; load the base in 16 or 32 bit, "
            f"or {_KEPT_OUT}."
        )
    if isinstance(module, _CONVOLUTIONS) and base.groups > 1:
        raise CheckpointError(f"{name}: a convolution with {base.groups} groups cannot be folded; {_KEPT_OUT}.")
    for adapter, variant in module.lora_variant.items():
        if not isinstance(variant, (*_DORA, MiCALinearVariant)):
            raise CheckpointError(
                f"{name}: adapter {adapter!r} is a {type(variant).__name__}, which cannot be folded; "
                "use LoRA, rsLoRA or DoRA."
            )
