"""Models to measure on: a Qwen2-like base and fine-tunes of it, random but always the same."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_wsl.state.publish import published_directory
from lit_wsl.state.reader import open_state
from lit_wsl.state.safetensors import TensorInfo
from lit_wsl.state.writer import ShardedWriter

CHUNK_ENTRIES = 1 << 22
WEIGHT_STD = 0.03
CHANGED_SHARE = 0.5
CHANGE_STD = 1e-3


@dataclass(frozen=True)
class Size:
    """Dimensions of a Qwen2 model with tied embeddings."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    def config(self) -> dict[str, Any]:
        """Content of ``config.json``."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by name, in file order."""
        width, inner = self.hidden, self.intermediate
        kv = width // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, width)}
        for layer in range(self.layers):
            own = {
                "input_layernorm.weight": (width,),
                "mlp.down_proj.weight": (width, inner),
                "mlp.gate_proj.weight": (inner, width),
                "mlp.up_proj.weight": (inner, width),
                "post_attention_layernorm.weight": (width,),
                "self_attn.k_proj.bias": (kv,),
                "self_attn.k_proj.weight": (kv, width),
                "self_attn.o_proj.weight": (width, width),
                "self_attn.q_proj.bias": (width,),
                "self_attn.q_proj.weight": (width, width),
                "self_attn.v_proj.bias": (kv,),
                "self_attn.v_proj.weight": (kv, width),
            }
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
        return shapes | {"model.norm.weight": (width,)}


SIZES = {
    "tiny": Size(hidden=64, intermediate=128, layers=2, heads=4, kv_heads=2, vocabulary=512),
    "0.5B": Size(hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2, vocabulary=151_936),
}


@dataclass(frozen=True)
class Models:
    """A base and its fine-tunes on disk."""

    base: Path
    tuned: list[Path]

    @property
    def nbytes(self) -> int:
        """Size of one model's weights in bytes."""
        return (self.base / "model.safetensors").stat().st_size


def make_models(work: Path, size: str, count: int) -> Models:
    """Write a base and ``count`` fine-tunes under ``work``; what is there already stays.

    A fine-tune adds Gaussian noise of standard deviation ``CHANGE_STD`` to a random ``CHANGED_SHARE`` of all
    entries. Nothing larger than ``CHUNK_ENTRIES`` entries is ever in memory.

    Args:
        work: Directory for the models.
        size: A key of ``SIZES``.
        count: Number of fine-tunes.
    """
    home = work / f"models-{size}"
    base = home / "base"
    _write(base, SIZES[size], seed=0, entries=_base_entries)
    stored = open_state(base)

    def tuned_entries(name: str, start: int, stop: int, rng: torch.Generator) -> Tensor:
        noise = torch.randn(stop - start, generator=rng) * CHANGE_STD
        noise *= torch.rand(stop - start, generator=rng) < CHANGED_SHARE
        return noise + stored.read(name).view(-1)[start:stop]

    tuned = [home / f"tuned-{i + 1}" for i in range(count)]
    for seed, directory in enumerate(tuned, start=1):
        _write(directory, SIZES[size], seed=seed, entries=tuned_entries)
    return Models(base, tuned)


def _base_entries(name: str, start: int, stop: int, rng: torch.Generator) -> Tensor:
    return torch.randn(stop - start, generator=rng) * WEIGHT_STD + float("norm" in name)


def _write(
    directory: Path, size: Size, *, seed: int, entries: Callable[[str, int, int, torch.Generator], Tensor]
) -> None:
    """Write one model in Hugging Face layout, whole or not at all."""
    if directory.exists():
        return
    rng = torch.Generator().manual_seed(seed)
    infos: Mapping[str, TensorInfo] = {n: TensorInfo(s, torch.bfloat16) for n, s in size.shapes().items()}
    with published_directory(directory) as scratch:
        with ShardedWriter(scratch, infos) as writer:
            for name, info in infos.items():
                for start in range(0, info.numel, CHUNK_ENTRIES):
                    stop = min(start + CHUNK_ENTRIES, info.numel)
                    writer.write(name, entries(name, start, stop, rng).bfloat16(), start)
                writer.finish(name)
        (scratch / "config.json").write_text(json.dumps(size.config(), indent=2) + "\n", encoding="utf-8")
