"""What an export will write: every tensor with its source, and the files beside them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lit_wsl.errors import CheckpointError
from lit_wsl.models.checkpoint import Checkpoint
from lit_wsl.state.dtypes import float_dtype, is_mergeable
from lit_wsl.state.reader import TensorInfo

Format = Literal["hf", "adapter", "safetensors"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_HEAD = "head."


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    format: Format = "hf"
    base: str | None = None
    backbone: str | None = None
    dtype: Dtype = "auto"


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written."""

    info: TensorInfo
    make: Callable[[], Tensor]
    """Gives it when its turn comes; a view of the source where that is enough."""


def _nothing(directory: Path) -> None:
    """No check beyond that of every tensor."""


@dataclass(frozen=True)
class Plan:
    """Everything that an output directory will hold."""

    tensors: dict[str, Planned]
    stem: str = "model"
    sharded: bool = True
    """Whether readers of this format know shards."""
    texts: dict[str, str] = field(default_factory=dict)
    """File name to content; goes over what is carried."""
    defaults: dict[str, str] = field(default_factory=dict)
    """The same, but only where nothing of that name was carried."""
    carried: Path | None = None
    """Model directory whose configuration and tokenizer files come along."""
    head: dict[str, Planned] = field(default_factory=dict)
    head_metadata: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """Entries of the state dict that the format has no place for."""
    read_from: list[Path] = field(default_factory=list)
    """Files that the output must not replace."""
    check: Callable[[Path], None] = _nothing
    """Reads the finished directory the way its users do."""


def keep(tensor: Tensor) -> Planned:
    """A tensor that is written as it is."""
    return Planned(TensorInfo(tuple(tensor.shape), tensor.dtype), lambda: tensor)


def recast(tensors: Mapping[str, Planned], dtype: Dtype) -> dict[str, Planned]:
    """The same tensors with floating-point entries stored in ``dtype``."""
    if dtype == "auto":
        return dict(tensors)
    wanted = float_dtype(dtype)
    return {
        name: _cast(name, planned, wanted) if is_mergeable(planned.info.dtype) else planned
        for name, planned in tensors.items()
    }


def _cast(name: str, planned: Planned, dtype: torch.dtype) -> Planned:
    def make() -> Tensor:
        tensor = planned.make()
        narrow = tensor.to(dtype)
        if dtype == torch.float16 and not torch.equal(narrow.isfinite(), tensor.isfinite()):
            raise CheckpointError(f"Entries of {name!r} do not fit float16; pass `--dtype bfloat16` or float32.")
        return narrow

    return Planned(replace(planned.info, dtype=dtype), make)


def with_head(plan: Plan, source: Checkpoint, outside: Mapping[str, Tensor], dtype: Dtype) -> Plan:
    """The plan with the task head beside the backbone, if the module has one under ``head``."""
    head = {name.removeprefix(_HEAD): keep(t) for name, t in outside.items() if name.startswith(_HEAD)}
    values = source.hyper_parameters()
    metadata = {key: json.dumps(values[key], ensure_ascii=False) for key in ("labels", "prompts") if values.get(key)}
    if isinstance(values.get("head"), str):
        metadata["head"] = values["head"]
    return replace(
        plan,
        head=recast(head, dtype),
        head_metadata=metadata,
        left_out=[name for name in outside if not name.startswith(_HEAD)],
    )


def is_head(name: str) -> bool:
    """Whether a name of the module's state dict belongs to its task head."""
    return name.startswith(_HEAD)
