"""A session of pytest that collects its tests once, and runs those of every mutant in a fork of itself."""

import gc
import importlib
import math
import os
import pickle
import resource
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import coverage
import pytest
from _pytest.runner import runtestprotocol

from tests.mutation.mutants import Mutant, mutants_of
from tests.mutation.transplant import transplant

ROOM = "lit_wsl.tensors"
SURVIVED, KILLED, STILLBORN = 0, 1, 2
"""Exit codes of a fork."""


@dataclass(frozen=True)
class Baseline:
    """What the tests do when nothing is wrong."""

    seconds: dict[int, float]
    """CPU time of each test, by its place."""
    tests: dict[str, dict[int, set[int]]]
    """Places of the tests that run each line, by file."""

    def tests_of(self, path: str, lines: Iterable[int] | None = None) -> set[int]:
        """The tests that are known to run some of these lines, or any of a file."""
        by_line = self.tests.get(path, {})
        return set().union(*(by_line.get(line, ()) for line in (by_line if lines is None else lines)))


@dataclass
class Mutation:
    """Plugin: in the place of pytest's own loop, one fork per mutant; see :mod:`tests.mutation.__main__`."""

    modules: Sequence[str]
    budget: float
    """CPU seconds of tests that a mutant may take."""
    report: Callable[[str], None]
    only: str = ""
    every: int = 1
    known: Mapping[str, str] = field(default_factory=dict)
    """Outcomes that are known already; only what survived, or is new, is tried."""
    outcomes: dict[str, str] = field(default_factory=dict)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests alone, then each mutant against the tests that reach it."""
        baseline = _forked_baseline(session.items)
        self.report(f"{len(session.items)} tests take {sum(baseline.seconds.values()):.0f} s")
        gc.freeze()
        for module in self.modules:
            self._mutate(module, session.items, baseline)
        return True

    def _mutate(self, name: str, items: list[pytest.Item], baseline: Baseline) -> None:
        module = importlib.import_module(f"{ROOM}.{name}")
        path = str(module.__file__)
        started, tally = _cpu(), defaultdict[str, int](int)
        # Lines that run in a fork of a test, or when the module is imported, are not told.
        own = {at for at, item in enumerate(items) if item.path.name == f"test_{name}.py"}
        known = baseline.tests_of(path)
        for number, mutant in enumerate(mutants_of(Path(path).read_text(), name, path)):
            if number % self.every or self.only not in mutant.name:
                continue
            if mutant.name in self.known:
                self.outcomes[mutant.name] = self.known[mutant.name]
                continue
            chosen = self._in_order(baseline.tests_of(path, mutant.lines) or own | known, items, baseline)
            outcome = _outcome(partial(_attack, module, mutant, items, chosen, baseline.seconds), chosen, baseline)
            tally[outcome] += 1
            self.outcomes[mutant.name] = outcome
            if outcome == "survived":
                self.report(f"  {mutant.lines.start}: {mutant.name} [{len(chosen)} tests]")
        self.report(f"{name}: {dict(tally)}, {_cpu() - started:.0f} s")

    def _in_order(self, tests: set[int], items: list[pytest.Item], baseline: Baseline) -> list[int]:
        """The room's own tests first, each group the quickest first, as far as the budget goes."""
        own = ROOM.replace("lit_wsl.", "tests/")
        ordered = sorted(tests, key=lambda at: (not items[at].nodeid.startswith(own), baseline.seconds[at], at))
        spent = accumulate(baseline.seconds[at] for at in ordered)
        return [at for at, seconds in zip(ordered, spent, strict=True) if seconds <= self.budget] or ordered[:1]


def _cpu() -> float:
    """CPU seconds of this process and of those that it waited for."""
    return sum(os.times()[:4])


def _outcome(attack: Callable[[], int], chosen: list[int], baseline: Baseline) -> str:
    """What became of a mutant in a fork; one that takes many times as long as the tests do is killed."""
    expected = sum(baseline.seconds[at] for at in chosen)
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(20 + 10 * expected))
        code = KILLED
        try:
            code = attack()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # workers that it left behind
    if os.WIFSIGNALED(status):
        return "out of time" if os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU, signal.SIGKILL) else "killed"
    return {SURVIVED: "survived", STILLBORN: "stillborn"}.get(os.WEXITSTATUS(status), "killed")


def _attack(
    module: Any, mutant: Mutant, items: list[pytest.Item], chosen: list[int], seconds: Mapping[int, float]
) -> int:
    try:
        transplant(module, mutant.compiled())
    except Exception:  # noqa: BLE001 - whatever a fault makes of the module's own statements
        return STILLBORN
    for at in chosen:
        limit = math.ceil(time.process_time() + 1 + 5 * seconds[at])  # a loop without an end
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        if _fails(items[at]):
            return KILLED
    return SURVIVED


def _fails(item: pytest.Item) -> bool:
    return any(report.failed for report in runtestprotocol(item, log=False, nextitem=None))


def _forked_baseline(items: list[pytest.Item]) -> Baseline:
    """Run all tests in a fork, which tells what they took and which lines they ran."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with os.fdopen(writer, "wb") as stream:
            pickle.dump(_baseline(items), stream)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        found = pickle.load(stream)
    os.waitpid(child, 0)
    if isinstance(found, str):
        raise pytest.UsageError(f"{found} fails without any mutant; mend it first.")
    return found


def _baseline(items: list[pytest.Item]) -> Baseline | str:
    watch = coverage.Coverage(data_file=None, source=[ROOM], config_file=False, concurrency="thread")
    seconds = {}
    watch.start()
    for at, item in enumerate(items):
        watch.switch_context(str(at))
        started = time.process_time()
        if _fails(item):
            return item.nodeid
        seconds[at] = time.process_time() - started
    watch.stop()
    return Baseline(
        seconds, {path: dict(_by_line(watch.get_data(), path)) for path in watch.get_data().measured_files()}
    )


def _by_line(data: coverage.CoverageData, path: str) -> Iterator[tuple[int, set[int]]]:
    for line, contexts in data.contexts_by_lineno(path).items():
        yield line, {int(context) for context in contexts if context}
