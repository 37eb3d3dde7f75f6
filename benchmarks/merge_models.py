"""Merging full models: ``lit-wsl merge`` against mergekit, whole processes in turn.

Run ``python -m benchmarks.merge_models --help`` from the root of the repository.
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

from benchmarks import oracles
from benchmarks.comparison import comparison_parser, measure_rows
from benchmarks.inputs import SIZES, Models, make_models
from benchmarks.measure import Figures, in_turn, machine, measure, page_cache_floor, read_cached
from benchmarks.peers import MERGEKIT, MERGEKIT_IMPORTS, MERGEKIT_YAML, peer_environment
from benchmarks.provenance import provenance
from benchmarks.table import print_table

OUR_IMPORTS = "import lit_wsl.merging.run"
SCALE, DENSITY = 0.4, 0.2
KEPT, EPSILON = 0.5, 0.15
GAMMA = 0.01
ELECTED_SUM = ["--method_params.combine", "sum", "--method_params.elect", "weighted"]


@dataclass(frozen=True)
class Row:
    """One merge, as each program spells it, and what must come out."""

    ours: list[str]
    """Options of ``lit-wsl merge``."""
    peer: dict[str, Any]
    """mergekit's configuration without its models."""
    weight: float
    """mergekit's weight of each model."""
    oracle: oracles.Oracle
    tuned: int = 3
    """Number of fine-tunes."""
    base: bool = True
    """Whether the base is read."""
    starts_at_first: bool = False
    """Whether mergekit calls the first model its base."""
    peer_parameters: dict[str, float] = field(default_factory=dict)
    """mergekit's further parameters of each model."""


ROWS = {
    "linear": Row(["uniform"], {"merge_method": "linear"}, 1.0, oracles.mean, base=False),
    "linear of 4": Row(["uniform"], {"merge_method": "linear"}, 1.0, oracles.mean, tuned=4, base=False),
    "task arithmetic": Row(
        ["uniform_scalar_delta", "--method_params.scale", str(SCALE)],
        {"merge_method": "task_arithmetic", "parameters": {"normalize": False}},
        SCALE,
        partial(oracles.task_arithmetic, scale=SCALE),
    ),
    "ties": Row(
        ["ties", "--method_params.k", str(100 * DENSITY), "--method_params.scope", "tensor"],
        {"merge_method": "ties", "parameters": {"normalize": True}},
        1.0,
        partial(oracles.ties, density=DENSITY),
        peer_parameters={"density": DENSITY},
    ),
    "dare linear": Row(
        ["dare", "--method_params.drop_rate", str(1 - KEPT)],
        {"merge_method": "dare_linear", "parameters": {"normalize": True}},
        1.0,
        partial(oracles.dare, keep=KEPT),
        peer_parameters={"density": KEPT},
    ),
    "slerp": Row(
        ["slerp"],
        {"merge_method": "slerp", "parameters": {"t": 0.5}},
        1.0,
        oracles.slerp,
        tuned=2,
        base=False,
        starts_at_first=True,
    ),
    "model stock": Row(["model_stock"], {"merge_method": "model_stock"}, 1.0, oracles.model_stock),
    "dare ties": Row(
        ["dare_ties", *ELECTED_SUM, "--method_params.density", str(KEPT)],
        {"merge_method": "dare_ties", "parameters": {"normalize": False}},
        1.0,
        partial(oracles.dare_ties, keep=KEPT),
        peer_parameters={"density": KEPT},
    ),
    "breadcrumbs": Row(
        ["breadcrumbs", "--method_params.density", str(DENSITY), "--method_params.gamma", str(GAMMA)],
        {"merge_method": "breadcrumbs", "parameters": {"normalize": True}},
        1.0,
        partial(oracles.breadcrumbs, density=DENSITY, gamma=GAMMA),
        peer_parameters={"density": DENSITY, "gamma": GAMMA},
    ),
    "sce": Row(
        ["sce", "--method_params.density", str(DENSITY)],
        {"merge_method": "sce", "parameters": {"select_topk": DENSITY}},
        1.0,
        partial(oracles.sce, density=DENSITY),
    ),
    "della": Row(
        ["della", *ELECTED_SUM, "--method_params.density", str(KEPT), "--method_params.epsilon", str(EPSILON)],
        {"merge_method": "della", "parameters": {"normalize": False}},
        1.0,
        partial(oracles.della, density=KEPT, epsilon=EPSILON),
        peer_parameters={"density": KEPT, "epsilon": EPSILON},
    ),
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
        self.models: Models = make_models(self.work, options.size, max(ROWS[name].tuned for name in options.methods))
        self._peer = None
        if not options.no_peer:
            self._peer = peer_environment(self.work / "peer-mergekit", MERGEKIT, MERGEKIT_IMPORTS)

    def imports(self) -> dict[str, Figures]:
        """What each program takes for its imports alone; also compiles them before anything is timed."""
        commands: dict[str, list[str | Path]] = {"ours": [sys.executable, "-c", OUR_IMPORTS]}
        if self._peer:
            commands["peer"] = [self._peer, "-c", MERGEKIT_IMPORTS]
        for command in commands.values():
            self._measure(command)
        return in_turn({n: partial(self._measure, c) for n, c in commands.items()}, self.runs)

    def row(self, name: str) -> dict[str, Any]:
        """Run one merge by both programs in turn and check what they wrote."""
        row = ROWS[name]
        tuned = self.models.tuned[: row.tuned]
        read = [m / "model.safetensors" for m in ([*tuned, self.models.base] if row.base else tuned)]
        for path in read:
            read_cached(path)
        programs: dict[str, Callable[[], Figures]] = {"ours": partial(self._merge_ours, row, tuned)}
        if self._peer:
            programs["peer"] = partial(self._merge_peer, row, tuned)
        outputs = {who: self._output(who) for who in programs}
        programs["floor"] = partial(page_cache_floor, read, self.work / "floor.tmp")
        figures = in_turn(programs, self.runs)
        agreement = oracles.compare(outputs, self.models.base, tuned, row.oracle)
        for output in outputs.values():
            shutil.rmtree(output)
        return {"merge": name, **{who: asdict(one) for who, one in figures.items()}, "agreement": agreement}

    def _output(self, who: str) -> Path:
        return self.work / f"merged-{who}"

    def _measure(self, command: Sequence[str | Path]) -> Figures:
        os.sync()  # what an earlier process left to the disk would be written during this one
        return measure(command, self._environment, self.work / "last.log")

    def _merge_ours(self, row: Row, tuned: list[Path]) -> Figures:
        output = self._output("ours")
        shutil.rmtree(output, ignore_errors=True)
        command: list[str | Path] = [Path(sys.executable).with_name("lit-wsl"), "merge", "--models", *tuned]
        base = ["--base", self.models.base] if row.base else []
        options = ["--method", *row.ours, "--threads", self._threads, "--output", output]
        return self._measure([*command, *base, *options])

    def _merge_peer(self, row: Row, tuned: list[Path]) -> Figures:
        assert self._peer is not None
        output = self._output("peer")
        shutil.rmtree(output, ignore_errors=True)
        parameters = {"weight": row.weight, **row.peer_parameters}
        config: dict[str, Any] = {
            **row.peer,
            "models": [{"model": str(model), "parameters": parameters} for model in tuned],
            "dtype": "bfloat16",
        }
        if row.base:
            config["base_model"] = str(self.models.base)
        if row.starts_at_first:
            config["base_model"] = str(tuned[0])
        path = self.work / "mergekit.yml"
        path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        return self._measure([self._peer, "-c", MERGEKIT_YAML, path, output, "--no-copy-tokenizer", "--quiet"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table; returns 1 when a result disagrees with the oracle."""
    options = comparison_parser("merge_models", __doc__, SIZES, ROWS, "models, peers and outputs").parse_args(arguments)
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    results: dict[str, Any] = {
        **provenance("merge_models", arguments),
        "machine": {**machine(), "torch": torch.__version__},
        "size": options.size,
        "model_bytes": bench.models.nbytes,
        "runs": options.runs,
        "threads": options.threads,
        "imports": {who: asdict(one) for who, one in bench.imports().items()},
    }
    return measure_rows(results, options.methods, bench.row, print_table, options.json)


if __name__ == "__main__":
    sys.exit(main())
