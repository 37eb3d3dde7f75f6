"""Progress of a long job: a bar on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLAIN_EVERY_SECONDS = 5.0


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a function that takes bytes done, bytes in all, and the name at hand."""
    if not sys.stderr.isatty():
        yield _plain(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=what)


def _plain(what: str) -> Callable[[int, int, str], None]:
    """Progress lines for a log file: none for a short job, one every few seconds for a long one."""
    began = last = time.monotonic()

    def tell(done: int, total: int, name: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_EVERY_SECONDS:
            last = now
            rate = done / (now - began)
            left = (total - done) / rate if rate else 0.0
            size = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
            sys.stderr.write(f"{what}: {size}, {rate / 1e6:.0f} MB/s, {left:.0f} s left, at {name}\n")

    return tell
