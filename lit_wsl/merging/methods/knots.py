"""KnOTS: task matrices in shared directions, merged there."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.merging.method import MatrixMethod, MergeContext, register
from lit_wsl.tensors.consensus import elect_sign
from lit_wsl.tensors.singular import decompose
from lit_wsl.tensors.sparsify import keep_top_magnitude


@register("knots")
@dataclass(frozen=True)
class Knots(MatrixMethod):
    r"""Writes all task matrices in one basis, the singular vectors of all side by side, and merges the coordinates.

    With :math:`[\Delta_1 \cdots \Delta_T] = U \Sigma \, [V_1^\top \cdots V_T^\top]` the update is
    :math:`\Delta = \lambda \, U \operatorname{merge}(\Sigma V_1^\top, \dots, \Sigma V_T^\top)`. Inside, ``ties`` keeps
    the largest k percent of each :math:`\Sigma V_t^\top`, elects signs, and averages :math:`w_t` times the entries
    that agree; ``linear`` is :math:`\sum_t w_t \Delta_t` again, as the basis does not change a sum. Parameters that
    are no matrices take the mean (``ties``) or sum (``linear``) of :math:`w_t \Delta_t`.

    Variants: the k percent are counted in each matrix; the authors' code counts them over all layers of a task. It
    drops singular values below 1e-5, here those that are zero up to rounding; where signs balance it takes the
    majority of all entries, here the entry is dropped; it applies the first weight to all tasks, here each task has
    its own. Matrices are taken as they are stored, rows first.

    Reference:
        KnOTS, https://arxiv.org/abs/2410.19735, and the authors' ``task_merger.py``.
    """

    keeps_identical: ClassVar[bool] = False
    per_source: ClassVar[tuple[str, ...]] = ("weights",)

    inside: Literal["ties", "linear"] = "ties"
    """How the coordinates are merged."""
    k: float = 20.0
    """Percent of coordinates that ``ties`` keeps, in [0, 100]."""
    weights: tuple[float, ...] | None = None
    """Factor on each source; by default 1 for ``ties``, which averages, and 1 / T for ``linear``, which adds."""
    lam: float = 1.0
    """Factor on the merged update."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.k <= 100.0:
            raise ConfigError(f"`0 <= k <= 100` must hold for 'knots', got {self.k}; k is in percent.")

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Mean or sum of the weighted task vectors, times lambda."""
        return self._linear(stack).mul_(self.lam / len(stack) if self.inside == "ties" else self.lam)

    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The merged coordinates in the shared basis, times lambda."""
        shared = decompose(torch.cat(list(stack), dim=1))
        # Projected, not cut out of S Vh: there a task without an update would have coordinates of rounding alone.
        coordinates = shared.U.T @ stack.to(shared.U.dtype)
        merge = self._ties if self.inside == "ties" else self._linear
        return (shared.U @ merge(coordinates)).mul_(self.lam).to(stack.dtype)

    def _factors(self, stack: Tensor) -> Tensor:
        """One factor per source, shape ``(T,)``."""
        default = 1.0 if self.inside == "ties" else 1.0 / len(stack)
        return torch.tensor(self.weights or (default,) * len(stack)).to(stack)

    def _linear(self, coordinates: Tensor) -> Tensor:
        total = torch.zeros_like(coordinates[0])
        for weight, task in zip(self._factors(coordinates).tolist(), coordinates, strict=True):
            total.add_(task, alpha=weight)
        return total

    def _ties(self, coordinates: Tensor) -> Tensor:
        trimmed = torch.stack([keep_top_magnitude(task, self.k / 100.0) for task in coordinates])
        agreeing = trimmed * (trimmed * elect_sign(trimmed) > 0)
        weighted = agreeing * self._factors(agreeing).view(-1, 1, 1)
        return weighted.sum(0) / (weighted != 0).sum(0).clamp(min=1)
