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
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from torch import nn

from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.layout import AdaptedLayer, LowRankPart, join
from lit_wsl.state.formats import strip_wrappers

ScaleRule = Callable[[str, int], float]
"""Scale of the adapter of a layer, from the layer's path and the adapter's rank."""
Shapes = Mapping[str, tuple[int, ...]]
_SAVED = re.compile(r"^(.+)\.(modules_to_save\.[^.]+)\.")
_TURNABLE = re.compile(r"\.?lora_A\.[^.]+\.weight$")
"""Down projection of a layer that may be a ``Conv1D``, which stores its weight as ``(d_in, d_out)``."""


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
    return re.compile(rf"^(?:(?P<layer>.+)\.)?(?P<rest>{rest})$")


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


def state_layers(
    shapes: Shapes, scale: ScaleRule, fused: Mapping[str, Any] | None = None, *, squares_turned: bool = False
) -> list[AdaptedLayer]:
    """The adapted layers that the names of a state dict tell of.

    Args:
        shapes: Raw key to shape.
        scale: Scale of an adapter; called for every one found.
        fused: Layer path to litgpt's fused projection, where the module is at hand.
        squares_turned: Square weights are stored as ``(d_in, d_out)``; they also are if others of the state are.

    Raises:
        CheckpointError: If an adapter lacks its base weight or its partner, shapes do not fit, or a layer has
            several adapters, of which the names do not tell which are active.
    """
    found: dict[str, list[AdaptedLayer]] = defaultdict(list)
    for key in shapes:
        for dialect in DIALECTS:
            if match := dialect.A.match(key):
                layer = _layer(dialect, match["layer"] or "", match["rest"], shapes, scale, fused or {})
                found[layer.name].append(layer)
    for name, base in sorted({(m[1], m[2]) for key in shapes if (m := _SAVED.match(key))}):
        found[name].append(AdaptedLayer(name, base))
    for name, layers in found.items():
        if len(layers) > 1:
            raise CheckpointError(
                f"{name} has {len(layers)} adapters, and the state dict does not say which are active; "
                "pass the module in place of its state dict, or a state dict with one adapter."
            )
    return _turn_squares([layers[0] for layers in found.values()], shapes, turned=squares_turned)


def _turn_squares(layers: list[AdaptedLayer], shapes: Shapes, *, turned: bool) -> list[AdaptedLayer]:
    """Give square weights the orientation that a setting, or the other weights, tell of."""
    turnable = {layer.name for layer in layers if layer.parts and _TURNABLE.search(layer.parts[0].A)}
    turned = turned or any(layer.transposed for layer in layers if layer.name in turnable)
    squares = {n for n in turnable for s in [shapes[join(n, "base_layer", "weight")]] if len(s) == 2 and s[0] == s[1]}
    return [replace(layer, transposed=turned) if layer.name in squares else layer for layer in layers]


def module_layers(root: nn.Module) -> Iterator[AdaptedLayer]:
    """The adapted layers of a model that is not PEFT's, with the scales that its modules hold.

    A layer of nanoGPT's kind or litgpt's that has no adapter, since its rank is 0, still holds the plain one inside.
    """
    modules = {strip_wrappers(path): module for path, module in root.named_modules()}
    # Not the state dict, which runs hooks: those of a sharded model would wait for the other processes.
    tensors = chain(root.named_parameters(remove_duplicate=False), root.named_buffers(remove_duplicate=False))
    shapes = {strip_wrappers(key): tuple(tensor.shape) for key, tensor in tensors}
    foreign = {key: shape for key, shape in shapes.items() if not _in_peft(key)}
    fused = {name: module for name, module in modules.items() if hasattr(module, "lora_ind")}
    adapted = state_layers(foreign, lambda name, rank: _module_scale(name, modules[name], rank), fused)
    for layer in adapted:
        folded = getattr(modules[layer.name], "merged", False) is True
        yield replace(layer, parts=()) if folded else layer
    names = {layer.name for layer in adapted}
    for name, module in modules.items():
        inner = _held_layer(module)
        if name not in names and inner and join(name, inner, "weight") in foreign:
            yield AdaptedLayer(name, inner)


def _held_layer(module: Any) -> str:
    """Name of the plain layer in one of nanoGPT's kind or litgpt's, else nothing."""
    children = dict(module.named_children())
    if "main_weight" in children:
        return "main_weight"
    return "linear" if "linear" in children and hasattr(module, "lora_alpha") and hasattr(module, "merged") else ""


def _in_peft(key: str) -> bool:
    inside = {"base_layer", "modules_to_save"} & set(key.split("."))
    return bool(inside or DIALECTS[0].A.match(key) or DIALECTS[1].A.match(key))


def _module_scale(name: str, module: Any, rank: int) -> float:
    for attribute, divisor in (("scaling", 1), ("scale", 1), ("lora_alpha", rank), ("alpha", rank)):
        value = getattr(module, attribute, None)
        if isinstance(value, float | int) and not isinstance(value, bool):
            return float(value) / divisor
    raise CheckpointError(
        f"{name}: a {type(module).__name__} does not say its scale; give it an attribute `scaling`, "
        "or pass the model's state dict with `lora=LoraSpec(...)`."
    )


def _layer(
    dialect: Dialect, name: str, rest: str, shapes: Shapes, scale: ScaleRule, fused: Mapping[str, Any]
) -> AdaptedLayer:
    A = join(name, rest)
    B = join(name, re.sub("lora_(embedding_)?[aA]", dialect.up, rest, count=1))
    weight = join(name, dialect.base, "weight")
    for wanted in (weight, B):
        if wanted not in shapes:
            raise CheckpointError(
                f"{A!r} stands without {'the weight of its layer' if wanted == weight else repr(B)}, so the adapter "
                "cannot be folded into plain weights; give the state dict of the whole model, not of adapters alone."
            )
    marks = tuple(join(name, end) + "." for end in dialect.magnitude)
    magnitude = next((key for key in shapes if f"{key}.".startswith(marks)), "") if marks else ""
    layer = AdaptedLayer(name, dialect.base, own=dialect.own, magnitude=magnitude)
    if name in fused:
        return replace(layer, parts=_fused_parts(name, fused[name], A, B, scale))
    turned, transposed = _orientation(A, shapes[A], shapes[B], shapes[weight])
    rank = shapes[A][-1] if turned else shapes[A][0]
    shift = _bias_of_up(name, B, weight, shapes)
    part = LowRankPart(A, B, rank, scale(name, rank), A_turned=turned, shift=shift)
    return replace(layer, parts=(part,), transposed=transposed)


def _bias_of_up(name: str, B: str, weight: str, shapes: Shapes) -> str:
    """Key of the bias of the up projection, which the plain layer must have one to take up."""
    bias = B.removesuffix("weight") + "bias" if B.endswith(".weight") else ""
    if bias not in shapes:
        return ""
    if weight.removesuffix("weight") + "bias" not in shapes:
        raise CheckpointError(f"{name}: the adapter has a bias and the layer has none to fold it into; add one.")
    return bias


def _orientation(A: str, down: tuple[int, ...], up: tuple[int, ...], weight: tuple[int, ...]) -> tuple[bool, bool]:
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


def _fused_parts(name: str, module: Any, A: str, B: str, scale: ScaleRule) -> tuple[LowRankPart, ...]:
    """The adapters of litgpt for q, k and v in one layer, whose rows may be interleaved in the weight.

    With all three enabled litgpt adds the update as it is, in the order q, k, v, whatever ``lora_ind`` says.
    """
    rows, rank = [int(row) for row in module.lora_ind], int(module.r)
    if all(module.enable_lora):
        rows = list(range(sum(module.qkv_shapes)))
    factor = scale(name, rank)
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
