"""Merging models of 7B: time per gigabyte and memory beside those of 0.5B; nothing but sizes differs.

Run ``python -m benchmarks.merge_scale --help`` from the root of the repository.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.large_models import SAMPLE, SCALES, nbytes, write_model
from benchmarks.measure import Figures, in_turn, machine, measure, page_cache_floor
from benchmarks.provenance import provenance
from lit_wsl.state.reader import open_state

OUR_IMPORTS = "import lit_wsl.merging.run"
SCALE, K = 0.4, 20
SPARE_BYTES = 4_000_000_000
"""What must stay free on the disk."""
COLUMNS = ("model", "merge", "wall s", "CPU s", "peak anonymous GB", "beyond imports GB", "wall s / GB", "CPU s / GB")
RATIOS = ("× the small model's wall", "CPU", "× floor")


@dataclass(frozen=True)
class Merge:
    """One merge of two models."""

    options: list[str]
    """Options of ``lit-wsl merge``."""
    base: bool
    expected: Callable[[Tensor, Tensor], Tensor] | None = None
    """What must come out, from the base and the stacked models in float64; None where entries depend on others."""


MERGES = {
    "linear": Merge(["linear"], base=False, expected=lambda base, tuned: tuned.mean(0)),
    "task arithmetic": Merge(
        ["task_arithmetic", "--method_params.scale", str(SCALE)],
        base=True,
        expected=lambda base, tuned: base + SCALE * (tuned - base).sum(0),
    ),
    "ties": Merge(["ties", "--method_params.k", str(K), "--method_params.scope", "tensor"], base=True),
}


class Bench:
    """Programs and results of one call.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.work: Path = options.work.expanduser().resolve() / "scale"
        self.work.mkdir(parents=True, exist_ok=True)
        self.scale = SCALES[options.size]
        self._runs, self._threads = options.runs, str(options.threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._environment = dict.fromkeys(names, self._threads) | {"HF_HUB_OFFLINE": "1"}
        self.weights: str = options.weights or self._what_fits()

    def _what_fits(self) -> str:
        needed = 4 * max(nbytes(shapes) for shapes in self.scale.values()) + SPARE_BYTES
        return "random" if shutil.disk_usage(self.work).free > needed else "sparse"

    def imports(self) -> Figures:
        """What the imports take alone."""
        command = [sys.executable, "-c", OUR_IMPORTS]
        self._measure(command)
        return in_turn({"imports": partial(self._measure, command)}, self._runs)["imports"]

    def rows(self, methods: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Every merge of every size; models of one size lie on the disk at a time."""
        for size, shapes in self.scale.items():
            sparse = self.weights == "sparse"
            files = [
                write_model(self.work / name / "model.safetensors", shapes, seed, sparse=sparse)
                for seed, name in enumerate(("base", "one", "other"))
            ]
            try:
                for method in methods:
                    print(f"{size}: {method} ...", file=sys.stderr)
                    yield {"model": size, "merge": method, **self._row(MERGES[method], *files)}
            finally:
                for file in files:
                    shutil.rmtree(file.parent)

    def _row(self, merge: Merge, base: Path, *tuned: Path) -> dict[str, Any]:
        sources = [*tuned, base] if merge.base else [*tuned]
        agreements: list[bool] = []

        def ours() -> Figures:
            _forget(sources)
            output = self.work / "merged"
            command: list[str | Path] = [Path(sys.executable).with_name("lit-wsl"), "merge", "--output", output]
            command += ["--models", *(path.parent for path in tuned), *(["--base", base.parent] if merge.base else [])]
            try:
                figures = self._measure([*command, "--method", *merge.options, "--threads", self._threads])
                agreements.append(_agrees(merge, output, base, tuned))
            finally:
                shutil.rmtree(output, ignore_errors=True)
            return figures

        def floor() -> Figures:
            _forget(sources)
            return page_cache_floor(sources, self.work / "floor.tmp")

        figures = in_turn({"ours": ours, "floor": floor}, self._runs)
        one = {"gigabytes": base.stat().st_size / 1e9, "agrees": all(agreements)}
        return one | {who: asdict(taken) for who, taken in figures.items()}

    def _measure(self, command: Sequence[str | Path]) -> Figures:
        os.sync()  # what an earlier process left to the disk would be written during this one
        return measure(command, self._environment, self.work / "last.log")


def _forget(files: Sequence[Path]) -> None:
    """Take files out of the page cache, which the large ones do not fit into."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _agrees(merge: Merge, output: Path, base: Path, tuned: Sequence[Path]) -> bool:
    """Whether the first entries of every parameter are those of float64, to the last bit or two of bfloat16."""
    if merge.expected is None:
        return True
    written, *sources = (open_state(path) for path in (output, base, *tuned))
    for name in written.keys():
        stored, *others = (source.read(name).view(-1)[:SAMPLE].double() for source in sources)
        expected = merge.expected(stored, torch.stack(others))
        if not torch.allclose(written.read(name).view(-1)[:SAMPLE].double(), expected, rtol=2**-7, atol=1e-8):
            return False
    return True


def print_table(results: dict[str, Any]) -> None:
    """Print the machine in a line, then one line a merge."""
    where, imports = results["machine"], results["imports"]
    print(
        f"{where['cpu']}, {where['cores']} cores, {where['memory'] / 2**30:.0f} GiB, load {where['load']:.1f} to "
        f"{where['load_at_the_end']:.1f}; Python {where['python']}, torch {where['torch']}; {results['weights']} "
        f"weights; median of {results['runs']}, threads: {results['threads']}; imports take {imports['wall']:.2f} s.\n"
    )
    small: dict[str, list[float]] = {}
    for line in [(*COLUMNS, *RATIOS), ["---"] * len((*COLUMNS, *RATIOS))]:
        print(f"| {' | '.join(line)} |")
    for row in results["rows"]:
        ours, gigabytes = row["ours"], row["gigabytes"]
        beyond = [(ours[key] - imports[key]) / gigabytes for key in ("wall", "cpu")]
        memory = [ours["peak_anonymous"], ours["peak_anonymous"] - imports["peak_anonymous"]]
        ratios = [a / b for a, b in zip(beyond, small.setdefault(row["merge"], beyond), strict=True)]
        cells = [f"{row['model']}, {gigabytes:.2f} GB", row["merge"], f"{ours['wall']:.2f}", f"{ours['cpu']:.2f}"]
        cells += [f"{size / 1e9:.2f}" for size in memory] + [f"{time:.2f}" for time in beyond]
        cells += [f"{ratio:.2f}" for ratio in [*ratios, ours["wall"] / row["floor"]["wall"]]]
        print(f"| {' | '.join(cells)} |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table; returns 1 when a result is wrong."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    bench = Bench(options)
    results: dict[str, Any] = provenance("merge_scale", arguments)
    results |= {"machine": {**machine(), "torch": torch.__version__}, "size": options.size}
    results |= {"weights": bench.weights, "runs": options.runs, "threads": options.threads}
    results |= {"imports": asdict(bench.imports()), "rows": []}
    for row in bench.rows(options.methods):
        results["rows"].append(row)
        results["machine"]["load_at_the_end"] = os.getloadavg()[0]
        if options.json:  # after every row, so that a long run may be cut short
            options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print_table(results)
    wrong = [f"{row['merge']} of {row['model']}" for row in results["rows"] if not row["agrees"]]
    if wrong:
        print(f"Wrong entries: {', '.join(wrong)}.", file=sys.stderr)
    return int(bool(wrong))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge_scale", description=__doc__)
    parser.add_argument("--size", choices=SCALES, default="7B", help="size of the large model (default %(default)s)")
    parser.add_argument("--weights", choices=("sparse", "random"), help="kind of files (default: what fits the disk)")
    home = Path("~/.cache/lit_wsl/benchmarks")
    parser.add_argument(
        "--work", type=Path, default=home, help="models and outputs, for the time of the run (default %(default)s)"
    )
    parser.add_argument("--methods", nargs="+", choices=MERGES, default=["linear", "task arithmetic"], help="merges")
    parser.add_argument("--runs", type=int, default=1, help="runs of each merge (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each merge (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    return parser


if __name__ == "__main__":
    sys.exit(main())
