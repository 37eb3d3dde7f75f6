"""The weight mapper: right targets, time, calibration, growth, opening and applying, beside the naive way.

python -m benchmarks.mapper                                            # every pair, files of 1 GB
python -m benchmarks.mapper --pairs resnet --runs 1 --megabytes 1      # seconds: does the script itself work?
"""

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.mapping.accuracy import SEEDS, calibration, load, measure_pair
from benchmarks.mapping.files import applying, header_opening
from benchmarks.mapping.speed import buffer_modes, scaling
from benchmarks.mapping.tables import print_tables
from benchmarks.measure import machine
from benchmarks.provenance import provenance
from lit_wsl.mapper import WeightMapper
from tests.mapper.pairs.held_out import HELD_OUT
from tests.mapper.pairs.pair import Pair
from tests.mapper.pairs.registry import PAIRS

GROUPS: dict[str, Sequence[Pair]] = {"developed on": PAIRS, "held out": HELD_OUT}
BOUNDS = (0.25, 0.5, 0.75, 0.9, 0.99)


def main() -> None:
    """Measure, print the tables, write the figures; the exit code is 1 where a sure match or a file is wrong."""
    options = _options()
    torch.set_num_threads(1)
    results = measure_all(options)
    results["load_at_the_end"] = os.getloadavg()[0]
    print_tables(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(not is_right(results))


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Every figure."""
    chosen = {group: [pair for pair in pairs if options.pairs in pair.name] for group, pairs in GROUPS.items()}
    results: dict[str, Any] = provenance("mapper")
    results |= {"machine": machine(), "torch": torch.__version__, "runs": options.runs}
    results["first_call"] = _first_call((chosen["developed on"] or PAIRS)[0])
    results["pairs"] = {group: _measured(pairs, options.runs) for group, pairs in chosen.items()}
    results["summary"] = {group: _summary(rows) for group, rows in results["pairs"].items() if rows}
    results["calibration"] = _calibration([row for rows in results["pairs"].values() for row in rows])
    more = 3 * options.runs  # ratios need more than times
    results |= {"scaling": scaling(more), "buffer_modes": buffer_modes(more)}
    if not options.skip_files:
        options.work.mkdir(parents=True, exist_ok=True)
        results["opening"] = header_opening(options.work, options.megabytes, options.runs)
        results["applying"] = applying(options.work, options.megabytes, options.file_runs)
    return results


def is_right(results: dict[str, Any]) -> bool:
    """Whether no sure match was wrong, no target got a foreign shape, and files came back bit by bit."""
    parts = [part for summary in results["summary"].values() for name, part in summary.items() if name != "naive"]
    is_sound = not any(part["confidently_wrong"] or part["misshapen"] for part in parts)
    return is_sound and all(row["is_exact"] for row in results.get("applying", ()))


def _first_call(pair: Pair) -> dict[str, Any]:
    """The first mapping of the process, imports done."""
    loaded = load(pair)
    began = time.perf_counter()
    WeightMapper(loaded.source, loaded.target).suggest_mapping()
    return {"pair": pair.name, "milliseconds": (time.perf_counter() - began) * 1e3}


def _measured(pairs: Sequence[Pair], runs: int) -> list[dict[str, Any]]:
    rows = []
    for pair in pairs:
        rows.append(measure_pair(load(pair), runs))
        gc.collect()
    return rows


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    parts = {given: _of_mapper([row[given] for row in rows]) for given in ("modules", "shapes")}
    naive = [row["naive"] for row in rows]
    times = [one["seconds"] * 1e3 for one in naive]
    parts["naive"] = {
        "pairs": len(rows),
        "pairs_exact": sum(one["right"] == one["wanted"] == one["made"] for one in naive),
        "right": sum(one["right"] for one in naive) / sum(one["wanted"] for one in naive),
        "median": statistics.median(times),
        "least": statistics.median(times),
        "slowest": max(times),
    }
    return parts


def _of_mapper(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    totals = {key: sum(row[key] for row in rows) for key in ("confidently_wrong", "spurious", "misshapen")}
    return {
        "pairs": len(rows),
        "pairs_exact": sum(row["exact"] == row["wanted"] and not row["spurious"] for row in rows),
        "right": sum(row["exact"] for row in rows) / sum(row["wanted"] for row in rows),
        "median": statistics.median(row["median"] for row in rows),
        "least": statistics.median(row["least"] for row in rows),
        "slowest": max(row["median"] for row in rows),
        **totals,
    }


def _calibration(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    scores = {
        "modules": [one for row in rows for one in row["modules"].pop("scores")],
        "names and shapes": [one for row in rows for one in row["shapes"].pop("scores")],
        f"random words, {len(SEEDS)} seeds": [one for row in rows for one in row.pop("renamed")],
    }
    return {name: calibration(values, BOUNDS) for name, values in scores.items()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="", metavar="PATTERN", help="only pairs with this in their name")
    parser.add_argument("--runs", type=int, default=7, help="timed calls, after one that does not count")
    parser.add_argument("--file-runs", type=int, default=3, help="timed applications to each file")
    parser.add_argument("--skip-files", action="store_true", help="neither open nor apply large files")
    parser.add_argument("--megabytes", type=int, default=1000, help="size of those files")
    parser.add_argument("--work", type=Path, default=Path("~/.cache/lit_wsl/benchmarks").expanduser())
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
