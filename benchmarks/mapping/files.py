"""What opening a large checkpoint costs, and applying a map from file to file."""

import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.mapping.accuracy import timed
from benchmarks.mapping.speed import llama_pair
from benchmarks.measure import measure, read_cached
from lit_wsl.mapper import WeightMapper
from lit_wsl.mapper.inventory import take_inventory
from lit_wsl.state.reader import open_state
from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.vision_pairs import vit_hf, vit_timm

SMALL = 300
"""Megabytes below which models are tiny: does the script itself work?"""


def header_opening(work: Path, megabytes: int, runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds to open a checkpoint by its header, to make a mapper of it, and to map; files in the page cache."""
    source, target = _llama(megabytes)
    rows: dict[str, dict[str, float]] = {}
    for suffix, write in {".safetensors": save_file, ".pt": torch.save}.items():
        path = work / f"header{suffix}"
        write(_zeros(source), path)
        read_cached(path)
        times: dict[str, Callable[[], Any]] = {
            "header": lambda path=path: open_state(path),
            "inventory": lambda path=path: take_inventory(path),
            "from_checkpoint": lambda path=path: WeightMapper.from_checkpoint(path, target),
            "suggest_mapping": lambda path=path: WeightMapper.from_checkpoint(path, target).suggest_mapping(),
        }
        rows[suffix] = {"bytes": path.stat().st_size, "tensors": len(source.state_dict())}
        for name, program in times.items():
            rows[suffix][name] = statistics.median(timed(program, runs)[2])
        path.unlink()
    return rows


def applying(work: Path, megabytes: int, runs: int) -> list[dict[str, Any]]:
    """Seconds and memory of applying a map and its inverse, in turn with a plain copy; checks every bit."""
    with torch.device("meta"):
        pairs: dict[str, tuple[nn.Module, nn.Module, torch.dtype]] = {
            "ViT-B/16, transformers → timm": (vit_hf(megabytes < SMALL), vit_timm(megabytes < SMALL), torch.float32)
        }
    pairs["Llama, transformers → litgpt"] = (*_llama(megabytes), torch.bfloat16)
    imports = measure(_command(), {}, work / "log").peak_anonymous
    return [
        row
        for name, (source, target, dtype) in pairs.items()
        for row in _there_and_back(name, source, target, dtype, work, runs, imports)
    ]


def _there_and_back(
    name: str, source: nn.Module, target: nn.Module, dtype: torch.dtype, work: Path, runs: int, imports: int
) -> list[dict[str, Any]]:
    one, two, three, copied = (work / f"{part}.safetensors" for part in ("one", "two", "three", "copy"))
    save_file(_random(source, dtype), one)
    recipes = WeightMapper(source, target).suggest_mapping().recipes
    ways = {"there": (recipes, one, two), "back": (recipes.inverse(), two, three)}
    taken: dict[str, list[tuple[float, float, int]]] = {way: [] for way in ways}
    for _ in range(runs):
        for way, (entries, before, after) in ways.items():
            copy = _copy(before, copied)
            taken[way].append((copy, *_apply(entries, before, after, work)))
    is_exact, size, share = _is_exact(one, three), one.stat().st_size, _mapped(recipes, source)
    for path in (one, two, three, copied, work / "map.json", work / "log"):
        path.unlink()
    rows = []
    for way, figures in taken.items():
        copies, applied, peaks = zip(*figures, strict=True)
        row = {"pair": name, "way": way, "bytes": size, "mapped": share, "is_exact": is_exact}
        row |= {"copy": statistics.median(copies), "seconds": statistics.median(applied)}
        row |= {"least_copy": min(copies), "least_seconds": min(applied)}
        row["ratio"] = statistics.median(one / other for one, other in zip(applied, copies, strict=True))
        rows.append(row | {"peak_anonymous": max(peaks), "beyond_imports": max(peaks) - imports})
    return rows


def _apply(recipes: WeightMap, before: Path, after: Path, work: Path) -> tuple[float, int]:
    """Seconds without imports, and the highest anonymous memory of the process."""
    after.unlink(missing_ok=True)
    recipes.save(work / "map.json")
    figures = measure(_command(work / "map.json", before, after), {}, work / "log")
    return float((work / "log").read_text(encoding="utf-8").split()[-1]), figures.peak_anonymous


def _command(*arguments: Path) -> list[str | Path]:
    return [sys.executable, "-m", "benchmarks.mapping.apply", *arguments]


def _copy(before: Path, after: Path) -> float:
    """Seconds to copy and sync a file; the map syncs as well."""
    after.unlink(missing_ok=True)
    began = time.perf_counter()
    shutil.copyfile(before, after)
    with after.open("rb") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - began


def _is_exact(one: Path, two: Path) -> bool:
    """Whether two files hold the same bits under the same names."""
    with safe_open(one, "pt") as left, safe_open(two, "pt") as right:
        return sorted(left.keys()) == sorted(right.keys()) and all(
            torch.equal(left.get_tensor(name).view(torch.uint8), right.get_tensor(name).view(torch.uint8))
            for name in left.keys()
        )


def _mapped(recipes: WeightMap, source: nn.Module) -> float:
    return len(set(recipes.sources())) / len(source.state_dict())


def _llama(megabytes: int) -> tuple[nn.Module, nn.Module]:
    """A Llama of a few wide layers that takes that many megabytes in bfloat16; a tiny one below ``SMALL``."""
    vocabulary, width, hidden = (32000, 2048, 5504) if megabytes >= SMALL else (1000, 128, 344)
    layer = width * (2.5 * width + 3 * hidden)
    depth = (megabytes * 1e6 / 2 - 2 * vocabulary * width) / layer if megabytes >= SMALL else 2
    return llama_pair(vocabulary, width, max(1, round(depth)), hidden)


def _zeros(module: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros(tensor.shape, dtype=torch.bfloat16) for name, tensor in module.state_dict().items()}


def _random(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random bytes, so that every bit must be in its place."""
    generator = torch.Generator().manual_seed(0)

    def bits(tensor: Tensor) -> Tensor:
        count = tensor.numel() * dtype.itemsize // 2
        return torch.randint(-(2**15), 2**15, (count,), dtype=torch.int16, generator=generator).view(dtype)

    return {name: bits(tensor).reshape(tensor.shape) for name, tensor in module.state_dict().items()}
