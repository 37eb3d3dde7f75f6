"""Entries of tensors that are not stored as they count: 8-bit floats with scales, a base under an adapter."""

from math import prod

import torch
from torch import Tensor

from lit_wsl.errors import CheckpointError
from lit_wsl.tensors.difference import Entries
from lit_wsl.tensors.lora import LoraFactors


class Scaled:
    """An 8-bit floating-point matrix times its scales: one for all, one per row, or one per tile.

    Args:
        weight: Shape ``(rows, columns)``.
        scale: A scalar, ``(rows,)``, ``(rows, 1)``, or ``(rows / t, columns / t)`` rounded up, for square tiles of
            ``t`` entries (DeepSeek's ``weight_scale_inv``, which multiplies in spite of its name).

    Raises:
        CheckpointError: If the scales do not fit.
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.shape, self.dtype = tuple(weight.shape), weight.dtype
        self._weight = weight.reshape(len(weight), -1) if weight.dim() else weight.reshape(1, 1)
        self._scale, self._tile = _laid_out(scale.float(), *self._weight.shape)

    def fill(self, out: Tensor, start: int) -> None:
        """Write the scaled entries from flat position ``start`` into ``out``."""
        columns = self._weight.shape[1]
        first, last = start // columns, -(-(start + out.numel()) // columns)
        rows = self._weight[first:last].float()
        scale = self._scale[torch.arange(first, last) // self._tile]
        rows *= scale.repeat_interleave(self._tile, 1)[:, :columns] if scale.shape[1] > 1 else scale
        out.copy_(rows.view(-1)[start - first * columns :][: out.numel()])

    def stored(self) -> Tensor | None:
        """Nothing: the stored entries are not those that count."""
        return None


def _laid_out(scale: Tensor, rows: int, columns: int) -> tuple[Tensor, int]:
    """Scales of shape ``(row tiles, column tiles or 1)``, and the rows of a tile."""
    if scale.numel() == 1:
        return scale.reshape(1, 1), rows
    if scale.numel() == rows and scale.shape[0] == rows:
        return scale.reshape(rows, 1), 1
    if scale.dim() == 2:
        for tile in (128, 64, 32, 256):
            if tuple(scale.shape) == (-(-rows // tile), -(-columns // tile)):
                return scale, tile
    raise CheckpointError(f"scales of shape {tuple(scale.shape)} do not fit a weight of shape {(rows, columns)}")


class Folded:
    """A base plus a low-rank update, made row by row."""

    def __init__(self, base: Entries, factors: LoraFactors) -> None:
        self.shape, self.dtype = base.shape, base.dtype
        self._base = base
        self._left, self._right = factors.stored_factors()

    def fill(self, out: Tensor, start: int) -> None:
        """Write base plus update from flat position ``start`` into ``out``."""
        columns = self._right.shape[1]
        first, last = start // columns, -(-(start + out.numel()) // columns)
        update = (self._left[first:last] @ self._right).view(-1)[start - first * columns :]
        self._base.fill(out, start)
        out.add_(update[: out.numel()])

    def stored(self) -> Tensor | None:
        """Nothing: the sum is not stored."""
        return None


class FirstRows:
    """The first rows of a tensor whose vocabulary was made larger, or smaller."""

    def __init__(self, entries: Entries, rows: int) -> None:
        self.shape, self.dtype = (rows, *entries.shape[1:]), entries.dtype
        self._entries = entries

    def fill(self, out: Tensor, start: int) -> None:
        """Write the entries from flat position ``start`` into ``out``."""
        self._entries.fill(out, start)

    def stored(self) -> Tensor | None:
        """The flat stored entries of these rows."""
        stored = self._entries.stored()
        return None if stored is None else stored[: prod(self.shape)]


def dense(entries: Entries) -> Tensor:
    """All entries in memory, float32."""
    whole = torch.empty(entries.shape)
    entries.fill(whole.view(-1), 0)
    return whole
