"""A program with a forked worker, which is killed by a test: `python -m tests.tensors.workers_processes`."""

import os
import sys
import time

from lit_wsl.tensors.workers import forked


def work() -> None:
    """Tell the worker's number, and stay."""
    sys.stdout.write(f"{os.getpid()}\n")
    sys.stdout.flush()
    time.sleep(60)


if __name__ == "__main__":
    with forked(work, 2) as workers:
        workers.submit().result()
