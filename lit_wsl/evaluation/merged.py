"""Evaluate a merge: merged once, measured on every task, set against the base and the single adapters, recorded."""

import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_wsl.errors import ConfigError, LitWslError, MergeError, did_you_mean
from lit_wsl.evaluation.baselines import Baselines
from lit_wsl.evaluation.interference import interference_delta
from lit_wsl.evaluation.recording import bundle_of, record, with_weights
from lit_wsl.evaluation.result import Evaluator, MergeEvaluation, TaskResult
from lit_wsl.evaluation.subset import SubsetSpec
from lit_wsl.merging.config import MergeConfig
from lit_wsl.merging.run import merge_state_dict
from lit_wsl.runs.layout import RunLayout
from lit_wsl.runs.record import check_records
from lit_wsl.training.tasks import Split

logger = logging.getLogger(__name__)


def evaluate_merge(
    config: MergeConfig,
    evaluator: Evaluator,
    layout: RunLayout | None = None,
    *,
    state: Mapping[str, Tensor] | None = None,
    baselines: Baselines | None = None,
    save_results: bool = True,
    save_merged: bool = False,
    confusion: bool = True,
    directory: Path | None = None,
) -> MergeEvaluation:
    """Measure a merge on every task, without a detour through files.

    Every task runs the merged model, whatever the method and its parameters are.

    Args:
        config: The merge, its tasks, split and subset.
        evaluator: Knows the tasks; one for many merges makes models and data once.
        layout: Where results and baselines lie; default below ``artifacts``.
        state: The merged model, if it is there already.
        baselines: Those of earlier merges, so that they are read once.
        save_results: Write the run bundle, the unified evaluation, the metrics per task with their links and the index.
        save_merged: Write the merged weights into the run's directory, too.
        confusion: Draw confusion matrices beside the metrics.
        directory: Run directory that was made before, such as one with the merged weights.

    Returns:
        Scores of every task; a task that fails has an error, and the others go on.

    Raises:
        LitWslError: If a task is unknown, the merge cannot be done, or results cannot be written.
    """
    layout = layout or RunLayout()
    tasks = tasks_to_evaluate(config, evaluator)
    subset = SubsetSpec.read(config.eval_subset)
    bundle = bundle_of(config, directory) if save_results else None
    if bundle is not None:
        check_records(layout, bundle)
        bundle = with_weights(bundle, config, layout) if save_merged else bundle
    elif save_merged:
        raise ConfigError("The merged weights lie in the run's directory, so `save_merged` needs `save_results`.")
    merged = merge_state_dict(config.to_merge_spec()) if state is None else state
    baselines = baselines or baselines_of(config, evaluator, layout, remember=save_results)
    evaluation = measure(merged, tasks, config.split, subset, evaluator, baselines)
    return evaluation if bundle is None else record(evaluation, layout, bundle, confusion=confusion)


def tasks_to_evaluate(config: MergeConfig, evaluator: Evaluator) -> list[str]:
    """The tasks of an evaluator that a configuration means; see :func:`known_tasks`."""
    return known_tasks(config, evaluator.registry)


def known_tasks(config: MergeConfig, known: Collection[str]) -> list[str]:
    """The tasks that a configuration names, else those of its sources that are known.

    Raises:
        ConfigError: If a named task is unknown, or no source has one.
    """
    unknown = next((name for name in config.eval_tasks or () if name not in known), None)
    if unknown is not None:
        raise ConfigError(f"Unknown task {unknown!r} in `eval_tasks`. {did_you_mean(unknown, known)}")
    tasks = [name for name in config.evaluated_tasks if name in known]
    if not tasks:
        raise ConfigError(f"No source is named after a task; name some with `--eval_tasks`. {did_you_mean('', known)}")
    return tasks


def baselines_of(config: MergeConfig, evaluator: Evaluator, layout: RunLayout, *, remember: bool = True) -> Baselines:
    """The baselines that fit a configuration: its base, and each source for the task that it is named after."""
    adapters = {} if config.slices else dict(zip(config.source_tasks, config.to_merge_spec().sources, strict=True))
    compute = config.compute_missing_interference_baselines
    return Baselines(evaluator, layout, config.origin, adapters, compute, remember)


def measure(
    state: Mapping[str, Tensor],
    tasks: Sequence[str],
    split: Split,
    subset: SubsetSpec | None,
    evaluator: Evaluator,
    baselines: Baselines,
) -> MergeEvaluation:
    """Measure one model on tasks; a task that fails has an error, and the others go on."""
    began = time.monotonic()
    results: dict[str, TaskResult] = {}
    deltas: dict[str, float | None] = {}
    errors: dict[str, str] = {}
    report: dict[str, dict[str, Any]] = {}
    for task in tasks:
        try:
            results[task] = _finite(evaluator.evaluate(state, task, split, subset))
        except Exception as error:  # noqa: BLE001  # a foreign module may raise anything, and the others must go on
            logger.debug("Task %s failed.", task, exc_info=True)
            errors[task] = _told(error)
            report[task] = {"error": errors[task]}
            continue
        parts = _interference(results[task], split, subset, baselines)
        deltas[task] = parts.get("interference_delta")
        report[task] = {**results[task].to_dict(), **parts}
    tag = subset.tag if subset else ""
    return MergeEvaluation(split, tag, results, deltas, errors, report, time.monotonic() - began)


def _finite(result: TaskResult) -> TaskResult:
    """The result, if the metric that counts is a number."""
    if result.score is not None and not math.isfinite(result.score):
        raise MergeError(f"{result.primary} is {result.score}; the merged weights, or a loss, overflow.")
    return result


def _interference(result: TaskResult, split: Split, subset: SubsetSpec | None, baselines: Baselines) -> dict[str, Any]:
    """The delta with what it was computed from; no delta without a gain, and nothing without a baseline."""
    if result.score is None:
        return {}
    base = baselines.base(result.task, split, subset)
    individual = baselines.individual(result.task, split, subset)
    if base is None or individual is None:
        return {}
    delta = interference_delta(base, individual, result.score, higher_is_better=result.direction == "max")
    meta = {
        "metric": result.primary,
        "base": base,
        "task_adapter": individual,
        "merged": result.score,
        "split": split,
        "direction": result.direction,
        "subset": subset.tag if subset else None,
    }
    found = {"interference_delta_meta": meta}
    return found if delta is None else {"interference_delta": delta, **found}


def _told(error: Exception) -> str:
    """The error in one line; the kind of one that is not ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, LitWslError) else f"{type(error).__name__}: {text}"
