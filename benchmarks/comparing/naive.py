"""The naive way, in a process of its own: all tensors of both models first, then each layer in torch and in NumPy.

python -m benchmarks.comparing.naive BASE FINETUNED
"""

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

THRESHOLD = 1e-6
COLLECTED = 50
"""Layers between two collections of garbage."""


def main() -> None:
    """Compare two models and print seconds and figures."""
    began = time.perf_counter()
    base, tuned = (load(Path(argument)) for argument in sys.argv[1:])
    figures = compare(base, tuned)
    print(json.dumps({"seconds": time.perf_counter() - began, "figures": figures}))


def load(directory: Path) -> dict[str, Tensor]:
    """Every tensor of every shard."""
    weights = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                weights[name] = file.get_tensor(name)
    return weights


def compare(base: dict[str, Tensor], tuned: dict[str, Tensor]) -> dict[str, list[float]]:
    """Mean, largest, relative difference and share of changed entries by name; twice, and the means must agree."""
    found = {}
    for at, name in enumerate(sorted(base.keys() & tuned.keys())):
        figures = in_torch(base[name], tuned[name])
        again = in_numpy(base[name], tuned[name])
        assert abs(figures[0] - again[0]) < 1e-6, name
        found[name] = figures
        if at % COLLECTED == 0:
            gc.collect()
    return found


def in_torch(base: Tensor, tuned: Tensor) -> list[float]:
    """The figures of one tensor."""
    before, after = base.float(), tuned.float()
    delta = torch.abs(after - before)
    relative = torch.norm(after - before) / (torch.norm(before) + 1e-10)
    changed = (delta > THRESHOLD).float().mean()
    return [float(x) for x in (delta.mean(), delta.max(), relative, changed)]


def in_numpy(base: Tensor, tuned: Tensor) -> list[float]:
    """The same in NumPy."""
    before: Any = base.float().numpy()
    after: Any = tuned.float().numpy()
    delta = np.abs(after - before)
    relative = np.linalg.norm(after - before) / (np.linalg.norm(before) + 1e-10)
    changed = (delta > THRESHOLD).mean()
    return [float(x) for x in (delta.mean(), delta.max(), relative, changed)]


if __name__ == "__main__":
    main()
