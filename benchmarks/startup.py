"""What a command takes before it does anything: ``--help`` of every command, whole processes in turn.

python -m benchmarks.startup                      # two minutes; mergekit beside it
python -m benchmarks.startup --no-peer --runs 1   # does the script itself work?
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Figures, in_turn, machine, measure
from benchmarks.peers import MERGEKIT, MERGEKIT_IMPORTS, peer_environment
from benchmarks.provenance import provenance

COMMANDS = ("merge", "map", "compare", "extract-lora", "inspect", "evaluate-merged", "merge-sweep", "fit")
PEER_COMMANDS = {"merge": "mergekit-yaml", "extract-lora": "mergekit-extract-lora"}
"""What mergekit calls the same."""
COLUMNS = ("command", "wall s", "CPU s", "peak anonymous GB", "mergekit's wall s", "× an empty Python")


class Bench:
    """Programs of one call.

    Args:
        work: Folder of the peer and of what programs print.
        runs: Runs of each program.
        is_alone: Whether the peer is left out.
    """

    def __init__(self, work: Path, runs: int, *, is_alone: bool) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._log, self._runs, self._peer = work / "last.log", runs, None
        if not is_alone:
            self._peer = peer_environment(work / "peer-mergekit", MERGEKIT, MERGEKIT_IMPORTS)

    def row(self, command: str) -> dict[str, dict[str, Any]]:
        """One command, its peer if there is one, and an interpreter that does nothing."""
        binary = Path(sys.executable)
        programs: dict[str, list[str | Path]] = {
            "ours": [binary.with_name("lit-wsl"), command, "--help"],
            "floor": [binary, "-c", ""],
        }
        if self._peer and command in PEER_COMMANDS:
            programs["peer"] = [self._peer.with_name(PEER_COMMANDS[command]), "--help"]
        for program in programs.values():
            self._measure(program)  # compiled, and in the page cache
        figures = in_turn({name: partial(self._measure, one) for name, one in programs.items()}, self._runs)
        return {name: asdict(one) for name, one in figures.items()}

    def _measure(self, command: Sequence[str | Path]) -> Figures:
        return measure(command, {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, self._log)


def print_table(results: dict[str, Any]) -> None:
    """Print the machine in a line, then one line a command."""
    where = results["machine"]
    print(
        f"{where['cpu']}, {where['cores']} cores, load {where['load']:.1f} to {where['load_at_the_end']:.1f}; "
        f"Python {where['python']}; median of {results['runs']}.\n"
    )
    lines = []
    for command, row in results["rows"].items():
        ours, peer = row["ours"], row.get("peer")
        times = [f"{ours['wall']:.2f}", f"{ours['cpu']:.2f}", f"{ours['peak_anonymous'] / 1e9:.2f}"]
        peers = f"{peer['wall']:.2f}" if peer else "–"
        lines.append([f"lit-wsl {command} --help", *times, peers, f"{ours['wall'] / row['floor']['wall']:.0f}"])
    for line in (COLUMNS, ["---"] * len(COLUMNS), *lines):
        print(f"| {' | '.join(line)} |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = Path("~/.cache/lit_wsl/benchmarks")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="default all")
    parser.add_argument("--work", type=Path, default=home, help="where the peer lives (default %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each program (default %(default)s)")
    parser.add_argument("--no-peer", action="store_true", help="leave mergekit out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = provenance("startup", arguments) | {"runs": options.runs, "machine": machine()}
    bench = Bench(options.work.expanduser().resolve(), options.runs, is_alone=options.no_peer)
    results["rows"] = {command: bench.row(command) for command in options.commands}
    results["machine"]["load_at_the_end"] = os.getloadavg()[0]
    print_table(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
