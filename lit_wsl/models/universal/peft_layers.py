"""The adapted layers of a model that PEFT changed."""

from collections.abc import Iterator
from typing import Any

from peft import PeftMixedModel, PeftModel
from peft.tuners.lora import layer as lora
from peft.tuners.lora.variants import DoraEmbeddingVariant, DoraLinearVariant, _DoraConvNdVariant
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.layout import AdaptedLayer, LowRankPart, join
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
        elif getattr(module, "prompt_encoder", None) is not None and hasattr(module, "peft_config"):
            raise CheckpointError(f"{name or 'The model'} has a learned prompt, which no weight can hold; use LoRA.")
        elif isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            raise CheckpointError(f"{name}: {type(module).__name__} is no LoRA layer and cannot be folded; use LoRA.")


def peft_containers(root: nn.Module) -> dict[str, str]:
    """Path of every ``PeftModel`` to the path of the plain model inside it."""
    return {
        strip_wrappers(path): "base_model.model"
        for path, module in root.named_modules()
        if isinstance(module, PeftModel | PeftMixedModel) and isinstance(module.base_model, BaseTuner)
    }


def _saved_layer(name: str, module: ModulesToSaveWrapper) -> AdaptedLayer:
    active = [a for a in module.active_adapters if a in module.modules_to_save]
    if len(active) > 1:
        raise CheckpointError(f"{name}: several copies are active ({', '.join(active)}); activate one adapter.")
    used = bool(active) and not module.disable_adapters
    return AdaptedLayer(name, f"modules_to_save.{active[0]}" if used else "original_module")


def _lora_layer(name: str, module: Any) -> AdaptedLayer:
    _check_foldable(name, module)
    embedding = isinstance(module, lora.Embedding)
    unused = module.disable_adapters or module.merged  # PEFT computes with the base layer alone
    active = [] if unused else [a for a in module.active_adapters if a in module.scaling]
    dora = [a for a in active if isinstance(module.lora_variant.get(a), _DORA)]
    if dora and len(active) > 1:
        raise CheckpointError(
            f"{name}: DoRA cannot be folded together with other active adapters; activate {dora[0]!r} alone."
        )
    return AdaptedLayer(
        name,
        "base_layer",
        parts=tuple(_part(name, module, adapter, embedding=embedding) for adapter in active),
        magnitude=join(name, "lora_magnitude_vector", dora[0], "weight") if dora else "",
        transposed=embedding or bool(getattr(module, "fan_in_fan_out", False)),
    )


def _part(name: str, module: Any, adapter: str, *, embedding: bool) -> LowRankPart:
    rank, scale = int(module.r[adapter]), float(module.scaling[adapter])
    if embedding:
        down, up = (join(name, f"lora_embedding_{side}", adapter) for side in "AB")
        return LowRankPart(down, up, rank, scale)
    down, up = (join(name, f"lora_{side}", adapter, "weight") for side in "AB")
    shift = join(name, "lora_B", adapter, "bias") if module.lora_bias.get(adapter) else ""
    return LowRankPart(down, up, rank, scale, shift=shift)


def _check_foldable(name: str, module: Any) -> None:
    kind = type(module)
    if kind.__name__ == f"FSDP{kind.__bases__[-1].__name__}":  # `fully_shard` swaps the class for a subclass
        kind = kind.__bases__[-1]
    if kind not in _FOLDABLE:
        raise CheckpointError(f"{name}: a {kind.__module__}.{kind.__name__} cannot be folded; {_KEPT_OUT}.")
    base = module.get_base_layer()
    weight = dict(base.named_parameters(recurse=False)).get("weight")
    if weight is None:
        raise CheckpointError(
            f"{name}: its weight is computed by a {type(base).__name__} and cannot be folded into; {_KEPT_OUT}."
        )
    if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2 or hasattr(weight, "quant_state"):
        raise CheckpointError(
            f"{name}: its weight is quantised ({weight.dtype}) and cannot be folded; load the base in 16 or 32 bit, "
            f"or {_KEPT_OUT}."
        )
    if isinstance(module, _CONVOLUTIONS) and base.groups > 1:
        raise CheckpointError(f"{name}: a convolution with {base.groups} groups cannot be folded; {_KEPT_OUT}.")
    if any(module.lora_bias.values()) and getattr(base, "bias", None) is None:
        raise CheckpointError(f"{name}: `lora_bias` needs a layer with a bias to be folded into; {_KEPT_OUT}.")
    if module.merged and module.disable_adapters:
        raise CheckpointError(f"{name}: its adapters are merged and disabled at once; call `unmerge` first.")
    for adapter, variant in module.lora_variant.items():
        if not isinstance(variant, _DORA) and not type(variant).__name__.startswith("MiCA"):
            raise CheckpointError(
                f"{name}: adapter {adapter!r} is a {type(variant).__name__}, which cannot be folded; "
                "use LoRA, rsLoRA or DoRA."
            )
