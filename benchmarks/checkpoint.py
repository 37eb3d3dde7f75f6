"""Saving and loading a universal checkpoint, against ``torch.save`` of the same bytes and Lightning's own file.

python -m benchmarks.checkpoint                # 0.5B, LoRA of rank 16 on every linear layer
python -m benchmarks.checkpoint --size tiny    # seconds: does the script itself work?
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from transformers import Qwen2Config, Qwen2ForCausalLM

import lit_wsl
from benchmarks.inputs import SIZES
from benchmarks.measure import machine, sampling
from benchmarks.provenance import provenance
from lit_wsl.models.lora import LoraSpec, inject_lora
from lit_wsl.models.universal.fold import MergedDtype
from lit_wsl.models.universal.sidecar import Kind
from lit_wsl.training.checkpoint_io import AtomicCheckpointIO
from lit_wsl.training.universal import UniversalCheckpoint, make_universal

SAMPLE_SECONDS = 0.002
COLUMNS = ("work", "wall s", "peak anonymous GB", "file GB", "× torch.save")


class Module(UniversalCheckpoint):
    """A language model with LoRA whose factors are not zero."""

    def __init__(self, size: str, rank: int) -> None:
        super().__init__()
        config = {key: value for key, value in SIZES[size].config().items() if key != "architectures"}
        with torch.device("meta"):
            model = Qwen2ForCausalLM(Qwen2Config(**config)).to(torch.bfloat16)
        self.model = model.to_empty(device="cpu")
        self.model.tie_weights()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.normal_(std=0.02)
        inject_lora(self.model, LoraSpec(rank=rank, target_modules="all-linear", init_lora_weights=False))


@dataclass(frozen=True)
class Figures:
    """Median time of several runs, and the highest memory of any."""

    wall: float
    peak_anonymous: int
    file_bytes: int


def main() -> None:
    """Measure, print the table, write the figures."""
    options = _options()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = provenance("checkpoint")
    results |= {"machine": machine(), "torch": torch.__version__, "size": options.size}
    results |= {"runs": options.runs, "threads": options.threads, "rows": run(options.size, options.work, options.runs)}
    print_table(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def run(size: str, work: Path, runs: int) -> dict[str, dict[str, Any]]:
    """Every work in turn, several times."""
    module, path = Module(size, rank=16), work / "benchmark.ckpt"
    whole = _universal(module, "exact")
    torch.save(whole, work / "whole.ckpt")
    other = Module(size, rank=32)
    programs: dict[str, Callable[[], Any]] = {
        "torch.save of the same bytes": lambda: torch.save(whole, path),
        "the same, synced": lambda: _synced(whole, path),
        "Lightning's own file of the same bytes": lambda: TorchCheckpointIO().save_checkpoint(whole, str(path)),
        "Lightning's own, not merged": lambda: TorchCheckpointIO().save_checkpoint(
            {"state_dict": module.state_dict()}, str(path)
        ),
        "fold alone": lambda: _universal(module, "exact"),
        **{
            f"universal, side-car {kind}": lambda kind=kind: AtomicCheckpointIO().save_checkpoint(
                _universal(module, kind), path
            )
            for kind in ("exact", "factors", "none")
        },
        "universal, merged dtype of the base": lambda: AtomicCheckpointIO().save_checkpoint(
            _universal(module, "exact", "base"), path
        ),
        "load: torch.load": lambda: torch.load(work / "whole.ckpt", weights_only=True),
        "load: same configuration": lambda: lit_wsl.load_universal(module, work / "whole.ckpt"),
        "load: into rank 32": lambda: lit_wsl.load_universal(other, work / "whole.ckpt"),
    }
    taken: dict[str, list[Figures]] = {name: [] for name in programs}
    for _ in range(runs):
        for name, program in programs.items():
            taken[name].append(_measured(program, path))
            path.unlink(missing_ok=True)
    return {
        name: asdict(
            Figures(
                statistics.median(one.wall for one in figures),
                max(one.peak_anonymous for one in figures),
                figures[0].file_bytes,
            )
        )
        for name, figures in taken.items()
    }


def _universal(module: Module, kind: Kind, merged_dtype: MergedDtype = "auto") -> dict[str, Any]:
    checkpoint: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "pytorch-lightning_version": lightning.__version__,
    }
    make_universal(module, checkpoint, kind, merged_dtype)
    return checkpoint


def _synced(content: dict[str, Any], path: Path) -> None:
    torch.save(content, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _measured(program: Callable[[], Any], path: Path) -> Figures:
    with _peak() as peak:
        began = time.perf_counter()
        kept = program()
        wall = time.perf_counter() - began
    del kept
    return Figures(wall, peak[0], path.stat().st_size if path.exists() else 0)


@contextmanager
def _peak() -> Iterator[list[int]]:
    """Most anonymous memory beyond that at the start."""
    peak, start = [0], _anonymous()

    def sample() -> None:
        peak[0] = max(peak[0], _anonymous() - start)

    with sampling(sample, SAMPLE_SECONDS):
        yield peak


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def print_table(results: dict[str, Any]) -> None:
    """Print the machine in a line, then one line a work."""
    where = results["machine"]
    print(
        f"{where['cpu']}, {where['cores']} cores, load {where['load']:.1f}; torch {results['torch']}; "
        f"{results['size']}; median of {results['runs']}, threads: {results['threads']}.\n"
    )
    floor = results["rows"]["torch.save of the same bytes"]["wall"]
    print(f"| {' | '.join(COLUMNS)} |\n| {' | '.join(['---'] * len(COLUMNS))} |")
    for name, one in results["rows"].items():
        sizes = [f"{one[key] / 1e9:.2f}" for key in ("peak_anonymous", "file_bytes")]
        print(f"| {name} | {one['wall']:.2f} | {' | '.join(sizes)} | {one['wall'] / floor:.2f} |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="0.5B")
    parser.add_argument("--work", type=Path, default=Path("~/.cache/lit_wsl/benchmarks").expanduser())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
