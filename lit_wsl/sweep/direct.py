"""`optimizer: {type: bayes}` of a direct merge: the parameters are searched first, and the merge takes the best."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lit_wsl.errors import ConfigError, MergeError
from lit_wsl.merging.config import MergeConfig
from lit_wsl.merging.method import method_class
from lit_wsl.runs.layout import RunLayout
from lit_wsl.sweep.outcome import Objective
from lit_wsl.sweep.paths import at_point
from lit_wsl.sweep.run import POLL_SECONDS, Progress, SweepResult, run_sweep

DEFAULT_SPACES: dict[str, dict[str, Any]] = {
    "scale": {"min": 0.0, "max": 2.0},
    "lambda": {"min": 0.0, "max": 1.0},
    "k": {"min": 5.0, "max": 80.0},
}
"""What is searched where the optimizer names no space: those of these that the method has."""
_OF_EVALUATION = ("split", "eval_tasks", "eval_subset", "constraint_nonnegative")
"""Parameters of the optimizer that say what is measured; all others are those of a `search`."""


def optimise_merge(
    config: MergeConfig,
    objective: Objective | None = None,
    *,
    layout: RunLayout | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> tuple[MergeConfig, SweepResult]:
    """Search the parameters of a merge and put the best in place.

    Rows of `validation` are measured unless the optimizer's `split` says otherwise, so that `test` stays unseen. Points
    that other processes measure in the same study are waited for.

    Args:
        config: A merge with `optimizer: {type: bayes}`.
        objective: Measures a point; by default merges and evaluates.
        layout: Where the study lies if the configuration names no `output_dir`.
        watch: Told of points that ended.

    Returns:
        The merge with the best parameters and without an optimizer, and what the search found.

    Raises:
        ConfigError: If the search cannot be as it is.
        MergeError: If no point may be chosen.
        KeyboardInterrupt: After Ctrl-C; the same command continues the search.
    """
    sweep = search_of(config)
    while (result := run_sweep(sweep, objective, layout=layout, watch=watch)).status == "running":
        time.sleep(POLL_SECONDS)  # other processes measure the last points, one of which may be the best
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if result.best_params is None:
        why = (
            f"all points failed, first: {result.failed[0].error}"
            if result.failed
            else "each leaves a task below the base"
        )
        raise MergeError(f"The search found no parameters ({why}); see {result.path}.")
    return at_point(config, result.best_params), result


def search_of(config: MergeConfig) -> MergeConfig:
    """The sweep that finds the parameters of a direct merge.

    Raises:
        ConfigError: If its optimizer is another, or has nothing to search.
    """
    if config.optimizer is None or config.optimizer.type != "bayes":
        raise ConfigError("Only `optimizer: {type: bayes}` searches the parameters of a direct merge.")
    given = dict(config.optimizer.params)
    measured = {name: given.pop(name) for name in _OF_EVALUATION if name in given}
    search = {**(config.search or {}), "type": "bayes", **given}
    if not search.get("space"):
        known = method_class(config.method)().params()
        search["space"] = {name: one for name, one in DEFAULT_SPACES.items() if name in known}
    if not search["space"]:
        raise ConfigError(f"Method {config.method!r} has no usual parameter to search; give `optimizer.params.space`.")
    changes = {"split": "validation", **measured, "optimizer": None, "save_merged": False, "post_sweep_eval": None}
    return replace(config, **changes, search=search)
