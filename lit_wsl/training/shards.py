"""Sharded checkpoints: directories that the processes of a run wrote together, read back in one piece."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp

from lit_wsl.models.sharded import read_metadata
from lit_wsl.models.universal.fold import fold_state
from lit_wsl.models.universal.layout import Layout
from lit_wsl.models.universal.sidecar import SIDECAR_KEY, layout_of, pack, unpack
from lit_wsl.state.formats import strip_wrappers
from lit_wsl.training.resume import ParameterNames, names_in_sidecar
from lit_wsl.training.shard_index import ShardReader, told_as_damage

_MODEL = "state_dict."
_OPTIMIZER = re.compile(r"^optimizer_(\d+)\.state\.(.+)\.([^.]+)$")


def read_shards(path: Path) -> dict[str, Any]:
    """A sharded checkpoint as if one process had written it: plain weights, side-car, numbered optimizer states.

    Every process may call it by itself; the whole model is then in its memory.

    Raises:
        CheckpointError: If a file is missing, damaged or would run code, or a merged weight is not finite.
    """
    content = read_metadata(path)
    tensors = _read_tensors(path)
    raw = {key.removeprefix(_MODEL): t for key, t in tensors.items() if key.startswith(_MODEL)}
    meta, layout = content.get(SIDECAR_KEY), layout_of(unpack(content))
    if meta is not None:
        folded = fold_state(raw, layout)
        content[SIDECAR_KEY] = {**meta, "layers": {"state_dict": pack(folded, layout, "exact")}}
        raw = folded.state
    content["state_dict"] = raw
    found = _optimizer_tensors(tensors, layout)
    known = names_in_sidecar(meta or {})
    content["optimizer_states"] = [
        _numbered(state, known[number] if number < len(known) else None) for number, state in sorted(found.items())
    ]
    return content


def _read_tensors(path: Path) -> dict[str, Tensor]:
    reader = ShardReader(path)
    metadata: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(info.size, dtype=info.properties.dtype)
        for key, info in metadata.items()
        if hasattr(info, "size")
    }
    with told_as_damage(path):
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def _optimizer_tensors(tensors: Mapping[str, Tensor], layout: Layout) -> dict[int, dict[str, dict[str, Tensor]]]:
    """Optimizer to parameter name to its state."""
    found: dict[int, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        if match := _OPTIMIZER.match(key):
            raw = strip_wrappers(match[2])
            found.setdefault(int(match[1]), {}).setdefault(layout.plain(raw) or raw, {})[match[3]] = tensor
    return found


def _numbered(state: Mapping[str, dict[str, Tensor]], names: ParameterNames | None) -> dict[str, Any]:
    """An optimizer's state dict, in the groups that the side-car tells of, else in one."""
    groups = names.names if names else [list(state)]
    options = names.options if names else [{}]
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group)}
    return {
        "state": {numbers[name]: values for name, values in state.items() if name in numbers},
        "param_groups": [
            {**option, "params": [numbers[name] for name in group], "param_names": group}
            for group, option in zip(groups, options, strict=True)
        ],
    }
