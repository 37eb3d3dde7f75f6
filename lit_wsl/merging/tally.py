"""Count what a method kept of the task vectors, in a pass of its own."""

from collections import Counter
from concurrent.futures import as_completed
from functools import partial
from typing import Any

from lit_wsl.merging.coverage import LACKING, ODD_SHAPE
from lit_wsl.merging.engine import ParameterMerger
from lit_wsl.merging.method import MergeMethod
from lit_wsl.merging.plan import MergePlan
from lit_wsl.merging.spreading import largest_first, workers
from lit_wsl.merging.stacks import ModelStatistics


def tally_model(plan: MergePlan, statistics: ModelStatistics) -> dict[str, Any]:
    """What the method kept over all merged parameters; empty, without a pass, for methods that count nothing."""
    counts: Counter[str] = Counter()
    if type(plan.method).tally is MergeMethod.tally:
        return {}
    with workers(plan, partial(_tally_parameter, plan, statistics)) as pool:
        for job in as_completed([pool.submit(name) for name in largest_first(plan.merged, plan.merged)]):
            counts.update(job.result())
    return {
        **plan.method.stats(counts),
        "merged_parameter_count": len(plan.merged),
        "skipped_missing_key_count": _skipped(plan, LACKING),
        "skipped_shape_mismatch_count": _skipped(plan, ODD_SHAPE),
    }


def _skipped(plan: MergePlan, beginnings: tuple[str, ...]) -> int:
    """Parameters that are left out for reasons that begin like that."""
    return sum(reason.startswith(beginnings) for reason in plan.skipped.values())


def _tally_parameter(plan: MergePlan, statistics: ModelStatistics, name: str) -> Counter[str]:
    return ParameterMerger(plan, name, statistics).tally()
