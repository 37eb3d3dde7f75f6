"""One work of ours in a process of its own: its seconds without imports and what it found, on the last line.

python -m benchmarks.comparing.ours WORK BASE FINETUNED DIRECTORY THREADS
python -m benchmarks.comparing.ours                                          # imports alone
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.comparing.variants import RANK
from lit_wsl.comparing.models import ComparedModel, open_base, open_tuned
from lit_wsl.comparing.run import Comparison, examine_all, new_comparison
from lit_wsl.comparing.settings import CompareSettings
from lit_wsl.tensors.difference import difference
from lit_wsl.tensors.workers import forked


def main() -> None:
    """Do the work and print it."""
    if len(sys.argv) > 1:
        work, base, tuned, directory, threads = sys.argv[1:]
        print(json.dumps(WORKS[work](base, tuned, Path(directory), int(threads))))


def figures(base: str, tuned: str, directory: Path, threads: int) -> dict[str, Any]:
    """The difference of every tensor, and no more."""
    began = time.perf_counter()
    left, right, new = _opened(base, tuned, CompareSettings())
    names = new.architecture.comparable()
    with forked(lambda name: difference(left.entries(name), right.entries(name)), threads) as pool:
        found = [future.result() for future in [pool.submit(name) for name in names]]
    seconds = time.perf_counter() - began
    told = {n: [d.mean_abs, d.max_abs, d.relative, d.changed_ratio] for n, d in zip(names, found, strict=True)}
    return {"seconds": seconds, "figures": told}


def comparison(base: str, tuned: str, directory: Path, threads: int) -> dict[str, Any]:
    """Figures, histograms and spectra, as a comparison has them by default; no factors."""
    done, seconds = _examined(base, tuned, directory, threads, CompareSettings(extraction="never"))
    return {"seconds": seconds, "ranks": {one.name: one.pattern.effective_rank for one in done.findings if one.pattern}}


def found(base: str, tuned: str, directory: Path, threads: int) -> dict[str, Any]:
    """A comparison as it is by default: factors of what is of low rank."""
    done, seconds = _examined(base, tuned, directory, threads, CompareSettings())
    return {"seconds": seconds, "extracted": sum(bool(one.extracted) for one in done.findings)}


def extraction(base: str, tuned: str, directory: Path, threads: int) -> dict[str, Any]:
    """A comparison that takes factors of one rank out of every changed matrix, and says what they leave out."""
    settings = CompareSettings(extraction="always", rank=str(RANK), known_values=RANK)
    done, seconds = _examined(base, tuned, directory, threads, settings)
    errors = {one.name: one.extracted[0].relative_error for one in done.findings if one.extracted}
    return {"seconds": seconds, "errors": errors}


WORKS: dict[str, Callable[[str, str, Path, int], dict[str, Any]]] = {
    "figures": figures,
    "comparison": comparison,
    "found": found,
    "extraction": extraction,
}


def _opened(base: str, tuned: str, settings: CompareSettings) -> tuple[ComparedModel, ComparedModel, Comparison]:
    left = open_base(base)
    right = open_tuned(tuned, left)
    return left, right, new_comparison(left, right, settings)


def _examined(
    base: str, tuned: str, directory: Path, threads: int, settings: CompareSettings
) -> tuple[Comparison, float]:
    began = time.perf_counter()
    left, right, new = _opened(base, tuned, settings)
    examine_all(new, left, right, directory, threads=threads)
    return new, time.perf_counter() - began


if __name__ == "__main__":
    main()
