"""Measure whole processes and the machine: time, memory, and the floor under both (Linux)."""

import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.01
SAMPLE_SHARE = 0.05
"""Share of the time that sampling may take: the kernel walks all pages of a process, which holds up its page faults."""
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Figures:
    """What one process (with its children) took; sizes in bytes."""

    wall: float
    """Seconds from start to end."""
    cpu: float
    """CPU seconds, user and system."""
    peak_rss: int
    """Most memory resident at once, mapped files included."""
    peak_anonymous: int
    """Most memory at once that belongs to the processes alone; mapped files and the page cache do not count."""


def measure(command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> Figures:
    """Run a command to its end and watch it.

    Memory is summed over the process and its children every ``SAMPLE_SECONDS``, or less often where a sample takes
    long, so that watching takes at most ``SAMPLE_SHARE`` of a core. The high-water mark that
    ``wait4`` reports is of no use: it starts at the size of the parent.

    Args:
        command: Program and arguments.
        environment: Variables on top of this process's own.
        log: File that takes standard output and error.

    Raises:
        RuntimeError: If the command fails; the message has the end of its output.
    """
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(  # returns when the program is loaded, so no sample sees the parent's memory
            list(map(str, command)), stdout=output, stderr=output, env={**os.environ, **environment}
        )
        with _watched(process.pid) as peak:
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{end}")
    return Figures(wall, usage.ru_utime + usage.ru_stime, *peak)


@contextmanager
def _watched(pid: int) -> Iterator[list[int]]:
    """Most memory of a process and its descendants, resident and anonymous."""
    peak = [0, 0]

    def sample() -> None:
        sampled = [_memory(one) for one in _tree(pid)]
        peak[:] = [max(most, sum(sizes)) for most, sizes in zip(peak, zip(*sampled, strict=True), strict=True)]

    with sampling(sample, SAMPLE_SECONDS):
        yield peak


@contextmanager
def sampling(sample: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function every so many seconds in a thread, or less often where it takes more than ``SAMPLE_SHARE``."""
    over = threading.Event()

    def watch() -> None:
        pause = 0.0
        while not over.wait(pause):
            began = time.perf_counter()
            sample()
            pause = max(seconds, (time.perf_counter() - began) * (1 / SAMPLE_SHARE - 1))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def median(runs: Sequence[Figures]) -> Figures:
    """Median of the times, highest of the peaks."""
    return Figures(
        statistics.median(run.wall for run in runs),
        statistics.median(run.cpu for run in runs),
        max(run.peak_rss for run in runs),
        max(run.peak_anonymous for run in runs),
    )


def in_turn(programs: Mapping[str, Callable[[], Figures]], runs: int) -> dict[str, Figures]:
    """Run programs A B A B …, so that a change of the machine's load hits all alike; medians by name."""
    taken: dict[str, list[Figures]] = {name: [] for name in programs}
    for _ in range(runs):
        for name, program in programs.items():
            taken[name].append(program())
    return {name: median(figures) for name, figures in taken.items()}


def page_cache_floor(sources: Sequence[Path], scratch: Path) -> Figures:
    """Read some files from the page cache and write one as large as the first: what a program cannot undercut.

    One thread, no imports, no arithmetic. Measured in turn with the programs it feels the same load.

    Args:
        sources: Files to read.
        scratch: File to write; removed at the end.
    """
    began, cpu = time.perf_counter(), time.process_time()
    for path in sources:
        read_cached(path)
    _write_cached(scratch, sources[0].stat().st_size)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    scratch.unlink()
    return Figures(wall, cpu, PIECE_BYTES, PIECE_BYTES)


def read_cached(path: Path) -> None:
    """Read a file once; afterwards it lies in the page cache."""
    buffer = bytearray(PIECE_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _write_cached(path: Path, size: int) -> None:
    piece = bytes(PIECE_BYTES)
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, PIECE_BYTES):
            file.write(piece[: size - start])


def machine() -> dict[str, str | int | float]:
    """What the figures were measured on."""
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in facts if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def _tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    return [pid, *(one for child in _children(pid) for one in _tree(child))]


def _children(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:  # it ended meanwhile
        return []


def _memory(pid: int) -> tuple[int, int]:
    """Resident and anonymous bytes of a process; zeros once it has ended.

    What several processes share since a fork counts for each by its share.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return _kilobytes(fields, "Rss"), _kilobytes(fields, "Pss_Anon")


def _kilobytes(fields: Mapping[str, str], key: str) -> int:
    return int(fields[key].split()[0]) * 1024 if key in fields else 0
