"""Merge adapters of real text tasks by every family of methods: what each keeps of what the adapters gained.

Parameters are chosen on validation rows and reported on test rows. Adapters, points of the searches and finished rows
lie in the work folder, so that a run that was cut short goes on where it was.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import machine
from benchmarks.provenance import provenance
from benchmarks.text.families import FAMILIES, Family
from benchmarks.text.measuring import SeedBench, Sizes
from benchmarks.text.scoring import Reference, figures
from benchmarks.text.tables import markdown
from benchmarks.text.tasks import find_tasks
from benchmarks.text.training import default_work, make_training, shipped_base, train_seed
from lit_wsl.cli.checkpoints import quiet_transformers
from lit_wsl.errors import LitWslError

QUICK = Sizes(grid=2, rows=24, batches={"gram": 1, "fisher": 1}, steps=2)
_QUICK_ROWS = 64


class TextBench:
    """Rows of the table over all seeds.

    Args:
        benches: One a seed, with its adapters trained.
    """

    def __init__(self, benches: Sequence[SeedBench]) -> None:
        self._benches = list(benches)
        self.reference = Reference(
            {bench.seed: bench.base() for bench in benches},
            {bench.seed: bench.individual() for bench in benches},
            benches[0].rows,
        )

    def references(self) -> list[dict[str, Any]]:
        """The rows that merges are set against."""
        base, individual = (
            figures(scores, self.reference) for scores in (self.reference.base, self.reference.individual)
        )
        return [
            {"name": "base", "title": "base, zero-shot", **base},
            {"name": "individual", "title": "individual LoRA", **individual},
        ]

    def row(self, name: str, family: Family) -> dict[str, Any]:
        """A family, with the parameters that each seed chose."""
        found = {bench.seed: bench.measure(family) for bench in self._benches}
        mean, worst = ({seed: one[rule] for seed, one in found.items()} for rule in ("mean", "worst"))
        return {
            "name": name,
            "title": family.title,
            "kind": family.kind,
            "method": family.method,
            "fixed": dict(family.fixed),
            "grid": dict(family.grid),
            **self._figures(mean),
            "by_worst": self._figures(worst),
            "cpu_seconds": sum(one["cpu_seconds"] for one in found.values()) / len(found),
            "points": {seed: one["points"] for seed, one in found.items()},
        }

    def _figures(self, points: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """Of the points that the seeds chose by one rule."""
        chosen = {seed: one["params"] for seed, one in points.items()}
        return {"chosen": chosen, **figures({seed: one["scores"] for seed, one in points.items()}, self.reference)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_tasks", description=__doc__)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), help="default all")
    parser.add_argument("--tasks", nargs="+", help="default the built-in ones and those of --tasks_dir")
    parser.add_argument(
        "--tasks_dir", type=Path, help="folder of JSON files {labels, prompts, train, validation, test}"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="of the training (default 0 1 2; 0 with --quick)")
    parser.add_argument("--limit_train", type=int, help="rows of each task to train on (default all)")
    parser.add_argument("--base", default=shipped_base(), help="the encoder (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few rows and points: does the script itself work?")
    parser.add_argument("--threads", type=int, default=1, help="default %(default)s")
    parser.add_argument("--work", type=Path, default=default_work(), help="what stays (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, written after every row")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the picture, a PNG")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is not there, measure every family, print the tables."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except LitWslError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    quiet_transformers()
    tasks = find_tasks(options.tasks, options.tasks_dir)
    seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    limit = options.limit_train or (_QUICK_ROWS if options.quick else None)
    training = make_training(options.work, options.base, limit)
    for seed in seeds:
        train_seed(training, tasks, seed)
    sizes = QUICK if options.quick else Sizes()
    bench = TextBench([SeedBench(training, list(tasks), seed, sizes, options.threads) for seed in seeds])
    results: dict[str, Any] = {
        **provenance("text_tasks"),
        "machine": {**machine(), "torch": torch.__version__},
        "base": options.base,
        "limit_train": limit,
        "seeds": seeds,
        "rows": bench.reference.rows,
        "figures": bench.references(),
    }
    for name in options.families:
        print(f"{FAMILIES[name].title} ...", file=sys.stderr)
        results["figures"].append(bench.row(name, FAMILIES[name]))
        results["machine"]["load_at_the_end"] = os.getloadavg()[0]
        _write(results, options)
    print(markdown(results))


def _write(results: Mapping[str, Any], options: argparse.Namespace) -> None:
    """What is known after a row."""
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(markdown(results), encoding="utf-8")
    if options.plot:
        from benchmarks.text.plots import draw  # matplotlib takes a while to import

        draw(results, options.plot)


def _log() -> None:
    """Say on standard error what is trained and gathered; Lightning need not tell of its devices."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


if __name__ == "__main__":
    _log()
    sys.exit(main())
