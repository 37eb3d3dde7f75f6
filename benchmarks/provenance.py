"""Where a benchmark's figures come from: the command, the commit, the day."""

import datetime
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PRIVATE = ("--json", "--work", "--markdown", "--plot")
"""Options that say where files go, which is nobody else's business."""


def provenance(benchmark: str, arguments: Sequence[str] | None = None) -> dict[str, str]:
    """What the results of a benchmark begin with.

    Args:
        benchmark: Its module in this package.
        arguments: Its command line; by default this process's.
    """
    words = _public(sys.argv[1:] if arguments is None else arguments)
    return {
        "benchmark": benchmark,
        "command": shlex.join(["python", "-m", f"benchmarks.{benchmark}", *words]),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _public(arguments: Sequence[str]) -> list[str]:
    words, left_out = [], False
    for word in arguments:
        if not left_out and not word.startswith(tuple(f"{option}=" for option in _PRIVATE)) and word not in _PRIVATE:
            words.append(word)
        left_out = word in _PRIVATE
    return words


def _commit() -> str:
    """Short name of the commit; empty where there is no repository."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
