"""Small checkpoints on disk, whole or in shards, with the tensors that they hold."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

STATE = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.arange(3.0).bfloat16(),
    "b.weight": torch.arange(6),
    "b.scale": torch.tensor(2.5),
}
PARTS = [["a.weight", "b.scale"], ["a.bias"], ["b.weight"]]


def save_single(folder: Path, name: str = "model.safetensors") -> Path:
    """One file of all tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        save_file(STATE, folder / name, {"format": "pt", "by": "hand"})
    else:
        torch.save(STATE, folder / name)
    return folder / name


def save_shards(folder: Path, suffix: str = "safetensors", prefix: str = "") -> Path:
    """Three shards, an index that says more than it must, and a configuration; returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for number, names in enumerate(PARTS, start=1):
        file = f"{stem}-{number:05d}-of-00003.{suffix}"
        part = {prefix + name: STATE[name] for name in names}
        if suffix == "safetensors":
            save_file(part, folder / file, {"format": "pt", "part": str(number)})
        else:
            torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1, "by": "hand"}, "weight_map": weight_map}))
    (folder / "config.json").write_text('{"hidden_size": 4}')
    return index


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """The same names, dtypes and bytes."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
