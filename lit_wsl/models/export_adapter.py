"""The PEFT directory of a backbone's adapters, whatever library trained them, and the proof of its base.

Reference:
    https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_wsl.errors import CheckpointError
from lit_wsl.models.architecture import as_stored, current_names, make_architecture, parameter_shapes, tied_names
from lit_wsl.models.checkpoint import Backbone, Checkpoint, choose_backbone
from lit_wsl.models.export_plan import Plan, Planned, Request, keep, recast, with_head
from lit_wsl.models.lora_targets import peft_ranks, peft_targets
from lit_wsl.models.universal.foreign import align
from lit_wsl.models.universal.layout import AdaptedLayer, Layout, LowRankPart
from lit_wsl.models.universal.sidecar import SideCar
from lit_wsl.models.universal.unfold import unfold_state
from lit_wsl.state.adapters import PREFIX, Adapter
from lit_wsl.state.locate import model_path
from lit_wsl.state.reader import StateReader, TensorInfo, open_state
from lit_wsl.tensors.lora import scale_rows

_WHOLE = "export `--format hf`"
_SAVED = "modules_to_save."
_CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class _Source:
    """The adapters of one backbone."""

    where: str
    backbone: Backbone
    model: PreTrainedModel
    state: Mapping[str, Tensor]
    saved: SideCar
    layout: Layout

    def name(self, layer: AdaptedLayer) -> str:
        """Path of a layer inside the plain backbone."""
        plain = str(self.layout.plain(layer.weight)).removesuffix(".weight")
        return plain.removeprefix(self.backbone.prefix)

    @cached_property
    def layers(self) -> dict[str, AdaptedLayer]:
        """Layers with active adapters, by their paths in the backbone."""
        return {self.name(layer): layer for layer in self._inside() if layer.parts}

    @cached_property
    def copies(self) -> dict[str, AdaptedLayer]:
        """Layers that were copied to be trained whole."""
        return {self.name(layer): layer for layer in self._inside() if layer.base.startswith(_SAVED)}

    def _inside(self) -> list[AdaptedLayer]:
        return [layer for layer in self.layout if str(self.layout.plain(layer.weight)).startswith(self.backbone.prefix)]


def plan_adapter(checkpoint: Checkpoint, request: Request) -> Plan:
    """The adapters as one PEFT adapter, with the scale and rank of every layer.

    Raises:
        CheckpointError: If the checkpoint keeps no adapters, their base is unknown or another, or PEFT cannot
            express them.
    """
    source = _source(checkpoint, request)
    base_name = _base_name(checkpoint, request.base)
    base = open_state(model_path(base_name))
    _check_base(source, base, base_name)
    made = {name: _Site(name, layer, source) for name, layer in source.layers.items()}
    _check_expressible(source.where, made)
    tensors: dict[str, Planned] = {}
    shifted = any(site.shifted for site in made.values())
    for site in made.values():
        tensors |= site.tensors(shifted=shifted)
    tensors |= dict(_copied(source))
    config = _config(source, made, base_name)
    plan = Plan(
        recast(tensors, request.dtype),
        stem="adapter_model",
        sharded=False,
        texts={"adapter_config.json": json.dumps(config, indent=2, sort_keys=True)},
        read_from=base.files(),
        check=lambda directory: _check_reads(directory, made),
    )
    outside = {key: t for key, t in source.state.items() if not key.startswith(source.backbone.prefix)}
    return with_head(plan, checkpoint, outside, request.dtype)


def _source(checkpoint: Checkpoint, request: Request) -> _Source:
    where = str(checkpoint.path)
    if not checkpoint.is_universal:
        raise CheckpointError(
            f"{where} is no universal checkpoint and tells of no adapters; {_WHOLE} or `safetensors`."
        )
    backbone = choose_backbone(checkpoint, request.backbone)
    saved, layout = checkpoint.sidecar(), checkpoint.layout()
    source = _Source(where, backbone, make_architecture(backbone, where), checkpoint.state(), saved, layout)
    if not source.layers:
        raise CheckpointError(f"{where}: {backbone.name or 'the model'} has no low-rank adapters; {_WHOLE}.")
    lost = [key for layer in source.layers.values() for key in layer.tensors() if _is_lost(key, source)]
    if lost:
        raise CheckpointError(
            f"{where} keeps no factors (side-car {checkpoint.meta.get('sidecar', 'none')!r}, {lost[0]} is missing); "
            f"{_WHOLE}, or train with `sidecar: factors`."
        )
    return source


def _is_lost(key: str, source: _Source) -> bool:
    plain = source.layout.plain(key)
    return key not in source.saved.adapters if plain is None else plain not in source.state


def _base_name(checkpoint: Checkpoint, base: str | None) -> str:
    spec = base if base is not None else checkpoint.hyper_parameters().get("model")
    if isinstance(spec, str) and spec:
        return spec
    what = "started from random weights" if isinstance(spec, Mapping) else "does not say what base it started from"
    raise CheckpointError(f"{checkpoint.path} {what}; pass `--base DIR`, or {_WHOLE} and use that as the base.")


def _check_base(source: _Source, base: StateReader, base_name: str) -> None:
    """Refuse a base on which the adapters would give another function.

    Raises:
        CheckpointError: If a tensor of the base is not the one that the run had under its adapters.
    """
    known = _names_in_base(source.model, base)
    differing, compared = [], 0
    for name, tensor, slack in _base_tensors(source):
        if name not in known and any(name.startswith(f"{copy}.") for copy in source.copies):
            continue  # a new head, which the adapter holds whole
        compared += 1
        theirs = base.read(known[name]) if name in known else None
        if theirs is None or not _fits(tensor, theirs, slack):
            differing.append(name)
    if differing:
        raise CheckpointError(
            f"{source.where}: its adapters do not belong to {base_name}: {len(differing)} of {compared} base tensors "
            f"differ, first {differing[0]!r} (resumed from another rank, PiSSA or OLoRA, or another base); "
            f"{_WHOLE} and use that as the base."
        )


def _names_in_base(model: PreTrainedModel, base: StateReader) -> dict[str, str]:
    """Names of the model to those of the base's files, which may be of a class with another prefix."""
    names = base.keys()
    current = dict(zip(current_names(names, model), names, strict=True))
    shapes = {name: torch.empty(base.info(theirs).shape, device="meta") for name, theirs in current.items()}
    known = dict(zip(align(shapes, parameter_shapes(model)), current.values(), strict=True))
    for duplicate, original in tied_names(model).items():  # a file may hold either
        if duplicate in known:
            known.setdefault(original, known[duplicate])
    return known


def _fits(ours: Tensor, theirs: Tensor, slack: Tensor | None) -> bool:
    """Whether the base's tensor is the one that the run had, in whatever dtype it loaded it."""
    if ours.shape != theirs.shape:
        return False
    if slack is None:
        return torch.equal(ours, theirs.to(ours.dtype))
    rounded = (theirs, *(theirs.to(dtype) for dtype in (torch.bfloat16, torch.float16) if theirs.itemsize > 2))
    return any(bool(((ours.double() - candidate.double()).abs() <= slack).all()) for candidate in rounded)


def _base_tensors(source: _Source) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Name, tensor under the adapters, and how far rounding may have moved it where it was computed back."""
    layers, copies, prefix = source.layers, source.copies, source.backbone.prefix
    inner = {n.removeprefix(prefix): t for n, t in source.state.items() if n.startswith(prefix)}
    for name, tensor in as_stored(inner, source.model, source.where).items():
        path, _, leaf = name.rpartition(".")
        copied = next((copy for copy in copies if name.startswith(f"{copy}.")), None)
        if path in layers and leaf in ("weight", "bias"):
            yield name, *_before(layers[path], leaf, source)
        elif copied is not None:
            rest = name.removeprefix(copied)
            yield name, source.saved.adapters.get(f"{copies[copied].name}.original_module{rest}", tensor), None
        else:
            yield name, tensor, None


@torch.no_grad()
def _before(layer: AdaptedLayer, leaf: str, source: _Source) -> tuple[Tensor, Tensor | None]:
    """The layer's tensor before folding, exact where the side-car has it."""
    raw = layer.weight if leaf == "weight" else layer.bias
    merged = source.state[str(source.layout.plain(raw))]
    if leaf == "bias" and not any(part.shift for part in layer.parts):
        return merged, None
    base = _unfolded(layer, source)[raw]
    if raw in source.saved.base:
        return base, None
    moved = merged.double()
    if layer.magnitude and leaf == "weight":
        factor = source.saved.norms[layer.name] / source.saved.adapters[layer.magnitude].double().flatten()
        moved = scale_rows(merged, factor.abs(), transposed=layer.transposed)
    precision = torch.finfo(merged.dtype).eps
    return base, precision * (moved.abs() + base.double().abs()) + torch.finfo(torch.float32).tiny


def _unfolded(layer: AdaptedLayer, source: _Source) -> dict[str, Tensor]:
    """The layer's tensors by raw keys, as the run had them.

    Raises:
        CheckpointError: If the merged weight is no longer what base and factors give.
    """
    current = {key: source.saved.adapters[key] for key in layer.tensors() if key in source.saved.adapters}
    plain = {}
    for key in (layer.weight, layer.bias):
        name = str(source.layout.plain(key))
        if name in source.state:
            plain[name] = current[key] = source.state[name]
    alone = Layout([layer], source.layout.containers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that weights were changed is an error here
        unfolded = unfold_state(plain, current, alone, source.saved, where=source.where)
    if layer.name not in unfolded.restored:
        raise CheckpointError(
            f"{source.where}: the weights of {layer.name} were changed after saving, so its adapter no longer gives "
            f"them; {_WHOLE}."
        )
    return unfolded.state


class _Site:
    """One adapted layer in PEFT's terms.

    Parts that PEFT has no form for, such as a fused projection's or several active adapters, become one adapter
    whose rank is their sum, with the scales inside ``B``.
    """

    def __init__(self, name: str, layer: AdaptedLayer, source: _Source) -> None:
        self.name, self.layer, self._saved = name, layer, source.saved
        self.module: nn.Module = source.model.get_submodule(name)
        self._weight = source.state[str(source.layout.plain(layer.weight))]
        groups: dict[tuple[str, tuple[int, int] | None], list[LowRankPart]] = {}
        for part in layer.parts:
            groups.setdefault((part.A, part.A_rows), []).append(part)
        self._groups = list(groups.values())
        self._alone = len(layer.parts) == 1 and layer.parts[0].B_rows is None and layer.parts[0].A_rows is None
        self.rank = sum(parts[0].rank for parts in self._groups)
        self.scale = layer.parts[0].scale if self._alone else 1.0

    @property
    def embedding(self) -> bool:
        """Whether PEFT has an adapter of its own kind for this layer."""
        return isinstance(self.module, nn.Embedding)

    @property
    def turned(self) -> bool:
        """Whether the weight is stored as ``(d_in, d_out)``."""
        return isinstance(self.module, Conv1D)

    @property
    def shifted(self) -> bool:
        """Whether a bias of the up projection was trained."""
        return any(part.shift for part in self.layer.parts)

    def tensors(self, *, shifted: bool) -> dict[str, Planned]:
        """The tensors of the adapter file; with a bias everywhere if there is one anywhere."""
        down, up = ("lora_embedding_A", "lora_embedding_B") if self.embedding else ("lora_A.weight", "lora_B.weight")
        A, B = self._factors()
        named = {down: A, up: B}
        if shifted:
            named["lora_B.bias"] = self._shift(B)
        if self.layer.magnitude:
            named["lora_magnitude_vector"] = keep(self._saved.adapters[self.layer.magnitude])
        return {f"{PREFIX}{self.name}.{key}": planned for key, planned in named.items()}

    def _factors(self) -> tuple[Planned, Planned]:
        if self._alone:
            return keep(self._down(self.layer.parts[0])), keep(self._saved.adapters[self.layer.parts[0].B])
        first, up = self._down(self.layer.parts[0]), self._saved.adapters[self.layer.parts[0].B]
        outputs = self._weight.shape[1 if self.layer.transposed else 0]
        shapes = (self.rank, *first.shape[1:]), (outputs, self.rank, *up.shape[2:])
        makers = (self._stacked_A, lambda: self._stacked_B(shapes[1]))
        A, B = (Planned(TensorInfo(s, torch.float32), m) for s, m in zip(shapes, makers, strict=True))
        return A, B

    def _down(self, part: LowRankPart) -> Tensor:
        A = self._saved.adapters[part.A]
        A = A.T if part.A_turned else A
        return A if part.A_rows is None else A[slice(*part.A_rows)]

    def _stacked_A(self) -> Tensor:
        return torch.cat([self._down(parts[0]).float() for parts in self._groups])

    def _stacked_B(self, shape: tuple[int, ...]) -> Tensor:
        B = torch.zeros(shape)
        column = 0
        for parts in self._groups:
            for part in parts:
                rows = self._saved.adapters[part.B]
                rows = rows if part.B_rows is None else rows[slice(*part.B_rows)]
                B[part.start : part.start + len(rows), column : column + part.rank] = part.scale * rows.float()
            column += parts[0].rank
        return B

    def _shift(self, up: Planned) -> Planned:
        shifts = [(part.scale / self.scale, part.shift) for part in self.layer.parts if part.shift]
        if len(shifts) == 1 and self._alone:
            return keep(self._saved.adapters[shifts[0][1]])

        def total() -> Tensor:
            zero = torch.zeros(up.info.shape[0])
            return sum((factor * self._saved.adapters[key].float() for factor, key in shifts), start=zero)

        return Planned(TensorInfo(up.info.shape[:1], torch.float32), total)


def _check_expressible(where: str, made: Mapping[str, _Site]) -> None:
    """Refuse what one PEFT configuration cannot say of all layers at once."""
    sites = list(made.values())
    plain = [site.name for site in sites if not site.layer.magnitude]
    if plain and len(plain) < len(sites):
        raise CheckpointError(f"{where}: PEFT has DoRA on all layers or none, and {plain[0]} has none; {_WHOLE}.")
    embeddings = [site.name for site in sites if site.embedding]
    if embeddings and any(site.shifted for site in sites):
        raise CheckpointError(f"{where}: PEFT has no `lora_bias` beside the embedding {embeddings[0]}; {_WHOLE}.")
    unknown = [site.name for site in sites if site.layer.transposed and not (site.embedding or site.turned)]
    if unknown:
        raise CheckpointError(f"{where}: {unknown[0]} is stored the other way round than PEFT expects; {_WHOLE}.")


def _copied(source: _Source) -> Iterator[tuple[str, Planned]]:
    """The layers that were trained whole."""
    for name in source.copies:
        inside = f"{source.backbone.prefix}{name}."
        for key, tensor in source.state.items():
            if key.startswith(inside):
                yield f"{PREFIX}{key.removeprefix(source.backbone.prefix)}", keep(tensor)


def _config(source: _Source, made: Mapping[str, _Site], base_name: str) -> dict[str, Any]:
    usual, ranks = peft_ranks({name: site.rank for name, site in made.items()})
    alphas = {name: _whole(site.scale * site.rank) for name, site in made.items()}
    alpha = max(alphas.values(), key=list(alphas.values()).count)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if type(source.model).__name__.endswith(_CAUSAL) else None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": usual,
        "rank_pattern": ranks,
        "lora_alpha": alpha,
        "alpha_pattern": {f"^{re.escape(name)}": value for name, value in alphas.items() if value != alpha},
        "target_modules": peft_targets(made, source.model),
        "modules_to_save": sorted(source.copies) or None,
        "lora_dropout": 0.0,
        "fan_in_fan_out": any(site.turned for site in made.values()),
        "bias": "none",
        "lora_bias": any(site.shifted for site in made.values()),
        "use_rslora": False,
        "use_dora": any(site.layer.magnitude for site in made.values()),
        "init_lora_weights": True,
    }


def _whole(value: float) -> float | int:
    return round(value) if abs(value - round(value)) < 1e-9 * abs(value) else value


def _check_reads(directory: Path, made: Mapping[str, _Site]) -> None:
    """Read the directory as a merge does, and compare the scale of every layer."""
    adapter = Adapter(directory)
    wrong = [name for name, site in made.items() if abs(adapter.config.scale(name) - site.scale) > 1e-9 * site.scale]
    if wrong:
        raise CheckpointError(f"{directory}: {wrong[0]} has another scale than in the checkpoint; {_WHOLE}.")
