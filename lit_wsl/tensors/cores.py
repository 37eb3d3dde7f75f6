"""Low-rank updates of one parameter as small matrices between two shared orthonormal bases."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_wsl.tensors.lora import LoraFactors


@dataclass(frozen=True)
class Cores:
    """Updates ``left @ stack[t] @ right`` in the stored orientation: exact, and as small as the ranks are in sum."""

    left: Tensor
    """Orthonormal columns, shape ``(rows, p)``, float64."""
    stack: Tensor
    """Small matrices, shape ``(T, p, q)``, float32."""
    right: Tensor
    """Orthonormal rows, shape ``(q, columns)``, float64."""
    like: LoraFactors
    """Any of the factors, for shape and orientation."""

    @property
    def directions(self) -> int:
        """Singular values that the parameter has, zero or not."""
        return min(self.left.shape[0], self.right.shape[1])

    def factors(self, core: Tensor) -> LoraFactors:
        """The update with the given core, shape ``(p, q)``."""
        left, right = (self.left @ core.double()).float(), self.right.float()
        A, B = (left.T, right.T) if self.like.transposed else (right, left)
        return replace(self.like, A=A.contiguous(), B=B.contiguous(), scale=1.0)


def cores_of(factors: Sequence[LoraFactors]) -> Cores:
    """Write low-rank updates in shared bases; what commutes with rotations may then merge the cores alone.

    Costs O((rows + columns) R^2) for a total rank R.

    Reference:
        Core space merging, https://arxiv.org/abs/2509.17786.
    """
    pairs = [f.stored_factors(torch.float64) for f in factors]
    left = torch.linalg.qr(torch.cat([one for one, _ in pairs], dim=1)).Q
    right = torch.linalg.qr(torch.cat([other for _, other in pairs]).T).Q.T
    stack = torch.stack([(left.T @ one) @ (other @ right.T) for one, other in pairs])
    return Cores(left, stack.float(), right, factors[0])
