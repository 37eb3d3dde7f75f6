"""Mean of the task vectors, under the name of what it averages."""

from dataclasses import dataclass

from lit_wsl.merging.method import register
from lit_wsl.merging.methods.uniform_delta import UniformDelta


@register("task_vector")
@dataclass(frozen=True)
class TaskVectorMean(UniformDelta):
    r"""Averages the task vectors, each the whole update of its source: ``uniform_delta`` by another name.

    The update is :math:`\Delta = \frac1T \sum_t \Delta_t`. Elsewhere the two differ in what a transform in front of
    them sees, dense updates or factors; here the transform's own ``space`` says that. Being linear it keeps low rank,
    so the mean of adapters is written as an adapter that PEFT loads.

    Reference:
        Task arithmetic, https://arxiv.org/abs/2212.04089, section 2 (addition, scaled to the mean).
    """
