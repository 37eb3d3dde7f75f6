"""TSV-M: the leading singular vectors of every task, made orthogonal to each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lit_wsl.merging.method import MatrixMethod, MergeContext, register
from lit_wsl.tensors.cores import cores_of
from lit_wsl.tensors.lora import LoraFactors
from lit_wsl.tensors.procrustes import orthogonalised_sum
from lit_wsl.tensors.singular import decompose


@register("tsv_m", "tsvm")
@dataclass(frozen=True)
class TsvM(MatrixMethod):
    r"""Keeps 1/T of the singular vectors of each task matrix, makes them orthogonal across tasks, adds up.

    With the leading :math:`k = \max(1, \lfloor \min(m, n) / T \rfloor)` triplets :math:`U_t, \Sigma_t, V_t` of each
    :math:`\Delta_t`, side by side as :math:`U, \Sigma, V`, the update is
    :math:`\Delta = \lambda \, \hat U \Sigma \hat V^\top`, where :math:`\hat U = P Q^\top` for :math:`U = P D Q^\top`
    is the nearest matrix with orthonormal columns, and :math:`\hat V` likewise. Parameters that are no matrices take
    the mean, as in the authors' code.

    Variants: the authors' code keeps no triplet when there are more tasks than directions (the update is then zero);
    here one stays. Task matrices of low rank have fewer than k triplets: here only those that they have are taken,
    while the authors' code (and fusion_bench) also whitens arbitrary vectors of singular value zero. The authors
    leave ``text_projection`` of CLIP out; here it is a matrix like others.

    Reference:
        Task Singular Vectors, https://arxiv.org/abs/2412.00081 (TSV-Merge), and the authors' ``TSVM_utils.py``.
    """

    keeps_identical: ClassVar[bool] = False

    lam: float = 1.0
    """Factor on the merged update; the paper's alpha."""

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Mean of the task vectors, times lambda."""
        return stack.mean(0).mul_(self.lam)

    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Orthogonalised sum of the truncated task matrices, times lambda."""
        return self._merged(stack, min(stack.shape[1:])).to(stack.dtype)

    def merge_factors(self, factors: Sequence[LoraFactors]) -> list[LoraFactors] | None:
        """The same from small matrices, as rotations on either side of all tasks rotate the result."""
        cores = cores_of(factors)
        return [cores.factors(self._merged(cores.stack, cores.directions))]

    def _merged(self, stack: Tensor, directions: int) -> Tensor:
        kept = max(1, directions // len(stack))
        return orthogonalised_sum([decompose(matrix).leading(kept) for matrix in stack]).mul_(self.lam)
