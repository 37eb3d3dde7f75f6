"""How a learner's merge is measured on rows that it does not learn from, as ``optimizer.params.heldout_eval`` says."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.evaluation.subset import SubsetSpec
from lit_wsl.learning.heldout.pareto import PARETO, criterion_name
from lit_wsl.merging.parameters import is_finite, is_number
from lit_wsl.merging.settings import read_part, renamed
from lit_wsl.training.tasks import Split

WHERE = "optimizer.params.heldout_eval"
_OLD = {
    "frequency_updates": "every_updates",
    "eval_subset": "subset",
    "restore_best_checkpoint": "restore_best",
    "selection_criterion": "criterion",
    "hypervolume_min_delta": "min_delta",
}
_FLAGS = ("enabled", "restore_best", "compute_missing_interference_baselines")
_LEAST = {"every_updates": 1, "min_evals_before_stop": 1, "patience_evals": 0}


@dataclass(frozen=True)
class HeldOutSettings:
    """When to measure, on what, and how to choose.

    Raises:
        ConfigError: If a value has the wrong type or is out of range.
    """

    enabled: bool = True
    """Whether it is measured at all."""
    every_updates: int = 100
    """Measure after so many updates, and after the last."""
    split: Split = "validation"
    """Rows to measure on; not those that are learned from."""
    subset: Mapping[str, Any] | None = None
    """Some of them: ``max_samples``, ``shuffle``, ``seed``, ``stratified``, ``per_task``."""
    max_samples: int | None = None
    """So many of them; the short form of a ``subset``."""
    batch_size: int | None = None
    """Rows in a batch, for data modules that have this argument; default as the registry of tasks says."""
    tasks: Sequence[str] | None = None
    """What to measure; default what is learned on."""
    criterion: str = PARETO
    """What is best: ``pareto_hypervolume``, ``best_single_metric``, ``l2_shortfall``, ``min``, ``arithmetic_mean`` or
    ``geometric_mean`` of the interference deltas; other names are in ``heldout.pareto.ALIASES``."""
    patience_evals: int = 0
    """Stop after so many measurements in a row without growth; 0 never stops."""
    min_evals_before_stop: int = 1
    """Measurements before it may stop."""
    min_delta: float = 0.0
    """What counts as growth: of the frontier's hypervolume, or of the criterion."""
    dominance_epsilon: float = 0.0
    """Advance in a task that is worth no point of its own on the frontier."""
    reference_point: float | Sequence[float] | Mapping[str, float] = 0.0
    """Deltas that hypervolumes start at: one for all, one a task, or by task."""
    restore_best: bool = True
    """Give the coefficients the chosen values in the end."""
    compute_missing_interference_baselines: bool = True
    """Measure the base and the single tasks where no earlier run has."""

    def __post_init__(self) -> None:
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"`{WHERE}.{name}` must be true or false, got {getattr(self, name)!r}.")
        for name, least in _LEAST.items():
            _check_number(name, getattr(self, name), least, whole=True)
        for name in ("min_delta", "dominance_epsilon"):
            _check_number(name, getattr(self, name), 0)
        for name in ("batch_size", "max_samples"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), 1, whole=True)
        if self.split not in get_args(Split):
            raise ConfigError(f"Unknown `{WHERE}.split` {self.split!r}. {did_you_mean(self.split, get_args(Split))}")
        if isinstance(self.tasks, str) or (self.tasks is not None and not self.tasks):
            raise ConfigError(f"`{WHERE}.tasks` must be a list of task names, got {self.tasks!r}.")
        if self.max_samples is not None and self.subset is not None:
            raise ConfigError(f"`{WHERE}.max_samples` is the short form of `subset`; give one of them.")
        object.__setattr__(self, "criterion", criterion_name(self.criterion))
        self.rows()

    def rows(self) -> SubsetSpec | None:
        """The subset that is measured; None for the whole split."""
        given = self.subset if self.max_samples is None else {"max_samples": self.max_samples}
        try:
            return SubsetSpec.read(given)
        except ConfigError as error:
            raise ConfigError(f"`{WHERE}.subset`: {error}") from error

    def reference(self, tasks: Sequence[str]) -> list[float]:
        """The reference point over tasks.

        Raises:
            ConfigError: If it is of other tasks, or no numbers.
        """
        given = self.reference_point
        if isinstance(given, Mapping):
            unknown = next((task for task in given if task not in tasks), None)
            if unknown is not None:
                raise ConfigError(f"`{WHERE}.reference_point` names {unknown!r}. {did_you_mean(str(unknown), tasks)}")
            values: list[Any] = [given.get(task, 0.0) for task in tasks]
        elif isinstance(given, Sequence) and not isinstance(given, str):
            values = list(given)
        else:
            values = [given] * len(tasks)
        if len(values) != len(tasks) or not all(is_number(value) and is_finite(value) for value in values):
            raise ConfigError(f"`{WHERE}.reference_point` must be a number for each of {list(tasks)}, got {given!r}.")
        return [float(value) for value in values]


def read_heldout(given: Any) -> HeldOutSettings | None:
    """The settings of a mapping; None without one, or with ``enabled: false``.

    Names of former forms are understood, and so is a part ``pareto`` inside.

    Raises:
        ConfigError: If a key is unknown, or a value wrong.
    """
    if given is None or given is False:
        return None
    if given is True:
        return HeldOutSettings()
    if isinstance(given, Mapping):
        given = renamed(_flat(given), _OLD)
    settings = read_part(HeldOutSettings, given, WHERE)
    return settings if settings.enabled else None


def _flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """Without the part ``pareto``, whose ``selection_min_delta`` goes before its ``hypervolume_min_delta``."""
    inner = given.get("pareto") or {}
    if not isinstance(inner, Mapping):
        raise ConfigError(f"`{WHERE}.pareto` must be a mapping, got {inner!r}.")
    flat = {**inner, **{key: value for key, value in given.items() if key != "pareto"}}
    if "selection_min_delta" in flat:
        selection = flat.pop("selection_min_delta")
        flat.setdefault("min_delta", selection)
    return flat


def _check_number(name: str, value: Any, least: float, *, whole: bool = False) -> None:
    if not is_number(value) or not least <= value < math.inf or (whole and not isinstance(value, int)):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"`{WHERE}.{name}` must be {kind} of at least {least}, got {value!r}.")
