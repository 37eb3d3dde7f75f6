"""Comparing models: figures of every tensor, spectra, factors; against the naive way, a full SVD, and mergekit.

python -m benchmarks.compare                                             # 0.5B: half an hour, 7 GB of disk
python -m benchmarks.compare --size tiny --no-peer --runs 1              # seconds: does the script itself work?
python -m benchmarks.compare --parts figures kinds                       # some tables
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparing.decompose import error_of_adapter
from benchmarks.comparing.exact import exact_figures, worst_error
from benchmarks.comparing.processes import Processes, Program, in_turn
from benchmarks.comparing.tables import PARTS, print_tables
from benchmarks.comparing.variants import RANK, Variants, linear_layers, make_variants, weight_files
from benchmarks.inputs import SIZES
from benchmarks.measure import machine, read_cached
from benchmarks.peers import MERGEKIT, peer_environment
from benchmarks.provenance import provenance
from lit_wsl.state.reader import open_state
from lit_wsl.tensors.workers import free_cores

PEER_IMPORTS = "import mergekit.scripts.extract_lora"
MOST_ERROR = 1.01
"""Times the error of a full decomposition that ours may reach."""
FIGURE_ERROR = 1e-4
"""Relative error of any figure that float32 blocks may leave."""


class Bench:
    """Inputs and programs of one call.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._work: Path = options.work.expanduser().resolve()
        self._work.mkdir(parents=True, exist_ok=True)
        self.models: Variants = make_variants(self._work, options.size)
        self._processes = Processes(self._work, options.threads)
        for path in weight_files(vars(self.models).values()):
            read_cached(path)

    def imports(self) -> dict[str, Any]:
        """What a process takes that only imports; also compiles everything before it is timed."""
        self._processes.imports()
        return in_turn({"imports": self._processes.imports}, self._options.runs)["imports"]

    def figures(self) -> dict[str, Any]:
        """Figures of a model in which every tensor changed: ours, the naive way and the floor."""
        pair = self.models.base, self.models.dense_sharded
        programs: dict[str, Program] = {
            "floor": partial(self._processes.floor, *pair),
            "figures": partial(self._processes.ours, "figures", *pair),
            "comparison": partial(self._processes.ours, "comparison", *pair),
            "naive": partial(self._processes.naive, *pair),
        }
        rows = in_turn(programs, self._options.runs)
        exact = exact_figures(*pair)
        for name in ("figures", "naive"):
            rows[name]["worst_error"] = worst_error(rows[name].pop("figures"), exact)
        return rows

    def memory(self) -> dict[str, Any]:
        """Peak memory of each work by layout and depth."""
        models = self.models
        pairs = {
            f"{SIZES[self._options.size].layers} layers, one file": (models.base, models.dense),
            "many files": (models.base, models.dense_sharded),
            f"{SIZES[self._options.size].layers // 2} layers": (models.half_base, models.half_dense),
        }
        works = {"figures": "figures", "figures and spectra": "comparison", "with factors of rank 16": "extraction"}
        return {
            title: {name: self._processes.ours(work, *pair)["peak_anonymous"] for name, pair in pairs.items()}
            for title, work in works.items()
        }

    def extraction(self) -> dict[str, Any]:
        """Factors of every linear layer, from a merged LoRA and from a dense fine-tune."""
        kinds = {"merged LoRA": self.models.merged, "dense": self.models.dense_sharded}
        return {kind: self._extracted(tuned) for kind, tuned in kinds.items()}

    def kinds(self) -> dict[str, Any]:
        """Time by what happened to the model."""
        kinds = {"identical": "identical", "merged LoRA": "merged", "dense": "dense_sharded"}
        return {
            kind: in_turn(
                {
                    work: partial(self._processes.ours, work, self.models.base, getattr(self.models, field))
                    for work in ("figures", "found")
                },
                self._options.runs,
            )
            for kind, field in kinds.items()
        }

    def _extracted(self, tuned: Path) -> dict[str, Any]:
        pair, adapter = (self.models.base, tuned), self._work / "adapter"
        programs: dict[str, Program] = {
            "lit-wsl, whole comparison": partial(self._processes.ours, "extraction", *pair),
            "lit-wsl, factors alone": partial(self._processes.decompose, "ours", *pair),
            "full SVD": partial(self._processes.decompose, "svd", *pair),
        }
        if not self._options.no_peer:
            programs["mergekit"] = partial(self._peer, *pair, adapter)
        rows = in_turn(programs, self._options.runs)
        if (file := adapter / "adapter_model.safetensors").exists():
            rows["mergekit"]["errors"] = error_of_adapter(*map(open_state, (*pair, file)))
            shutil.rmtree(adapter)
        least = rows["full SVD"]["errors"]
        return {name: row | _errors(row.pop("errors"), least) if "errors" in row else row for name, row in rows.items()}

    def _peer(self, base: Path, tuned: Path, output: Path) -> dict[str, Any]:
        """Mergekit in its own environment, or why it does not run."""
        try:
            python = peer_environment(self._work / "peer-mergekit", MERGEKIT, PEER_IMPORTS)
            return self._processes.peer(python, RANK, base, tuned, output)
        except (RuntimeError, subprocess.SubprocessError) as error:
            return {"missing": f"does not run: {str(error).splitlines()[-1]}"}


def is_right(results: dict[str, Any]) -> bool:
    """Whether our figures are those of float64, and our factors leave out what a full SVD leaves out."""
    extracted = [rows["lit-wsl, whole comparison"] for rows in results.get("extraction", {}).values()]
    agrees = "figures" not in results or results["figures"]["figures"]["worst_error"] <= FIGURE_ERROR
    return agrees and all(row["worst"] <= MOST_ERROR for row in extracted)


def _errors(errors: Mapping[str, float], least: Mapping[str, float]) -> dict[str, float]:
    """Share of the updates that is left out, over all linear layers, and the worst ratio to the least possible."""
    linear = linear_layers(least)
    mean = math.sqrt(sum(errors[name] ** 2 for name in linear) / len(linear))
    return {"error": mean, "worst": max(errors[name] / least[name] for name in linear)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables; returns 1 where our figures or factors are wrong."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    bench = Bench(options)
    results: dict[str, Any] = provenance("compare", arguments)
    results |= {"machine": machine(), "torch": torch.__version__, "size": options.size}
    results |= {"model_bytes": sum(path.stat().st_size for path in weight_files([bench.models.base]))}
    results |= {"runs": options.runs, "threads": options.threads, "imports": bench.imports()}
    results |= {part: getattr(bench, part)() for part in options.parts}
    results["load_at_the_end"] = os.getloadavg()[0]
    print_tables(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return int(not is_right(results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.5B", help="model size (default %(default)s)")
    home = Path("~/.cache/lit_wsl/benchmarks")
    parser.add_argument("--work", type=Path, default=home, help="models, peer and outputs (default %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="tables (default all)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each program (default %(default)s)")
    parser.add_argument("--threads", type=int, default=free_cores(), help="of each program (default one per core)")
    parser.add_argument("--no-peer", action="store_true", help="leave mergekit out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    return parser


if __name__ == "__main__":
    sys.exit(main())
