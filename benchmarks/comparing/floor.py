"""What no comparison can undercut, in a process of its own: reading both models, and the arithmetic alone.

python -m benchmarks.comparing.floor BASE FINETUNED THREADS
"""

import json
import mmap
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.comparing.variants import weight_files
from lit_wsl.tensors.workers import forked

PIECE_BYTES = 1 << 20
BLOCKS = (1 << 16, 1 << 17, 1 << 18)
"""Entries of a block; the fastest counts."""
SAMPLE_ENTRIES = 1 << 26
THRESHOLD = 1e-6


def main() -> None:
    """Measure and print seconds."""
    files, threads = weight_files(map(Path, sys.argv[1:3])), int(sys.argv[3])
    torch.set_num_threads(1)
    reading = _concurrently(lambda at: _read(files, at, threads), threads)
    entries = sum(file.stat().st_size for file in files) // 4
    arithmetic = min(_arithmetic(entries, block, threads) for block in BLOCKS)
    print(json.dumps({"reading": reading, "arithmetic": arithmetic, "seconds": max(reading, arithmetic)}))


def _concurrently(work: Callable[[int], None], workers: int) -> float:
    """Seconds until every worker has done its part; processes, so that none waits for another."""
    with forked(work, workers) as pool:
        for future in [pool.submit(-1) for _ in range(4 * workers)]:  # all workers live
            future.result()
        began = time.perf_counter()
        for future in [pool.submit(at) for at in range(workers)]:
            future.result()
        return time.perf_counter() - began


def _read(files: list[Path], part: int, parts: int) -> None:
    """Copy a share of mapped files, piece by piece, to a place in cache."""
    if part < 0:
        return
    place = np.empty(PIECE_BYTES, dtype=np.uint8)
    for path in files:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            size = len(mapped) // parts
            source = np.frombuffer(mapped, np.uint8)
            for start in range(part * size, (part + 1) * size, PIECE_BYTES):
                piece = source[start : min(start + PIECE_BYTES, (part + 1) * size)]
                np.copyto(place[: len(piece)], piece)
            del source, piece


def _arithmetic(entries: int, block: int, threads: int) -> float:
    """Seconds for the figures of so many entries, from a measurement on blocks that never leave the cache."""
    count = min(entries, SAMPLE_ENTRIES) // (threads * block) + 1
    seconds = _concurrently(lambda at: _figures(block, count if at >= 0 else 1), threads)
    return seconds * entries / (count * block * threads)


def _figures(block: int, count: int) -> None:
    """Everything that a comparison says of a block of bfloat16, over and over."""
    base = torch.full((block,), 0.5, dtype=torch.bfloat16)
    tuned = torch.full((block,), 0.25, dtype=torch.bfloat16)
    x, delta = torch.empty(2, block)
    sizes = delta.numpy()
    for _ in range(count):
        x.copy_(base)
        delta.copy_(tuned)
        delta.sub_(x)
        torch.dot(x, x)
        torch.dot(delta, delta)
        torch.dot(x, delta)
        delta.sum()
        delta.abs_()
        delta.sum()
        sizes.max()
        np.count_nonzero(sizes > THRESHOLD)


if __name__ == "__main__":
    main()
