"""What ``ThroughputLogger`` costs a training: the CPU time inside it, and whole trainings with and without it in turn.

python -m benchmarks.throughput              # a few minutes
python -m benchmarks.throughput --steps 6 --runs 1    # seconds: does the script itself work?
"""

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.measure import machine
from benchmarks.provenance import provenance
from lit_wsl.callbacks import ThroughputLogger, throughput
from lit_wsl.callbacks.stopwatch import Stopwatch

WIDTHS = {"small": 256, "medium": 768}
"""Width of the model: steps of about eight and fifty milliseconds."""
COLUMNS = ("model", "CPU ms a step", "with it", "CPU µs inside it", "share of the step")
HOOKS = ("on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end", "on_train_end")


class Module(lightning.LightningModule):
    """Three layers over an embedding of tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [part for _ in range(3) for part in (nn.Linear(width, width), nn.GELU())]
        self.model = nn.Sequential(nn.Embedding(1000, width), *layers, nn.Linear(width, 1))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """A loss."""
        return self.model(batch["input_ids"]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain descent."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Inside:
    """Sums up the CPU seconds spent in what it wraps; nested calls count once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, watched."""

        def watched(*args: Any, **settings: Any) -> Any:
            began, self._depth = time.thread_time(), self._depth + 1
            try:
                return function(*args, **settings)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.thread_time() - began

        return watched


def fit(width: int, steps: int, *callbacks: Callback) -> float:
    """Train; returns CPU seconds a step, since waiting for a busy core is no work."""
    torch.manual_seed(0)
    rows = [{"input_ids": ids, "attention_mask": (ids < 900).long()} for ids in torch.randint(1000, (8 * steps, 64))]
    settings: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, enable_model_summary=False, callbacks=list(callbacks), **settings
    )
    began = time.process_time()
    trainer.fit(Module(width), DataLoader(rows, batch_size=8))
    return (time.process_time() - began) / steps


def seconds_inside(width: int, steps: int, every_n_steps: int) -> float:
    """CPU seconds a step inside the callback and its stopwatch."""
    inside, callback = Inside(), ThroughputLogger(every_n_steps)
    for name in HOOKS:
        setattr(callback, name, inside.around(getattr(callback, name)))

    class Watched(Stopwatch):
        wait = inside.around(Stopwatch.wait)
        go_on = inside.around(Stopwatch.go_on)

    throughput.Stopwatch = Watched  # type: ignore[misc]
    try:
        fit(width, steps, callback)
    finally:
        throughput.Stopwatch = Stopwatch  # type: ignore[misc]
    return inside.seconds / steps


def run(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Each model, several times in turn."""
    rows = {}
    for name, width in WIDTHS.items():
        fit(width, options.steps)
        without, with_it, inside = [], [], []
        for _ in range(options.runs):
            without.append(fit(width, options.steps))
            with_it.append(fit(width, options.steps, ThroughputLogger(options.every)))
            inside.append(seconds_inside(width, options.steps, options.every))
        step, cost = statistics.median(without), statistics.median(inside)
        rows[name] = {"step": step, "with": statistics.median(with_it), "inside": cost, "share": cost / step}
    return rows


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    where, rows = machine(), run(options)
    results = {**provenance("throughput"), "machine": where, "runs": options.runs, "rows": rows}
    print(
        f"{where['cpu']}, {where['cores']} cores, load {where['load']:.1f}; torch {torch.__version__}; "
        f"{options.steps} steps, every_n_steps {options.every}, median of {options.runs}.\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n| {' | '.join(['---'] * len(COLUMNS))} |")
    for name, one in rows.items():
        print(
            f"| {name} | {1e3 * one['step']:.2f} | {1e3 * one['with']:.2f} | {1e6 * one['inside']:.0f} | "
            f"{one['share']:.2%} |"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
