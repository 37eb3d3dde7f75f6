"""Processes that measure the points of one study together."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pickle import PicklingError

from lit_wsl.errors import ConfigError, LitWslError
from lit_wsl.sweep.outcome import Objective, measured
from lit_wsl.sweep.settings import SearchSettings
from lit_wsl.sweep.storage import Place
from lit_wsl.sweep.study import SweepStudy

LEAVING_SECONDS = 10.0
"""How long a process that was told to stop may take."""


@dataclass(frozen=True)
class Job:
    """What a process needs to take part in a sweep."""

    name: str
    place: Place
    settings: SearchSettings
    tasks: Sequence[str]
    constrained: bool
    objective: Objective

    def study(self) -> SweepStudy:
        """The study, as this process sees it."""
        return SweepStudy(self.name, self.place, self.settings, self.tasks, constrained=self.constrained)


def work(study: SweepStudy, objective: Objective, after: Callable[[], None], goes_on: Callable[[], bool]) -> None:
    """Measure points until there is none left to begin.

    Args:
        study: Where points come from.
        objective: Measures them.
        after: Called after each point.
        goes_on: Asked before each point.
    """
    with study.place.worker() as name:
        while goes_on() and (asked := study.ask(name)) is not None:
            try:
                outcome = measured(objective, asked.params)
            except BaseException:  # Ctrl-C and the like: the point was not measured
                study.interrupt(asked)
                raise
            study.finish(asked, outcome)
            after()


@contextmanager
def others(job: Job, count: int) -> Iterator[list[BaseProcess]]:
    """So many more processes on the study; they end with the block: when there is nothing left, or when it fails."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    processes: list[BaseProcess] = [context.Process(target=_take_part, args=(job, os.getpid())) for _ in range(count)]
    try:
        _start(processes)
        yield processes
    finally:
        _end(processes)


def _start(processes: Sequence[BaseProcess]) -> None:
    """Start processes.

    Raises:
        ConfigError: If the objective cannot be sent to them.
    """
    try:
        for process in processes:
            process.start()
    except (AttributeError, TypeError, PicklingError) as error:
        if "pickle" not in str(error):
            raise
        raise ConfigError(
            f"Several workers need an objective that can be pickled ({error}); use a function of a module."
        ) from error


def _end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        if process.pid is not None and process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
    deadline = time.monotonic() + LEAVING_SECONDS
    for process in processes:
        if process.pid is not None:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.terminate()
                process.join()


def _take_part(job: Job, parent: int) -> None:
    """Body of a further process; it leaves when its parent has."""
    try:
        work(job.study(), job.objective, lambda: None, lambda: os.getppid() == parent)
    except KeyboardInterrupt:
        sys.exit(130)
    except LitWslError as error:
        sys.stderr.write(f"lit-wsl: a worker ended: {error}\n")
        sys.exit(1)
