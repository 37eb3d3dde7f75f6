"""Objectives without models, and configurations of sweeps over them."""

import os
import pickle
import signal
import time
from pathlib import Path

from lit_wsl.merging.config import MergeConfig
from lit_wsl.sweep import Outcome, run_sweep

LAMBDA = {"lambda": {"type": "float", "min": 0.0, "max": 2.0}}
BOTH = {**LAMBDA, "k": {"type": "int", "min": 5, "max": 80}}


def config(directory, search=None, **fields):
    """A sweep of TIES over two adapters, with a journal, which needs no time to set up."""
    values = {"adapters": ["a", "b"], "method": "ties", "output_dir": str(directory), **fields}
    return MergeConfig(**values, search={"storage": "journal", **(search or {})})


def bayes(directory, budget=6, space=None, fields=None, **search):
    given = {"type": "bayes", "budget": budget, "seed": 7, "init_points": 3, "space": space or LAMBDA}
    return config(directory, {**given, **search}, **(fields or {}))


def grid(directory, values=(0.2, 0.4, 1.5), fields=None, **search):
    return config(directory, {"type": "grid", "grid": {"lambda": list(values)}, **search}, **(fields or {}))


def hill(params):
    """Two tasks with different best points; the lowest delta is highest at lambda 0.5, where both have 0.97."""
    lam = params.get("lambda", 0.5)
    loss = abs(params.get("k", 30) - 30) / 100
    return Outcome({"a": 1 - 3 * (lam - 0.6) ** 2 - loss, "b": 1 - 3 * (lam - 0.4) ** 2 - loss})


def with_results(params):
    outcome = hill(params)
    return Outcome(outcome.deltas, {task: {"interference_delta": value} for task, value in outcome.deltas.items()})


def broken_above_one(params):
    """One task cannot be evaluated where lambda is above 1."""
    outcome = hill(params)
    if params["lambda"] <= 1:
        return outcome
    return Outcome({"a": outcome.deltas["a"]}, {"b": {"error": "no rows"}}, {"b": "no rows"})


def raising_above_one(params):
    if params["lambda"] > 1:
        raise RuntimeError("out of memory")
    return hill(params)


class Counted:
    """Counts its calls; interrupts, or kills its process, at one of them."""

    def __init__(self, inner=hill, interrupt_at=None, kill_at=None):
        self.inner, self.interrupt_at, self.kill_at, self.calls = inner, interrupt_at, kill_at, []

    def __call__(self, params):
        self.calls.append(params)
        if len(self.calls) == self.interrupt_at:
            raise KeyboardInterrupt
        if len(self.calls) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(params)


class Noted:
    """Leaves a file for each point that it measures, with the process in its name; may take its time."""

    def __init__(self, folder, seconds=0.0):
        self.folder, self.seconds = Path(folder), seconds

    def __call__(self, params):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{os.getpid()}-{time.monotonic_ns()}").write_text(repr(params))
        time.sleep(self.seconds)
        return hill(params)


class Unpicklable:
    """What pickle refuses by its own kind of error, as it does a lambda of a module."""

    def __call__(self, params):
        return hill(params)

    def __reduce__(self):
        raise pickle.PicklingError("Can't pickle <function <lambda>>: attribute lookup <lambda> failed")


class Together(Noted):
    """Measures nothing before so many processes have a point each."""

    def __init__(self, folder, processes):
        super().__init__(folder)
        self.processes = processes

    def __call__(self, params):
        outcome = super().__call__(params)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(self.seen()) < self.processes:
            time.sleep(0.05)
        return outcome

    def seen(self):
        return {note.name.split("-")[0] for note in self.folder.iterdir()}


def swept(one, objective=hill, **options):
    return run_sweep(one, objective, **{"report": False, **options})


def points(result):
    """Parameters and scores of the measured points, in order."""
    return [(one.params, one.score) for one in result.records if one.is_finished]
