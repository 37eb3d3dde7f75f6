"""The main job on real weights: train adapters on one base, search their merges, measure every task.

Every part leaves its result on disk under a key of what it was made from, so a second run, or one after
Ctrl-C, takes up finished parts.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_wsl.cli.checkpoints import quiet_transformers
from lit_wsl.cli.demo_adapters import base_model, train_adapters
from lit_wsl.cli.demo_report import Measured, Row, note, report
from lit_wsl.cli.finished import FinishedParts
from lit_wsl.cli.progress import progress_bar
from lit_wsl.errors import MergeError, WrongUsage
from lit_wsl.evaluation import Baselines, Evaluator, ScoreTable, evaluate_merge, make_evaluator
from lit_wsl.evaluation.content import digest_of
from lit_wsl.evaluation.recording import bundle_of
from lit_wsl.evaluation.scores import BASE, INDIVIDUAL
from lit_wsl.merging.config import MergeConfig
from lit_wsl.merging.run import merge
from lit_wsl.runs.layout import RunLayout, results_name
from lit_wsl.sweep import SweepResult, run_sweep
from lit_wsl.sweep.objective import MergeObjective
from lit_wsl.sweep.paths import at_point
from lit_wsl.sweep.records import Record
from lit_wsl.sweep.run import Progress
from lit_wsl.training.tasks import prepare_tasks

logger = logging.getLogger(__name__)

CANDIDATES: dict[str, tuple[str, dict[str, Any], dict[str, list[Any]]]] = {
    "uniform average": ("uniform_delta", {}, {}),
    "task arithmetic": ("task_arithmetic", {}, {"scale": [0.4, 0.5, 0.6, 0.7, 0.85, 1.0]}),
    "TIES": ("ties", {"k": 20}, {"lambda": [0.7, 1.0, 1.4, 1.8]}),
    "DARE": ("dare", {"drop_rate": 0.9}, {"lambda": [1.2, 1.5, 1.8, 2.1, 2.5, 3.0]}),
}
"""Rows of the table: method, parameters that are fixed, and the grid that is searched on validation rows."""


@dataclass(frozen=True)
class DemoSettings:
    """What the demo trains and where it writes."""

    output: Path
    tasks: list[str]
    threads: int
    limit_train: int | None = None


class Demo:
    """Runs the parts in order and remembers what is finished."""

    def __init__(self, settings: DemoSettings) -> None:
        _check(settings)
        self.settings = settings
        self.output = settings.output
        self.base = base_model()
        self._layout = RunLayout(self.output)
        self._memory = FinishedParts(self.output / "finished.json")

    def run(self) -> ScoreTable:
        """Train, search on validation rows, measure on test rows, report."""
        began = time.monotonic()
        quiet_transformers()
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        logger.info("1/4 Preparing the tasks %s.", ", ".join(self.settings.tasks))
        prepared = prepare_tasks(self.settings.tasks)
        logger.info("2/4 Training one adapter a task.")
        adapters = train_adapters(prepared, self.output, self._memory, self.settings.limit_train)
        configs = {name: self._config(name, adapters) for name in CANDIDATES}
        evaluator = make_evaluator(self._registry, self.base)
        logger.info("3/4 Searching parameters on validation rows.")
        sweeps = {name: self._sweep(name, config, evaluator) for name, config in configs.items()}
        logger.info("4/4 Measuring on test rows.")
        rows = {name: self._row(configs[name], sweep, evaluator) for name, sweep in sweeps.items()}
        best = max(rows, key=lambda name: rows[name].best.rank)
        model = self._write_model(at_point(configs[best], rows[best].best.params))
        scores = self._scores(rows, evaluator)
        report(self.output, scores, rows, best, model, time.monotonic() - began)
        return scores

    @property
    def _registry(self) -> str:
        return str(self.output / "configs" / "tasks.yaml")

    def _config(self, name: str, adapters: Mapping[str, Path]) -> MergeConfig:
        """The sweep of a row, with its files for ``lit-wsl merge-sweep``."""
        data = {"tokenizer": self.base, "batch_size": 64}
        tasks = {
            task: {"data": {"init_args": {"task": task, **data}}, "metric": "accuracy", "adapter": str(adapter)}
            for task, adapter in adapters.items()
        }
        _write_yaml(Path(self._registry), {"tasks": tasks})
        method, fixed, grid = CANDIDATES[name]
        fields: dict[str, Any] = {
            "adapters": [str(adapter) for adapter in adapters.values()],
            "base": self.base,
            "method": method,
            "method_params": dict(fixed),
            "output_format": "model",
            "threads": self.settings.threads,
            "tasks": self._registry,
            "constraint_nonnegative": False,
            "search": {"type": "grid", "grid": grid},
        }
        _write_yaml(self.output / "configs" / f"sweep_{name.lower().replace(' ', '_')}.yaml", fields)
        return MergeConfig(**fields).with_registry()

    def _sweep(self, name: str, config: MergeConfig, evaluator: Evaluator) -> SweepResult:
        """The parameters of a row, searched; points of an earlier run are taken up."""
        objective = MergeObjective(config, self._layout, evaluator=evaluator)
        result = run_sweep(config, objective, layout=self._layout, watch=partial(_tell, name))
        if result.status == "interrupted":
            raise KeyboardInterrupt
        if result.best is None:
            raise MergeError(f"{name}: no point could be measured ({result.failed[0].error}); see {result.path}.")
        logger.info("  %s: chosen %s.", name, _told(result.best))
        return result

    def _row(self, config: MergeConfig, sweep: SweepResult, evaluator: Evaluator) -> Row:
        """The best point of a sweep and the method's defaults on test rows."""
        assert sweep.best is not None
        chosen = replace(at_point(config, sweep.best.params), split="test")
        default = replace(chosen, method_params={})
        measured = [self._measured(one, evaluator) for one in (chosen, default)]
        return Row(config.method, sweep.path, sweep.best, *measured)

    def _measured(self, config: MergeConfig, evaluator: Evaluator) -> Measured:
        """A merge on test rows, kept as a run; one of the same merge and rows is taken up."""
        rows = [evaluator.digest(task, config.split) for task in self.settings.tasks]
        key = digest_of(bundle_of(config).merge_tag(self._layout), rows)
        known = self._memory.get(key)
        if known is None or not (Path(known) / results_name("test")).is_file():
            evaluation = evaluate_merge(config, evaluator, self._layout)
            if evaluation.errors:
                raise MergeError("; ".join(f"{task}: {error}" for task, error in evaluation.errors.items()))
            known = str(evaluation.run)
            self._memory.put(key, known)
        return Measured(config.method_params, Path(known))

    def _write_model(self, config: MergeConfig) -> Path:
        """The weights of a merge."""
        model = self.output / "model"
        with progress_bar("writing the merged model") as progress:
            merge(config.to_merge_spec(), output=str(model), overwrite=True, progress=progress)
        return model

    def _scores(self, rows: Mapping[str, Row], evaluator: Evaluator) -> ScoreTable:
        baselines, tasks = Baselines(evaluator, self._layout, self.base), self.settings.tasks
        scores: dict[str, Any] = {
            BASE: {task: baselines.base(task, "test") for task in tasks},
            INDIVIDUAL: {task: baselines.individual(task, "test") for task in tasks},
            **{name: row.chosen.scores for name, row in rows.items()},
        }
        counts = {task: one["rows"] for row in rows.values() for task, one in row.chosen.results.items()}
        return ScoreTable(tasks, scores, counts)


def _check(settings: DemoSettings) -> None:
    if settings.threads < 0 or (settings.limit_train is not None and settings.limit_train < 1):
        raise WrongUsage(
            f"`threads >= 0` and `limit_train >= 1` must hold, got {settings.threads} and {settings.limit_train}."
        )
    if len(set(settings.tasks)) != len(settings.tasks):
        raise WrongUsage(f"Each task counts once, got {settings.tasks}.")


def _tell(name: str, progress: Progress) -> None:
    for one in progress.new:
        logger.info("  %s %s", name, _told(one))


def _told(one: Record) -> str:
    if one.score is None:
        return f"{note(one.params)}: {one.error}"
    mean = one.score if one.mean is None else one.mean
    return f"{note(one.params) or 'as it is'}: validation lowest {one.score:.3f}, mean {mean:.3f}"


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False))
