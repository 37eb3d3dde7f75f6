"""The objective of a sweep: merge at a point, evaluate every task."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_wsl.errors import ConfigError
from lit_wsl.evaluation.baselines import Baselines
from lit_wsl.evaluation.merged import baselines_of, evaluate_merge, known_tasks, tasks_to_evaluate
from lit_wsl.evaluation.result import Evaluator, MergeEvaluation
from lit_wsl.evaluation.subset import SubsetSpec
from lit_wsl.evaluation.tasks import load_tasks, make_evaluator
from lit_wsl.merging.config import MergeConfig
from lit_wsl.runs.identity import content_hash, hash_inputs
from lit_wsl.runs.layout import RunLayout
from lit_wsl.sweep.outcome import Outcome, Params
from lit_wsl.sweep.paths import at_point

logger = logging.getLogger(__name__)

Optimise = Callable[[MergeConfig], MergeConfig]
"""Runs the optimizer of a configuration and gives the merge that it found."""
_OF_EVALUATION = ("eval_tasks", "split", "eval_subset", "output", "output_dir", "save_merged", "post_sweep_eval")


class MergeObjective:
    """Merges in memory and measures; the models and the data are made once in each process.

    Args:
        config: The merge, its tasks, split and subset.
        layout: Where baselines lie, and results if they are kept.
        evaluator: Knows the tasks; by default made from `tasks` of the configuration.
        keep: Write a run bundle for each point.
        optimise: Runs the `optimizer` of the configuration, once for each setting of it; by default it learns.
    """

    def __init__(
        self,
        config: MergeConfig,
        layout: RunLayout,
        *,
        evaluator: Evaluator | None = None,
        keep: bool = False,
        optimise: Optimise | None = None,
    ) -> None:
        self.config, self.layout, self._keep, self._optimise = config, layout, keep, optimise
        self._given = evaluator
        self._optimised: dict[str, MergeConfig] = {}
        if evaluator is None and not config.registry:
            raise ConfigError("A sweep measures tasks: name them in `tasks`, such as `configs/merge/tasks.yaml`.")

    def __call__(self, params: Params) -> Outcome:
        """Merge at a point and measure every task."""
        config = self._found(at_point(self.config, params))
        evaluation = evaluate_merge(
            config, self._evaluator, self.layout, baselines=self._baselines, save_results=self._keep
        )
        return outcome_of(evaluation)

    def keep_best(self, params: Params) -> Path:
        """Write a run bundle of a point, with the merged weights; returns its directory."""
        config = self._found(at_point(self.config, params))
        evaluation = evaluate_merge(
            config, self._evaluator, self.layout, baselines=self._baselines, save_results=True, save_merged=True
        )
        assert evaluation.run is not None
        return evaluation.run

    def _found(self, config: MergeConfig) -> MergeConfig:
        """The merge that the optimizer finds; a setting that was optimised before is not again."""
        if config.optimizer is None or config.optimizer.type == "none":
            return config
        key = content_hash({k: v for k, v in config.to_dict().items() if k not in _OF_EVALUATION})
        if key not in self._optimised:
            self._optimised[key] = (self._optimise or self._learned)(config)
        return replace(self._optimised[key], **{name: getattr(config, name) for name in _OF_EVALUATION})

    def _learned(self, config: MergeConfig) -> MergeConfig:
        """The merge by coefficients that are learned."""
        from lit_wsl.learning.run import learn_merge  # most sweeps learn nothing

        return learn_merge(config, layout=self.layout, wait=True).config

    @cached_property
    def tasks(self) -> list[str]:
        """What is measured."""
        return tasks_to_evaluate(self.config, self._evaluator)

    @cached_property
    def identity(self) -> str:
        """Hash of what the sources and the base hold, and of the rows, heads and metrics that are measured."""
        spec = self.config.to_merge_spec()
        stacked = [source.model for one in spec.slices for source in one.sources]
        named = dict.fromkeys([*spec.adapters, *spec.models, *spec.deltas, *stacked, *filter(None, [spec.base])])
        return content_hash([*hash_inputs(named).values(), *map(self._digest, self.tasks)])

    def _digest(self, task: str) -> str:
        """Hash of what a task measures; empty for one that cannot be measured, as its points will tell."""
        try:
            return self._evaluator.digest(task, self.config.split, SubsetSpec.read(self.config.eval_subset))
        except Exception as error:  # noqa: BLE001  # a foreign module may raise anything
            logger.debug("Task %s has no digest (%s).", task, error)
            return ""

    @cached_property
    def _evaluator(self) -> Evaluator:
        if self._given is not None:
            return self._given
        registry = self.config.registry
        names = known_tasks(self.config, registry)
        return make_evaluator(load_tasks(registry, base=self.config.origin, names=names), self.config.origin)

    @cached_property
    def _baselines(self) -> Baselines:
        return baselines_of(self.config, self._evaluator, self.layout)

    def __getstate__(self) -> dict[str, Any]:
        """For a further process: without the models, which it makes itself."""
        made = ("_evaluator", "_baselines", "_optimised")
        return {**{k: v for k, v in self.__dict__.items() if k not in made}, "_optimised": {}}


def outcome_of(evaluation: MergeEvaluation) -> Outcome:
    """What an evaluation means for a search."""
    return Outcome(evaluation.deltas, evaluation.report, evaluation.errors)
