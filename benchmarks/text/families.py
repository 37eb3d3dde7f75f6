"""What is merged: each family with the parameters that are fixed, and the grid searched on validation rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """One row of the table."""

    title: str
    """What the table calls it."""
    kind: Literal["sum", "sparse", "spectral", "data", "learned"]
    """What it goes by: a plain sum, entries that are left out, matrices, training rows, or a learner."""
    method: str
    """The merge method."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that all points have."""
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    """Parameters that are searched; without any the method is taken as it is."""
    statistics: Literal["gram", "fisher"] | None = None
    """What it needs to know of each task's training rows."""
    learner: str | None = None
    """What learns its coefficients, on validation rows; the grid then has the learner's parameters."""
    learning: Mapping[str, Any] = field(default_factory=dict)
    """What it learns by, beside the parameters of all learners."""

    def few(self, values: int | None) -> "Family":
        """The same with the first so many values of every parameter; None takes all."""
        grid = {name: list(islice(listed, values)) for name, listed in self.grid.items()}
        return replace(self, grid=grid)


_SUM = [0.3, 0.4, 0.5, 0.6]
"""Factors on a sum of task vectors."""
_MEAN = [0.5, 0.7, 1.0, 1.4, 2.0]
"""Factors on a mean of the sources that agree in sign, whatever their number."""
_VARIANTS = {"optimizer.params.variant": ["task_wise", "tensor_wise"]}
"""One coefficient a task, or one for every parameter of the model."""


_HELD_OUT = {"enabled": True, "every_updates": 10, "split": "validation", "criterion": "arithmetic_mean"}
"""Entropies fall on although accuracy does not, so how far to go is chosen as all else is: on validation rows."""


def _learned(title: str, learner: str, grid: dict[str, list[Any]], **learning: Any) -> Family:
    return Family(title, "learned", "weighted_delta_n", grid=grid, learner=learner, learning=learning)


FAMILIES: dict[str, Family] = {
    "uniform": Family("uniform average", "sum", "uniform_delta"),
    "uniform_factors": Family("average of A and of B", "sum", "uniform"),
    "task_arithmetic": Family("task arithmetic", "sum", "task_arithmetic", grid={"scale": _SUM}),
    "ties": Family("TIES, 20 %", "sparse", "ties", {"k": 20}, {"lambda": _MEAN}),
    "dare": Family("DARE, 10 %", "sparse", "dare_linear", {"density": 0.1, "combine": "sum"}, {"lambda": [0.2, *_SUM]}),
    "della": Family("DELLA, 50 %", "sparse", "della", {"density": 0.5}, {"lambda": _MEAN}),
    "breadcrumbs": Family(
        "breadcrumbs, 20 %",
        "sparse",
        "breadcrumbs",
        {"density": 0.2, "combine": "sum"},
        {"lambda": [0.4, 0.6, 0.8, 1.0]},
    ),
    "tsv_m": Family("TSV-M", "spectral", "tsv_m", grid={"lambda": [0.2, 0.35, 0.5, 0.7, 1.0]}),
    "iso_c": Family("Iso-C", "spectral", "iso_c", grid={"lambda": [0.5, 0.8, 1.2, 1.7]}),
    "iso_cts": Family("Iso-CTS", "spectral", "iso_cts", {"common_fraction": 0.05}, {"lambda": [0.5, 0.8, 1.2, 1.7]}),
    "knots": Family("KnOTS, TIES 20 %", "spectral", "knots", {"k": 20}, {"lambda": _MEAN}),
    "wudi": Family("WUDI, exact", "spectral", "wudi", {"solver": "exact"}, {"lambda": [0.1, 0.2, 0.3, 0.4, 0.6]}),
    "regmean": Family("RegMean", "data", "regmean", grid={"alpha": [0.5, 0.9, 1.0]}, statistics="gram"),
    "fisher": Family("Fisher", "data", "fisher", grid={"floor": [1e-6, 0.1]}, statistics="fisher"),
    "adamerging": _learned(
        "AdaMerging with diversity",
        "adamerging",
        {"optimizer.params.variant": ["layer_wise"]},
        split="train",
        diversity=1.0,
        heldout_eval=_HELD_OUT,
    ),
    "gradient": _learned("gradient", "gradient", _VARIANTS),
    "supermerge": _learned("SuperMerge", "supermerge", {"optimizer.params.variant": ["tensor_wise"]}),
    "regret_smoothmax": _learned("regret, smooth maximum", "regret_smoothmax", {}),
}
"""Rows of the table by the names that ``--families`` takes."""
