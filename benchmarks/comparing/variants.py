"""A base and its fine-tunes to compare: dense, a merged LoRA, identical; in one file, in many, with half the layers."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.inputs import SIZES, Size, make_models
from lit_wsl.state.publish import published_directory
from lit_wsl.state.reader import StateReader, open_state
from lit_wsl.state.writer import SHARD_BYTES, ShardedWriter

RANK = 16
UPDATE_STD = 1e-3
"""Standard deviation of the entries of a merged update."""
SHARDS = 12
LINEAR = "_proj.weight"


@dataclass(frozen=True)
class Variants:
    """Models on disk."""

    base: Path
    """One file."""
    dense: Path
    """Noise on half of all entries, in every tensor; one file."""
    dense_sharded: Path
    """The same in many files."""
    merged: Path
    """A LoRA of rank ``RANK`` on every linear layer, added in float32 and rounded to bfloat16; many files."""
    identical: Path
    """The base once more, in many files."""
    half_base: Path
    """The base with half its layers."""
    half_dense: Path
    """The dense fine-tune with half its layers."""


def make_variants(work: Path, size: str) -> Variants:
    """Write the models under ``work``; what is there already stays."""
    models = make_models(work, size, 1)
    home, shape = models.base.parent, SIZES[size]
    half = replace(shape, layers=shape.layers // 2)
    base, dense = open_state(models.base), open_state(models.tuned[0])
    variants = Variants(
        models.base, models.tuned[0], *(home / name for name in ("sharded", "merged", "same", "half", "half-tuned"))
    )
    shard = max(1, models.nbytes // SHARDS)
    _write(variants.dense_sharded, shape, base, dense.read, shard)
    _write(variants.merged, shape, base, _Merged(base), shard)
    _write(variants.identical, shape, base, base.read, shard)
    _write(variants.half_base, half, base, base.read, SHARD_BYTES)
    _write(variants.half_dense, half, base, dense.read, SHARD_BYTES)
    return variants


def linear_layers(names: Iterable[str]) -> list[str]:
    """Weights of linear layers."""
    return [name for name in names if name.endswith(LINEAR)]


def weight_files(directories: Iterable[Path]) -> list[Path]:
    """All files of weights."""
    return [file for directory in directories for file in sorted(directory.glob("*.safetensors"))]


class _Merged:
    """Tensors of the base with an update of rank ``RANK`` in every linear layer."""

    def __init__(self, base: StateReader) -> None:
        self._base = base
        self._rng = torch.Generator().manual_seed(0)

    def __call__(self, name: str) -> Tensor:
        weight = self._base.read(name)
        if not name.endswith(LINEAR):
            return weight
        rows, columns = weight.shape
        B = torch.randn(rows, RANK, generator=self._rng) * (UPDATE_STD / RANK**0.5)
        A = torch.randn(RANK, columns, generator=self._rng)
        return torch.addmm(weight.float(), B, A).to(weight.dtype)


def _write(directory: Path, size: Size, like: StateReader, read: Callable[[str], Tensor], shard_bytes: int) -> None:
    """Write one model in Hugging Face layout, whole or not at all."""
    if directory.exists():
        return
    infos = {name: like.info(name) for name in size.shapes()}
    with published_directory(directory) as scratch:
        with ShardedWriter(scratch, infos, shard_bytes=shard_bytes) as writer:
            for name in infos:
                writer.write(name, read(name))
                writer.finish(name)
        (scratch / "config.json").write_text(json.dumps(size.config(), indent=2) + "\n", encoding="utf-8")
