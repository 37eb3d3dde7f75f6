"""Merging LoRA adapters: ``lit-wsl merge`` against PEFT's ``add_weighted_adapter``, whole processes in turn.

Run ``python -m benchmarks.merge_adapters --help`` from the root of the repository.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.adapters import oracles
from benchmarks.adapters.inputs import RANK, make_adapters
from benchmarks.adapters.tables import print_table
from benchmarks.comparison import comparison_parser, measure_rows
from benchmarks.inputs import SIZES, make_models
from benchmarks.measure import Figures, in_turn, machine, measure, page_cache_floor, read_cached
from benchmarks.peers import peer_environment
from benchmarks.provenance import provenance

PEFT = ["peft==0.21.2", "transformers==5.12.1"]
PEFT_IMPORTS = "from transformers import AutoModelForCausalLM; from peft import PeftModel"
PEFT_MERGE = Path(__file__).parent / "adapters" / "peft_merge.py"
OUR_IMPORTS = "import lit_wsl.merging.run"
COUNT, DENSITY = 3, 0.2


@dataclass(frozen=True)
class Row:
    """One merge, as each program spells it, and what must come out."""

    ours: list[str]
    """Options of ``lit-wsl merge``."""
    peer: str
    """PEFT's combination; those that end in ``svd``, and ``cat``, combine updates, the others factors."""
    weight: float
    """PEFT's weight of each adapter."""
    oracle: oracles.Oracle
    few: bool = False
    """Whether the adapters have four layers only."""
    peer_options: dict[str, float] = field(default_factory=dict)
    """PEFT's further arguments."""


def _sparse(oracle: Callable[..., torch.Tensor], ours: list[str], weight: float) -> dict[str, Row]:
    """A merge of sparse updates, beside PEFT's of factors and, on few layers, PEFT's of updates."""
    method, *options = ours
    command = [method, *options, "--rank", str(RANK)]
    row = partial(Row, command, weight=weight, oracle=partial(oracle, density=DENSITY))
    return {
        method: row(method, peer_options={"density": DENSITY}),
        f"{method} of 4 layers": row(f"{method}_svd", few=True, peer_options={"density": DENSITY}),
    }


_DENSITY = ["--method_params.density", str(DENSITY)]
ROWS = {
    "linear": Row(["linear"], "linear", 1 / COUNT, oracles.mean),
    "cat": Row(["lora_cat"], "cat", 1 / COUNT, oracles.mean),
    "svd of 4 layers": Row(["lora_svd"], "svd", 1 / COUNT, oracles.mean, few=True),
    **_sparse(oracles.ties, ["ties", "--method_params.k", str(100 * DENSITY), "--method_params.scope", "tensor"], 1.0),
    **_sparse(oracles.dare_linear, ["dare_linear", *_DENSITY], 1 / COUNT),
    **_sparse(oracles.dare_ties, ["dare_ties", *_DENSITY], 1.0),
    **_sparse(oracles.magnitude_prune, ["magnitude_prune", *_DENSITY], 1 / COUNT),
}


class Bench:
    """Inputs, programs and results of one call.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.work: Path = options.work.expanduser().resolve()
        self.runs: int = options.runs
        self._threads = str(options.threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._environment = dict.fromkeys(names, self._threads) | {"HF_HUB_OFFLINE": "1"}
        self.work.mkdir(parents=True, exist_ok=True)
        self._base = make_models(self.work, options.size, 0).base
        self.adapters = {
            few: make_adapters(self.work, options.size, self._base, COUNT, few=few) for few in (False, True)
        }
        self._peer = None
        if not options.no_peer:
            self._peer = peer_environment(self.work / "peer-peft", PEFT, PEFT_IMPORTS)
            read_cached(self._base / "model.safetensors")

    def imports(self) -> dict[str, Figures]:
        """What each program takes for its imports alone; also compiles them before anything is timed."""
        commands: dict[str, list[str | Path]] = {
            "torch": [sys.executable, "-c", "import torch"],
            "ours": [sys.executable, "-c", OUR_IMPORTS],
        }
        if self._peer:
            commands["peer"] = [self._peer, "-c", PEFT_IMPORTS]
        for command in commands.values():
            self._measure(command)
        return in_turn({n: partial(self._measure, c) for n, c in commands.items()}, self.runs)

    def row(self, name: str) -> dict[str, Any]:
        """Run one merge by both programs in turn and check what they wrote."""
        row = ROWS[name]
        adapters = self.adapters[row.few]
        files = [adapter / "adapter_model.safetensors" for adapter in adapters]
        programs: dict[str, Callable[[], Figures]] = {"ours": partial(self._merge_ours, row, adapters)}
        outputs = {"ours": self.work / "merged-adapter-ours"}
        if self._peer:
            programs["peer"] = partial(self._merge_peer, row, adapters)
            outputs["peer"] = self.work / "merged-adapter-peer" / "merged"
        programs["floor"] = partial(page_cache_floor, files, self.work / "floor.tmp")
        figures = in_turn(programs, self.runs)
        agreement = oracles.compare(outputs, adapters, row.oracle)
        for who in outputs:
            shutil.rmtree(self.work / f"merged-adapter-{who}")
        return {
            "merge": name,
            "peer_merge": row.peer,
            **{who: asdict(one) for who, one in figures.items()},
            "agreement": agreement,
        }

    def _measure(self, command: Sequence[str | Path]) -> Figures:
        os.sync()  # what an earlier process left to the disk would be written during this one
        return measure(command, self._environment, self.work / "last.log")

    def _merge_ours(self, row: Row, adapters: list[Path]) -> Figures:
        output = self.work / "merged-adapter-ours"
        shutil.rmtree(output, ignore_errors=True)
        command: list[str | Path] = [Path(sys.executable).with_name("lit-wsl"), "merge", "--adapters", *adapters]
        return self._measure([*command, "--method", *row.ours, "--threads", self._threads, "--output", output])

    def _merge_peer(self, row: Row, adapters: list[Path]) -> Figures:
        assert self._peer is not None
        output = self.work / "merged-adapter-peer"
        shutil.rmtree(output, ignore_errors=True)
        call = {"combination_type": row.peer, "weights": [row.weight] * COUNT, **row.peer_options}
        settings = {"base": self._base, "adapters": adapters, "output": output, "call": call}
        return self._measure([self._peer, PEFT_MERGE, json.dumps(settings, default=str)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table; returns 1 when a result of ours disagrees with the oracle."""
    options = comparison_parser("merge_adapters", __doc__, SIZES, ROWS, "adapters, peer and outputs").parse_args(
        arguments
    )
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    results: dict[str, Any] = {
        **provenance("merge_adapters", arguments),
        "machine": {**machine(), "torch": torch.__version__},
        "size": options.size,
        "adapter_bytes": (bench.adapters[False][0] / "adapter_model.safetensors").stat().st_size,
        "runs": options.runs,
        "threads": options.threads,
        "imports": {who: asdict(one) for who, one in bench.imports().items()},
    }
    return measure_rows(results, options.methods, bench.row, print_table, options.json)


if __name__ == "__main__":
    sys.exit(main())
