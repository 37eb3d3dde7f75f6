"""Sum of any number of task vectors, each with its own coefficient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.method import LinearMethod, register
from lit_wsl.merging.shares import check_count, shares_of


@register("weighted_delta_n")
@dataclass(frozen=True)
class WeightedDeltaN(LinearMethod):
    r"""Adds the task vectors up, each with its own coefficient.

    The update is :math:`\Delta = \sum_t c_t \Delta_t`; normalised, :math:`c_t` is divided by :math:`\sum_t c_t`.
    Without coefficients it is the mean. Coefficients may exceed 1.

    Reference:
        Task arithmetic, https://arxiv.org/abs/2212.04089, section 2, with one coefficient per task as in
        AdaMerging, https://arxiv.org/abs/2310.02575, section 3.2 (task-wise).
    """

    task_coefficients: tuple[float, ...] | None = None
    """One coefficient per source, in their order; 1 / T each by default."""
    normalize_coefficients: bool = True
    """Divide the coefficients by their sum."""
    allow_negative_coefficients: bool = False
    """Let coefficients subtract a task vector."""

    def __post_init__(self) -> None:
        given = self.task_coefficients
        if given is None:
            return
        if not self.allow_negative_coefficients and any(c < 0.0 for c in given):
            raise ConfigError(
                f"`task_coefficients` of {self.name!r} are negative: {list(given)}; "
                "to subtract task vectors set `allow_negative_coefficients`."
            )
        if self.normalize_coefficients and sum(given) <= 0.0:
            raise ConfigError(
                f"`task_coefficients` of {self.name!r} must have a positive sum to be normalised, got {list(given)}; "
                "to take them as they are set `normalize_coefficients: false`."
            )

    def check_sources(self, count: int) -> None:
        """Refuse coefficients that are not one per source.

        Raises:
            ConfigError: If there are more or fewer.
        """
        super().check_sources(count)
        check_count(self.name, "task_coefficients", self.task_coefficients, count)

    def coefficients(self, sources: int) -> Tensor:
        """The coefficients, normalised if asked for."""
        if self.task_coefficients is None or self.normalize_coefficients:
            return shares_of(self.task_coefficients, sources)
        return torch.tensor(self.task_coefficients, dtype=torch.float64)
