"""Low-rank factors of a weight update, and their folding into dense form."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_BLOCK_ENTRIES = 1 << 17
"""Entries of a weight that are worked on at once in float64: 1 MB, which stays in cache."""


_GROUP_BYTES = 512


@dataclass(frozen=True)
class LoraFactors:
    r"""A weight update kept as two thin matrices: :math:`\Delta W = s \, B A`.

    The factors live in the orientation of ``nn.Linear`` (``d_out`` first). A parameter that is stored the
    other way round (embeddings, ``Conv1D``, ``fan_in_fan_out``) sets ``transposed``; a convolution keeps its
    kernel flattened into ``d_in`` and its real shape in ``shape``.

    Reference:
        LoRA, https://arxiv.org/abs/2106.09685, section 4.1.
    """

    A: Tensor
    """Down projection, shape ``(r, d_in)``."""
    B: Tensor
    """Up projection, shape ``(d_out, r)``."""
    scale: float
    """Factor on ``B @ A``: alpha / r, or alpha / sqrt(r) for rsLoRA."""
    shape: tuple[int, ...]
    """Shape of the parameter as it is stored."""
    transposed: bool = False
    """The parameter is stored as ``(d_in, d_out)``."""

    @property
    def rank(self) -> int:
        """Number of columns of ``B``."""
        return self.A.shape[0]

    def rows(self, start: int, stop: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows ``[start, stop)`` of the dense update, shape ``(stop - start, numel // shape[0])``."""
        left, right = self.stored_factors(dtype)
        return left[start:stop] @ right

    def stored_factors(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Two matrices whose product is the stored update; the scale is in the left one."""
        A, B = self.A.to(dtype), self.B.to(dtype)
        return (A.T * self.scale, B.T) if self.transposed else (B * self.scale, A)

    def scaled(self, factor: float) -> "LoraFactors":
        """The factors of ``factor`` times the update."""
        return replace(self, scale=self.scale * factor)


def fold(factors: LoraFactors, dtype: torch.dtype = torch.float32) -> Tensor:
    """The dense update, in the parameter's stored shape."""
    return factors.rows(0, factors.shape[0], dtype).reshape(factors.shape)


def concatenate(parts: list[LoraFactors]) -> LoraFactors:
    """Factors of the exact sum of updates: ranks add up, scales move into ``B``, the new scale is 1.

    Raises:
        ValueError: If the parts belong to parameters of different shape or orientation.
    """
    first = parts[0]
    if any(p.shape != first.shape or p.transposed != first.transposed for p in parts):
        raise ValueError(f"Updates of different parameters cannot be added: {[p.shape for p in parts]}.")
    A = torch.cat([p.A.float() for p in parts])
    B = torch.cat([p.B.float() * p.scale for p in parts], dim=1)
    return replace(first, A=A, B=B, scale=1.0)


def apply_dora(weight: Tensor, update: Tensor, magnitude: Tensor) -> Tensor:
    """Weight whose rows have the direction of ``weight + update`` and the length ``magnitude``.

    Args:
        weight: Base weight in ``nn.Linear`` orientation, shape ``(d_out, d_in)``.
        update: Folded low-rank update, same shape.
        magnitude: Learned row lengths, shape ``(d_out,)``.

    Reference:
        DoRA, https://arxiv.org/abs/2402.09353, equation 5.
    """
    moved = weight + update
    return moved * (magnitude / torch.linalg.vector_norm(moved, dim=1)).unsqueeze(1)


@dataclass(frozen=True)
class RowUpdate:
    """Factors that change the rows of a weight from ``start`` on; a fused projection has one for each part."""

    factors: LoraFactors
    start: int = 0

    @property
    def stop(self) -> int:
        """Row behind the last one that changes."""
        return self.start + self.factors.shape[0]

    def on(self, device: torch.device) -> LoraFactors:
        """The factors on a device."""
        return replace(self.factors, A=self.factors.A.to(device), B=self.factors.B.to(device))


def add_updates(weight: Tensor, updates: Sequence[RowUpdate], dtype: torch.dtype, sign: float = 1.0) -> Tensor:
    """``weight`` plus ``sign`` times every update, summed in float64 block by block.

    Args:
        weight: Any shape, on any device; not modified.
        updates: What is added; their stored width is that of the flattened weight.
        dtype: Dtype of the result.
        sign: 1 merges, -1 takes an update out again.

    Returns:
        A new tensor of the weight's shape on the CPU.
    """
    device = torch.device("cpu") if weight.device.type == "mps" else weight.device  # MPS has no float64
    matrix = weight.detach().reshape(weight.shape[0], -1)
    out = torch.empty(matrix.shape, dtype=dtype)
    products = []
    for update in updates:
        left, right = update.on(device).stored_factors(torch.float64)
        products.append((update.start, update.stop, left * sign, right))
    step = max(1, _BLOCK_ENTRIES // max(1, matrix.shape[1]))
    buffer = torch.empty((min(step, matrix.shape[0]), matrix.shape[1]), dtype=torch.float64, device=device)
    for low in range(0, matrix.shape[0], step):
        high = min(low + step, matrix.shape[0])
        block = buffer[: high - low].copy_(matrix[low:high])
        for start, stop, left, right in products:
            first, last = max(low, start), min(high, stop)
            if first < last:
                block[first - low : last - low].addmm_(left[first - start : last - start], right)
        out[low:high] = block
    return out.reshape(weight.shape)


def row_norms(weight: Tensor, *, transposed: bool) -> Tensor:
    """Length of every output's weights; a transposed weight keeps outputs in columns.

    Returns:
        Shape ``(d_out,)``, float64, on the CPU.
    """
    matrix = weight.detach().cpu().reshape(weight.shape[0], -1).double()
    return torch.linalg.vector_norm(matrix, dim=0 if transposed else 1)


def scale_rows(weight: Tensor, factor: Tensor, *, transposed: bool) -> Tensor:
    """``weight`` with every output's weights multiplied by its entry of ``factor``, float64, on the CPU."""
    matrix = weight.detach().cpu().reshape(weight.shape[0], -1).double()
    scaled = matrix * (factor if transposed else factor.unsqueeze(1))
    return scaled.reshape(weight.shape)


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is infinite or NaN: one sum, and a look at every entry only if that is not finite."""
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


def checksum(tensor: Tensor) -> list[int]:
    """Two sums over the bits of a tensor, plain and weighted by position, which an edit of the values changes.

    The bits are taken as 64-bit numbers in groups of half a kilobyte, and a group is weighted by its number. Integer
    sums wrap around, so neither threads nor the order of summation matter.
    """
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    if data.storage_offset() % 8 or data.data_ptr() % 8:
        data = data.clone()
    padded = -(-len(data) // _GROUP_BYTES) * _GROUP_BYTES
    whole = len(data) if padded == len(data) else padded - _GROUP_BYTES
    rest = torch.zeros(padded - whole, dtype=torch.uint8)
    rest[: len(data) - whole] = data[whole:]
    groups = [part.view(torch.int64).reshape(-1, _GROUP_BYTES // 8).sum(dim=1) for part in (data[:whole], rest)]
    sums = torch.cat(groups)
    return [int(sums.sum()), int((sums * torch.arange(1, len(sums) + 1)).sum())]
