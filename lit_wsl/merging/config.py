"""One configuration for merging, evaluating and sweeping: a merge, and what is done with it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.merging.config_files import read_fields
from lit_wsl.merging.field_types import check_fields
from lit_wsl.merging.settings import OptimizerSpec, read_part
from lit_wsl.merging.spec import MergeSpec
from lit_wsl.merging.task_names import read_registry, resolve_adapters, tasks_of

SEARCHES = ("grid", "bayes", "tpe", "cmaes", "random", "nsga2")
"""How a sweep chooses its points."""


@dataclass(frozen=True)
class MergeConfig(MergeSpec):
    """A merge with its search and its evaluation; a direct merge leaves both aside.

    ``adapters`` may name tasks of ``tasks``.

    Raises:
        ConfigError: If a field has the wrong type, or fields contradict each other.
    """

    optimizer: OptimizerSpec | None = None
    """What finds the parameters: `{type: ..., params: {...}}`, or the type alone."""
    search: dict[str, Any] | None = None
    """What a sweep tries: `type` (`grid`, `bayes`, `tpe`, `cmaes`, `random`, `nsga2`), `grid` or `space`, `budget`."""
    constraint_nonnegative: bool = True
    """A point of a sweep counts only if no task falls below the base."""
    eval_tasks: list[str] | None = None
    """Tasks to evaluate; default those of the sources."""
    split: Literal["train", "validation", "test"] = None  # type: ignore[assignment]  # filled in below
    """Rows to evaluate on; default `test`, and `validation` where there is a `search`."""
    save_merged: bool = False
    """Keep the merged weights in the run's directory."""
    eval_subset: dict[str, Any] | None = None
    """Evaluate on some rows only: `max_samples`, `shuffle`, `seed`, `stratified`, `per_task`."""
    output_dir: str | None = None
    """Directory of the runs, relative to the working directory; default by method and tasks."""
    compute_missing_interference_baselines: bool = True
    """Measure the base and the single tasks where no earlier run has."""
    tasks: dict[str, dict] | str | None = None  # not `Any`: a parser would make objects of its `class_path`
    """What can be evaluated, and the adapter of each task: a mapping, or the path of a YAML file with one."""
    post_sweep_eval: dict[str, Any] | None = None
    """Evaluate the best point of a sweep once more, on another `split` or other `eval_tasks`."""
    learned_from: dict[str, Any] | None = None
    """What found the coefficients, as learning writes it down: the `optimizer`, and the directory of its `run`."""

    def __post_init__(self) -> None:
        if self.split is None:
            object.__setattr__(self, "split", "validation" if self.search else "test")
        if self.optimizer is not None:
            given = {"type": self.optimizer} if isinstance(self.optimizer, str) else self.optimizer
            object.__setattr__(self, "optimizer", read_part(OptimizerSpec, given, "optimizer"))
        super().__post_init__()
        _check_search(self.search)
        if self.learned_from is not None:
            read_part(OptimizerSpec, self.learned_from.get("optimizer") or {}, "learned_from.optimizer")

    def to_merge_spec(self) -> MergeSpec:
        """The merge alone, with task names replaced by the paths of their adapters.

        Raises:
            ConfigError: If a name is neither a task nor a directory.
        """
        values = {one.name: getattr(self, one.name) for one in fields(MergeSpec)}
        return MergeSpec(**{**values, "adapters": resolve_adapters(self.adapters, self.registry)})

    def with_registry(self) -> "MergeConfig":
        """The same with ``tasks`` written out, so that it says all by itself.

        Raises:
            ConfigError: If the file of tasks cannot be read.
        """
        return self if self.tasks is None else replace(self, tasks=self.registry)

    @property
    def registry(self) -> dict[str, Any]:
        """What ``tasks`` says of each task; empty without."""
        return read_registry(self.tasks)

    @property
    def source_tasks(self) -> list[str]:
        """The task of each source, in their order: by name, by the path of its adapter, or else the last part of it."""
        return tasks_of(self.sources, self.registry)

    @property
    def evaluated_tasks(self) -> list[str]:
        """What to evaluate: ``eval_tasks``, or else the tasks of the sources."""
        return list(self.eval_tasks if self.eval_tasks is not None else dict.fromkeys(self.source_tasks))


def load_merge_config(path: str | Path) -> MergeConfig:
    """Read a configuration and refuse what cannot be merged, before any weights are opened.

    Args:
        path: A YAML file: one of ours, of a former form (a warning says what to change), or of mergekit.

    Raises:
        ConfigError: If the file cannot be read, or it names unknown keys, methods, parameters or transforms.
    """
    from lit_wsl.merging.checking import check_methods  # which needs torch

    config = read_merge_config(path)
    try:
        check_methods(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def read_merge_config(path: str | Path) -> MergeConfig:
    """Read a configuration without a look at what methods there are, so that it takes no time.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown, or a value has the wrong type.
    """
    content = read_fields(path)
    try:
        if "method" not in content:
            raise ConfigError("no `method` is named; `lit-wsl merge --list_methods` shows all.")
        return config_of(content).with_registry()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def config_of(content: Mapping[str, Any]) -> MergeConfig:
    """The configuration with these fields.

    Raises:
        ConfigError: If one is unknown or has the wrong type.
    """
    known = [one.name for one in fields(MergeConfig)]
    for key in content:
        if key not in known:
            raise ConfigError(f"Unknown key {key!r}. {did_you_mean(str(key), known)} Allowed: {', '.join(known)}.")
    return MergeConfig(**content)


def check_types(content: Mapping[str, Any]) -> None:
    """Refuse values that the fields of a configuration cannot hold, as far as a file can say it.

    Raises:
        ConfigError: If a value has the wrong type.
    """
    check_fields(MergeConfig, content)


def _check_search(search: Mapping[str, Any] | None) -> None:
    """Refuse a search that no sweep knows, or whose grid or space is no mapping."""
    if search is None:
        return
    kind = search.get("type", "grid")
    if kind not in SEARCHES:
        raise ConfigError(f"Unknown `search.type` {kind!r}. {did_you_mean(str(kind), SEARCHES)}")
    for part in ("grid", "space"):
        if search.get(part) is not None and not isinstance(search[part], Mapping):
            raise ConfigError(f"`search.{part}` must be a mapping of parameters, got {search[part]!r}.")
