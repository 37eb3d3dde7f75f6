"""Programs of the comparison benchmark as processes: run in turn, each telling its own seconds on its last line."""

import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure import measure

PEER = "from mergekit.scripts.extract_lora import main\nmain()"
"""What ``mergekit-extract-lora`` runs."""
NOT_LINEAR = ("embed_tokens", "lm_head", "norm")
Program = Callable[[], dict[str, Any]]


class Processes:
    """Starts programs and measures them.

    Args:
        work: Directory for their outputs.
        threads: Threads of each.
    """

    def __init__(self, work: Path, threads: int) -> None:
        self._work, self._threads = work, threads
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._environment = dict.fromkeys(names, str(threads)) | {"HF_HUB_OFFLINE": "1"}

    def imports(self) -> dict[str, Any]:
        """Ours, which only imports."""
        return self._run([sys.executable, "-m", "benchmarks.comparing.ours"])

    def floor(self, base: Path, tuned: Path) -> dict[str, Any]:
        """What no comparison can undercut."""
        return self._module("floor", base, tuned, self._threads)

    def naive(self, base: Path, tuned: Path) -> dict[str, Any]:
        """The naive way."""
        return self._module("naive", base, tuned)

    def ours(self, work: str, base: Path, tuned: Path) -> dict[str, Any]:
        """One work of ours."""
        return self._module("ours", work, base, tuned, self._output(), self._threads)

    def decompose(self, way: str, base: Path, tuned: Path) -> dict[str, Any]:
        """Factors of all linear layers alone."""
        return self._module("decompose", way, base, tuned, self._output(), self._threads)

    def peer(self, python: Path, rank: int, base: Path, tuned: Path, output: Path) -> dict[str, Any]:
        """``mergekit-extract-lora`` of all linear layers."""
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        models = ["--model", tuned, "--base-model", base, "--out-path", output, "--max-rank", rank]
        left_out = [word for pattern in NOT_LINEAR for word in ("-e", pattern)]
        quiet = ["--no-copy-tokenizer", "--quiet", "-j", self._threads]
        return self._run([python, "-c", PEER, *models, *left_out, *quiet])

    def _module(self, name: str, *arguments: Any) -> dict[str, Any]:
        return self._run([sys.executable, "-m", f"benchmarks.comparing.{name}", *arguments])

    def _output(self) -> Path:
        """A new directory for factors."""
        output = self._work / "compared"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        return output

    def _run(self, command: Sequence[Any]) -> dict[str, Any]:
        log = self._work / "last.log"
        os.sync()  # what an earlier process left to the disk would be written during this one
        figures = measure(list(map(str, command)), self._environment, log)
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line[:1] == "{"]
        return asdict(figures) | (json.loads(lines[-1]) if lines else {})


def in_turn(programs: Mapping[str, Program], runs: int) -> dict[str, dict[str, Any]]:
    """Run programs A B A B …; by name the median of each number, the highest memory, and what the last run found."""
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
    for _ in range(runs):
        for name, program in programs.items():
            print(f"{name} ...", file=sys.stderr)
            taken[name].append(program())
    return {name: _together(outcomes) for name, outcomes in taken.items()}


def _together(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    result = dict(outcomes[-1])
    for key, value in result.items():
        if isinstance(value, float):
            result[key] = statistics.median(one[key] for one in outcomes)
        elif key.startswith("peak"):
            result[key] = max(one[key] for one in outcomes)
    return result
