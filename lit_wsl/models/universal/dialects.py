"""LoRA layouts found in the wild, read from the names in a state dict.

==========  =======================  ==========================================  =============================
dialect     plain layer              down projection                             up projection
==========  =======================  ==========================================  =============================
PEFT        ``base_layer``           ``lora_A.<adapter>.weight``                 ``lora_B.<adapter>.weight``
PEFT        ``base_layer``           ``lora_embedding_A.<adapter>``              ``lora_embedding_B.<adapter>``
nanoGPT     ``main_weight``          ``lora_A.weight`` (turned for embeddings)   ``lora_B.weight``
litgpt      ``linear``               ``lora_A`` (of q, k, v stacked)             ``lora_B`` (of q, k, v stacked)
torchtune   the layer itself         ``lora_a.weight``                           ``lora_b.weight``
==========  =======================  ==========================================  =============================

References:
    https://github.com/huggingface/peft, https://github.com/Lightning-AI/litgpt (``lora.py``),
    https://github.com/meta-pytorch/torchtune (``modules/peft/lora.py``).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.layout import AdaptedLayer, LowRankPart
from lit_wsl.state.formats import strip_wrappers

ScaleRule = Callable[[str, int], float]
"""Scale of the adapter of a layer, from the layer's path and the adapter's rank."""
Shapes = Mapping[str, tuple[int, ...]]
_SAVED = re.compile(r"^(.+)\.(modules_to_save\.[^.]+)\.")


@dataclass(frozen=True)
class Dialect:
    """How one library names the tensors of an adapted layer."""

    name: str
    base: str
    """Path of the plain layer inside the adapted one; empty when it is the layer itself."""
    A: re.Pattern[str]
    """Key of a down projection: layer, then the rest."""
    up: str
    """What the down projection's ``a`` is replaced with to get the up projection."""
    magnitude: tuple[str, ...] = ()
    """Possible names of DoRA's row lengths."""
    own: tuple[str, ...] = ()


def _pattern(rest: str) -> re.Pattern[str]:
    return re.compile(rf"^(?P<layer>.+)\.(?P<rest>{rest})$")


DIALECTS = (
    Dialect("PEFT", "base_layer", _pattern(r"lora_A\.[^.]+\.weight"), "lora_B", ("lora_magnitude_vector",)),
    Dialect("PEFT", "base_layer", _pattern(r"lora_embedding_A\.[^.]+"), "lora_embedding_B", ("lora_magnitude_vector",)),
    Dialect("nanoGPT", "main_weight", _pattern(r"lora_A\.weight"), "lora_B"),
    Dialect("litgpt", "linear", _pattern(r"lora_A"), "lora_B"),
    Dialect(
        "torchtune",
        "",
        _pattern(r"lora_a\.weight"),
        "lora_b",
        ("magnitude",),
        ("lora_a", "lora_b", "magnitude", "dropout"),
    ),
)


def state_layers(shapes: Shapes, scale: ScaleRule, fused: Mapping[str, Any] | None = None) -> list[AdaptedLayer]:
    """The adapted layers that the names of a state dict tell of.

    Args:
        shapes: Raw key to shape.
        scale: Scale of an adapter; called for every one found.
        fused: Layer path to litgpt's fused projection, where the module is at hand.

    Raises:
        CheckpointError: If an adapter lacks its base weight or its partner, or shapes do not fit.
    """
    layers: dict[str, AdaptedLayer] = {}
    for key in shapes:
        for dialect in DIALECTS:
            if match := dialect.A.match(key):
                layer = _layer(dialect, match["layer"], match["rest"], shapes, scale, fused or {})
                known = layers.get(layer.name)
                if known:  # several adapters on one layer add up
                    layer = AdaptedLayer(**{**vars(known), "parts": known.parts + layer.parts})
                layers[layer.name] = layer
    for key in shapes:
        if match := _SAVED.match(key):
            layers[match[1]] = AdaptedLayer(match[1], match[2])
    return list(layers.values())


def module_layers(root: nn.Module) -> Iterator[AdaptedLayer]:
    """The adapted layers of a model that is not PEFT's, with the scales that its modules hold."""
    modules = {strip_wrappers(path): module for path, module in root.named_modules()}
    shapes = {strip_wrappers(key): tuple(tensor.shape) for key, tensor in root.state_dict(keep_vars=True).items()}
    foreign = {key: shape for key, shape in shapes.items() if not _in_peft(key)}
    fused = {name: module for name, module in modules.items() if hasattr(module, "lora_ind")}
    for layer in state_layers(foreign, lambda name, rank: _module_scale(name, modules[name], rank), fused):
        folded = getattr(modules[layer.name], "merged", False) is True
        yield AdaptedLayer(**{**vars(layer), "parts": () if folded else layer.parts})


def _in_peft(key: str) -> bool:
    return ".base_layer." in key or ".modules_to_save." in key or bool(
        DIALECTS[0].A.match(key) or DIALECTS[1].A.match(key)
    )


def _module_scale(name: str, module: Any, rank: int) -> float:
    for attribute in ("scaling", "scale"):
        if isinstance(value := getattr(module, attribute, None), float | int):
            return float(value)
    for attribute in ("lora_alpha", "alpha"):
        if isinstance(value := getattr(module, attribute, None), float | int):
            return float(value) / rank
    raise CheckpointError(
        f"{name}: a {type(module).__name__} does not say its scale; give it an attribute `scaling`, or pass `lora`."
    )


def _layer(
    dialect: Dialect, name: str, rest: str, shapes: Shapes, scale: ScaleRule, fused: Mapping[str, Any]
) -> AdaptedLayer:
    A = f"{name}.{rest}"
    B = f"{name}.{re.sub('lora_(embedding_)?[aA]', dialect.up, rest, count=1)}"
    plain = ".".join(part for part in (name, dialect.base) if part)
    weight = f"{plain}.weight"
    for wanted in (weight, B):
        if wanted not in shapes:
            raise CheckpointError(f"{A!r} has no {wanted!r} beside it; the adapter cannot be folded into plain weights.")
    magnitude = next((m for end in dialect.magnitude for m in shapes if m.startswith(f"{name}.{end}")), "")
    common = {"base": dialect.base, "own": dialect.own, "magnitude": magnitude}
    if name in fused:
        return AdaptedLayer(name, parts=_fused_parts(fused[name], A, B, scale), **common)
    turned, transposed = _orientation(A, shapes[A], shapes[B], shapes[weight])
    rank = shapes[A][-1] if turned else shapes[A][0]
    bias = B.removesuffix("weight") + "bias" if B.endswith(".weight") else ""
    part = LowRankPart(A, B, rank, scale(name, rank), A_turned=turned, shift=bias if bias in shapes else "")
    return AdaptedLayer(name, parts=(part,), transposed=transposed, **common)


def _orientation(
    A: str, down: tuple[int, ...], up: tuple[int, ...], weight: tuple[int, ...]
) -> tuple[bool, bool]:
    """Whether ``A`` is stored as ``(d_in, r)``, and whether the weight is stored as ``(d_in, d_out)``."""
    rank, out = up[1], up[0]
    if "lora_embedding_" not in A and down[0] == rank and (out, *down[1:]) == weight:
        return False, False
    if down[0] == rank and (*down[1:], out) == weight:  # PEFT's embeddings, and Conv1D
        return False, True
    if len(down) == 2 and down[1] == rank and (down[0], out) == weight:  # nanoGPT's embeddings
        return True, True
    raise CheckpointError(
        f"{A!r} {down} and its partner {up} do not fit the weight {weight}; "
        "a fused projection can be folded from its module only."
    )


def _fused_parts(module: Any, A: str, B: str, scale: ScaleRule) -> tuple[LowRankPart, ...]:
    """litgpt's adapters of q, k and v in one layer, whose rows may be interleaved in the weight."""
    rows, rank = [int(row) for row in module.lora_ind], int(module.r)
    factor = scale(A.rpartition(".")[0], rank)
    parts, done = [], 0
    for number, size in enumerate(module.qkv_shapes):
        for first, count in _runs(rows[done : done + size]):
            start = done + first
            A_rows = (number * rank, (number + 1) * rank)
            B_rows = (start, start + count)
            parts.append(LowRankPart(A, B, rank, factor, A_rows=A_rows, B_rows=B_rows, start=rows[start]))
        done += size
    return tuple(parts)


def _runs(rows: list[int]) -> Iterator[tuple[int, int]]:
    """Position and length of every run of consecutive numbers."""
    first = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            yield first, i - first
            first = i
