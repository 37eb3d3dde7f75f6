"""What the contract suite merges: every registered method with gentle parameters, and small sources for it."""

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lit_wsl.merging.method import MergeMethod, all_methods
from lit_wsl.state.adapters import write_adapter
from lit_wsl.tensors.lora import LoraFactors, fold
from tests.merging.build import save_state

REQUIRED: dict[str, dict[str, object]] = {}
"""Parameters of the methods that have no default for them."""

STILL = {"drop_rate": 0.0, "epsilon": 0.0}
"""Values of parameters that leave a random method nothing to choose."""

METHODS: dict[str, type[MergeMethod]] = {cls.name: cls for cls in all_methods().values()}
"""Every method once, by its first name."""

SHAPES = {
    "layers.0.weight": (24, 16),
    "layers.0.bias": (24,),
    "layers.1.weight": (6, 5, 3),
    "table.weight": (80, 2),
    "scalar": (),
}
"""A matrix, a vector, a kernel, a table far too tall for a matrix, a number."""


def params_of(name: str) -> dict[str, object]:
    """Default parameters, and those that have no default."""
    return dict(REQUIRED.get(name, {}))


def still_params(name: str) -> dict[str, object]:
    """The same without chance."""
    fields = {f.name for f in dataclasses.fields(METHODS[name])}
    chance = {"density": 1.0} if "drop_rate" not in fields else {}
    still = {**STILL, **chance} if "seed" in fields else {}
    return {**params_of(name), **{key: value for key, value in still.items() if key in fields}}


def count_of(name: str, wanted: int = 3) -> int:
    """As many sources as wanted, within what the method merges."""
    cls = METHODS[name]
    return max(cls.least, wanted if cls.most is None else min(wanted, cls.most))


def vectors(count: int, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Random task vectors, shape ``(count, *shape)``, and a base."""
    return (0.3 * torch.randn(count, *shape)).to(dtype), torch.randn(shape).to(dtype)


def save_models(path: Path, count: int, dtype: torch.dtype = torch.float32) -> tuple[str, list[str]]:
    """A base and tuned models of it."""
    torch.manual_seed(5)
    base = {name: torch.randn(shape).to(dtype) for name, shape in SHAPES.items()}
    files = []
    for number in range(count):
        tuned = {name: (t.float() + 0.3 * torch.randn(t.shape)).to(dtype) for name, t in base.items()}
        files.append(str(save_state(path / f"tuned{number}.safetensors", tuned)))
    return str(save_state(path / "base.safetensors", base)), files


def save_adapters(path: Path, base: str, count: int) -> tuple[list[str], list[str]]:
    """Adapters of rank 3 on the matrix and the kernel of a base, and the same updates as partial models."""
    torch.manual_seed(6)
    start = load_file(base)
    adapters, folded = [], []
    for number in range(count):
        factors = {
            name: LoraFactors(torch.randn(3, start[name][0].numel()), torch.randn(len(start[name]), 3), 0.2, shape)
            for name, shape in SHAPES.items()
            if name.startswith("layers") and len(shape) > 1
        }
        directory = path / f"adapter{number}"
        directory.mkdir()
        updates = {n.removesuffix(".weight"): (f, False) for n, f in factors.items()}
        write_adapter(directory, updates, task_type=None)
        adapters.append(str(directory))
        tuned = {name: start[name] + fold(f) for name, f in factors.items()}
        folded.append(str(save_state(path / f"folded{number}.safetensors", tuned)))
    return adapters, folded
