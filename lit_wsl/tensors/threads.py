"""Threads that work on one parameter each, while torch keeps to one core per operation."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def parallel_parameters(threads: int = 0) -> Iterator[ThreadPoolExecutor]:
    """A pool whose workers take one parameter each, while torch keeps to one core per operation.

    Blocks are too small to be worth sharing out: threads that wait for each other after every block cost
    more than they bring as soon as a core is busy with something else.

    Args:
        threads: Workers; 0 takes one per core that this process may use.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads or free_cores(), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def free_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
