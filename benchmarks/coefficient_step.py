"""One update of merge coefficients, every implementation in turn, against plain training steps of the same batches.

A stack of linear layers with adapters on each; an update has a batch of every task. Run
``python -m benchmarks.coefficient_step --help`` from the root of the repository.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import machine
from benchmarks.provenance import provenance
from lit_wsl.learning.live.deltas import ParameterDeltas
from lit_wsl.learning.live.engines import ENGINES
from lit_wsl.tensors.lora import LoraFactors

SEEDS = {"model": 1, "adapters": 2, "batches": 3}


class Case:
    """A model, its adapters, and a batch of every task.

    Args:
        blocks: Blocks of two linear layers each.
        width: Inputs and outputs of a block; its inner width is twice that.
        sources: Adapters, and tasks.
        rank: Of an adapter.
        tokens: Of a task's batch.
    """

    def __init__(self, blocks: int, width: int, sources: int, rank: int, tokens: int) -> None:
        torch.manual_seed(SEEDS["model"])
        layers: list[nn.Module] = []
        for _ in range(blocks):
            layers += [nn.Linear(width, 2 * width, bias=False), nn.GELU(), nn.Linear(2 * width, width, bias=False)]
        self.model, self.sources = nn.Sequential(*layers), sources
        weights = {
            f"{name}.weight": one.weight for name, one in self.model.named_modules() if isinstance(one, nn.Linear)
        }
        torch.manual_seed(SEEDS["adapters"])
        self.deltas = {
            name: ParameterDeltas(name, weight.shape, sources, {s: _factors(weight, rank) for s in range(sources)})
            for name, weight in weights.items()
        }
        torch.manual_seed(SEEDS["batches"])
        self.batches = [torch.randn(tokens, width) for _ in range(sources)]
        self.bytes = sum(weight.nbytes for weight in weights.values())

    def loss(self, batch: Tensor) -> Tensor:
        """A loss whose derivative is not trivial."""
        return self.model(batch).square().mean()


def _factors(weight: Tensor, rank: int) -> LoraFactors:
    rows, columns = weight.shape
    right, left = torch.randn(rank, columns) / columns**0.5, torch.randn(rows, rank) * 0.1 / rank**0.5
    return LoraFactors(right, left, 1.0, tuple(weight.shape))


def plain_step(case: Case, *, train: bool) -> Callable[[], list[Tensor]]:
    """Forward and backward of all batches: by the weights too, or by the inputs alone."""

    def step() -> list[Tensor]:
        case.model.requires_grad_(train)
        for batch in case.batches:
            given = batch.requires_grad_(not train)
            case.loss(given).backward()
            batch.grad = None
        case.model.zero_grad(set_to_none=True)
        return []

    return step


def engine_step(case: Case, name: str) -> tuple[Callable[[], list[Tensor]], Callable[[], None]]:
    """An update's derivatives by one implementation, as learners take them; and what ends it."""
    rows = dict.fromkeys(case.deltas, 0)
    engine = ENGINES[name](case.model, case.deltas, rows)
    count = 0

    def step() -> list[Tensor]:
        nonlocal count
        count += 1  # other coefficients at each update, as in learning
        total = torch.zeros(1, case.sources)
        leaf = torch.full((1, case.sources), 0.3 + 1e-6 * count, requires_grad=True)
        for batch in case.batches:
            engine.merge(leaf)
            (found,) = torch.autograd.grad(case.loss(batch.detach()), leaf)
            total += found
        return [total]

    return step, engine.release


def kept_bytes(case: Case, name: str) -> int:
    """Bytes that one task's forward pass keeps for its backward pass, parameters and coefficients aside."""
    rows = dict.fromkeys(case.deltas, 0)
    with ENGINES[name](case.model, case.deltas, rows) as engine:
        leaf = torch.full((1, case.sources), 0.3, requires_grad=True)
        engine.merge(leaf)
        own = {tensor.data_ptr() for tensor in (leaf, *case.model.parameters())}
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            case.loss(case.batches[0].detach()).backward()
        return sum(seen.values())


def measured(case: Case, runs: int) -> list[dict[str, Any]]:
    """Milliseconds of every way, one after another in each run; the median, and what derivatives differ by."""
    times: dict[str, list[float]] = {}
    gradients: dict[str, Tensor] = {}
    for _ in range(runs):
        ways: dict[str, Any] = {"plain training": (plain_step(case, train=True), lambda: None)}
        ways["plain, weights frozen"] = (plain_step(case, train=False), lambda: None)
        for name in [*ways, *ENGINES]:
            step, end = ways[name] if name in ways else engine_step(case, name)
            step()  # buffers and caches
            began = time.perf_counter()
            found = step()
            times.setdefault(name, []).append(1000 * (time.perf_counter() - began))
            end()
            if found:
                gradients[name] = found[0]
    reference = gradients["functional_clone_legacy"]
    floor = statistics.median(times["plain training"])
    rows = []
    for name, taken in times.items():
        middle = statistics.median(taken)
        row: dict[str, Any] = {"way": name, "ms": round(middle, 1), "of plain training": round(middle / floor, 2)}
        if name in gradients:
            row["kept MB"] = round(kept_bytes(case, name) / 1e6, 1)
            row["gradient"] = f"{float((gradients[name] - reference).norm() / reference.norm()):.0e}"
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coefficient_step", description=__doc__)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--sources", type=int, default=8, help="adapters, and tasks (default %(default)s)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="of each task's batch (default %(default)s)")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    case = Case(options.blocks, options.width, options.sources, options.rank, options.tokens)
    rows = measured(case, options.runs)
    if options.json:
        results = {
            **provenance("coefficient_step", arguments),
            "machine": machine(),
            "runs": options.runs,
            "rows": rows,
        }
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    columns = ["way", "ms", "of plain training", "kept MB", "gradient"]
    for line in (columns, ["---"] * len(columns), *([str(row.get(name, "–")) for name in columns] for row in rows)):
        print(f"| {' | '.join(line)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
