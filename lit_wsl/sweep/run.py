"""Run a sweep: begin or join its study, measure points, say what was found, and keep the best."""

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_wsl.merging.config import MergeConfig
from lit_wsl.runs.layout import RunLayout
from lit_wsl.sweep.export import summary_file, summary_of, write_summary
from lit_wsl.sweep.final import keep_merged, measure_elsewhere, post_config, read_earlier
from lit_wsl.sweep.history import known_points, warm_start
from lit_wsl.sweep.identity import described, study_name
from lit_wsl.sweep.outcome import Objective, Params
from lit_wsl.sweep.paths import check_names
from lit_wsl.sweep.records import Record, best_of
from lit_wsl.sweep.report import LiveReport
from lit_wsl.sweep.settings import read_search
from lit_wsl.sweep.storage import place_of
from lit_wsl.sweep.study import SweepStudy
from lit_wsl.sweep.workers import Job, others, work
from lit_wsl.tensors.workers import free_cores

if TYPE_CHECKING:
    from lit_wsl.sweep.objective import MergeObjective

Status = Literal["complete", "early_stopped", "interrupted", "running"]
POLL_SECONDS = 0.5
ENOUGH = {"budget", "space"}


@dataclass(frozen=True)
class Progress:
    """How far a sweep is, for whoever watches."""

    new: list[Record]
    """Points that ended since the last time, of all processes."""
    best: Record | None
    finished: int
    budget: float | None
    """Points in all; infinite or None where nobody knows."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found."""

    status: Status
    """`running` where processes elsewhere still measure points; the last of them finishes the sweep."""
    summary: Mapping[str, Any]
    """What the JSON holds."""
    path: Path
    """The JSON."""
    report: Path | None
    """The page, with its plots beside it."""
    records: list[Record]
    reason: str | None = None
    """Why it ended early."""

    @property
    def best(self) -> Record | None:
        """The best feasible point."""
        return best_of(self.records)

    @property
    def best_params(self) -> Params | None:
        """Its parameters."""
        return None if self.best is None else self.best.params

    @property
    def failed(self) -> list[Record]:
        """Points that could not be measured."""
        return [one for one in self.records if one.state == "failed"]


def run_sweep(
    config: MergeConfig,
    objective: Objective | None = None,
    *,
    layout: RunLayout | None = None,
    post_objective: Objective | None = None,
    workers: int | None = None,
    watch: Callable[[Progress], None] | None = None,
    report: bool = True,
) -> SweepResult:
    """Search the parameters of a merge; a sweep that was begun before, or runs elsewhere, is continued.

    Args:
        config: The merge with its `search`.
        objective: Measures a point; by default merges and evaluates. With several workers it must be picklable. Its
            attribute `identity`, if it has one, tells contents of sources apart that have the same name.
        layout: Where outputs lie if the configuration names no `output_dir`.
        post_objective: Measures the best point as `post_sweep_eval` asks; by default merges and evaluates.
        workers: Processes; default what the search says, or one.
        watch: Told of points that ended.
        report: Whether to draw plots and the page, anew as points come in.

    Returns:
        What was found. After Ctrl-C what was found so far: the status is then `interrupted`.

    Raises:
        ConfigError: If the search cannot be as it is; nothing was measured then.
    """
    settings = read_search(config.search)
    check_names(config, settings.space.dimensions)
    count = workers or settings.workers
    elsewhere = post_config(config)
    config = replace(config, threads=_share(count)) if count > 1 and not config.threads else config
    layout = layout or RunLayout()
    objective = _merging(config, layout) if objective is None else objective
    if elsewhere is not None and post_objective is None:
        post_objective = _merging(elsewhere, layout, keep=True)
    directory = sweeps_dir(config, layout)
    name = study_name(config, str(_told_by(objective, "identity", "")))
    job = Job(
        name,
        place_of(settings.storage, directory),
        settings,
        _tasks(config, objective),
        config.constraint_nonnegative,
        objective,
    )
    running = _Running(config, job, directory, watch, report=report)
    status = running.work(count)
    if status in ("complete", "early_stopped"):
        try:
            running.finish(elsewhere, post_objective)
        except KeyboardInterrupt:
            status = "interrupted"
    return running.result(status)


def _merging(config: MergeConfig, layout: RunLayout, *, keep: bool = False) -> "MergeObjective":
    """The objective that merges and evaluates."""
    from lit_wsl.sweep.objective import MergeObjective  # models are imported only where they are needed

    return MergeObjective(config, layout, keep=keep)


def sweeps_dir(config: MergeConfig, layout: RunLayout) -> Path:
    """Where the sweeps of a configuration lie."""
    if config.output_dir:
        return Path(config.output_dir).expanduser() / "sweeps"
    return layout.sweeps_dir(config.method, config.source_tasks)


def _tasks(config: MergeConfig, objective: Objective) -> list[str]:
    return list(_told_by(objective, "tasks", config.evaluated_tasks))


def _told_by(objective: Objective, name: str, default: Any) -> Any:
    """An attribute that an objective may have; an error in a property that it has is that error."""
    missing = object()
    return default if inspect.getattr_static(objective, name, missing) is missing else getattr(objective, name)


def _share(count: int) -> int:
    """Cores for each of several processes."""
    return max(1, free_cores() // count)


class _Running:
    """A sweep as this process runs it."""

    def __init__(
        self,
        config: MergeConfig,
        job: Job,
        directory: Path,
        watch: Callable[[Progress], None] | None,
        *,
        report: bool,
    ) -> None:
        self._config, self._job, self._watch = config, job, watch
        self._study: SweepStudy = job.study()
        self._path = summary_file(directory, self._study)
        self._earlier = read_earlier(self._path)
        self._description = described(config)
        self._live = LiveReport(self._path.with_suffix("")) if report else None
        self._extra: dict[str, Any] = {name: self._earlier.get(name) for name in ("post_sweep_eval", "merged")}
        settings = job.settings
        known = known_points(settings, config.method)
        self._study.inject([*known, *warm_start(settings, self._description, self._path)])
        self._told: set[int] = {one.number for one in self._study.records() if one.is_finished}

    def work(self, count: int) -> Status:
        """Measure points, alone or with further processes, until none is left to begin."""
        self._export("running")
        try:
            with others(self._job, count - 1) as processes:
                work(self._study, self._job.objective, self._after, lambda: True)
                while any(process.is_alive() for process in processes):
                    time.sleep(POLL_SECONDS)
                    self._tell()
            work(self._study, self._job.objective, self._after, lambda: True)  # what a process that died left
        except KeyboardInterrupt:
            self._tell()
            return "interrupted"
        self._tell()
        records = self._study.records()
        if any(one.state == "running" for one in records):
            return "running"
        return "complete" if self._study.ended(records) in ENOUGH else "early_stopped"

    def _after(self) -> None:
        summary = self._export("running")
        self._tell()
        if self._live is not None:
            self._live.refresh(self._study, summary)

    def _tell(self) -> None:
        records = self._study.records()
        new = [one for one in records if one.is_finished and one.number not in self._told]
        self._told |= {one.number for one in new}
        if new and self._watch is not None:
            budget = self._job.settings.budget
            whole = self._job.settings.space.count if budget is None else budget
            self._watch(Progress(new, best_of(records), self._study.used(records), whole))

    def _reason(self) -> str | None:
        ended = self._study.ended(self._study.records())
        return None if ended in ENOUGH else ended

    def _export(self, status: Status) -> dict[str, Any]:
        with self._study.place.turn():  # else a process that read less could write last
            summary = summary_of(
                self._study,
                self._description,
                self._config.search or {},
                status=status,
                reason=self._reason() if status == "early_stopped" else None,
                extra=self._extra,
            )
            write_summary(self._path, summary)
        return summary

    def finish(self, elsewhere: MergeConfig | None, post_objective: Objective | None) -> None:
        """Measure the best point elsewhere and keep it, where that is asked for."""
        best = best_of(self._study.records())
        if best is None:
            return
        if elsewhere is not None and post_objective is not None:
            self._extra["post_sweep_eval"] = measure_elsewhere(
                elsewhere, post_objective, best.params, self._extra.get("post_sweep_eval")
            )
        if self._config.save_merged:
            target = self._path.with_suffix("") / "merged"
            self._extra["merged"] = keep_merged(
                self._config, self._job.objective, best.params, target, self._extra.get("merged")
            )

    def result(self, status: Status) -> SweepResult:
        """Write everything a last time."""
        summary = self._export(status)
        page = self._live.write(self._study, summary) if self._live is not None else None
        records = self._study.records()
        reason = self._reason() if status == "early_stopped" else None
        return SweepResult(status, summary, self._path, page, records, reason)
