"""The leading singular values of a large difference of matrices, and how many of them stand out of noise."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lit_wsl.tensors.difference import Entries
from lit_wsl.tensors.lora import LoraFactors
from lit_wsl.tensors.lowrank import rank_for_energy
from lit_wsl.tensors.rng import CounterRng

KEPT_ENTRIES = 1 << 23
"""A difference of so many entries is held in memory; a larger one is made anew for every pass."""
BLOCK_ENTRIES = 1 << 18
POWER_ITERATIONS = 2
SMALL = 256
"""A matrix with a side of so many entries has an exact decomposition in no time."""
KNEE = 2.0
"""By what factor singular values fall from the last of an update to the first of the noise."""


class DeltaMatrix:
    """The difference of two tensors as a matrix, made row block by row block in float32.

    Args:
        base: Entries before.
        tuned: Entries after.
        start: First entry, for one expert of a stack.
        shape: Rows and columns as stored; they may leave rows of either tensor out at the end.
    """

    def __init__(self, base: Entries, tuned: Entries, shape: tuple[int, int], start: int = 0) -> None:
        self.shape = shape
        self._sides, self._start = (base, tuned), start
        self._step = max(1, BLOCK_ENTRIES // max(1, shape[1]))
        self._kept: Tensor | None = None

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """First row and block of shape ``(rows, columns)``, in order; a block may live only until the next."""
        rows, columns = self.shape
        if rows * columns <= KEPT_ENTRIES:
            whole = self.whole()
            yield from ((at, whole[at : at + self._step]) for at in range(0, rows, self._step))
            return
        scratch = torch.empty(2, self._step * columns)
        for at in range(0, rows, self._step):
            count = (min(at + self._step, rows) - at) * columns
            yield at, self._fill(scratch[0, :count], scratch[1, :count], at * columns).view(-1, columns)

    def whole(self) -> Tensor:
        """The matrix in memory."""
        if self._kept is None:
            rows, columns = self.shape
            self._kept = torch.empty(rows, columns)
            scratch = torch.empty(self._step * columns)
            for at in range(0, rows, self._step):
                block = self._kept[at : at + self._step].view(-1)
                self._fill(block, scratch[: block.numel()], at * columns)
        return self._kept

    def rounding_edge(self, floor: float) -> float:
        """Largest singular value of the noise that rounding the tuned side by a relative ``floor`` may leave.

        The error of an entry is in proportion to the entry, so a row of large weights has loud noise.
        """
        rows, columns = self.shape
        largest, energy = 0.0, torch.zeros(columns, dtype=torch.float64)
        scratch = torch.empty(self._step * columns)
        for at in range(0, rows, self._step):
            block = scratch[: (min(at + self._step, rows) - at) * columns]
            self._sides[1].fill(block, self._start + at * columns)
            square = block.square_().view(-1, columns)
            largest = max(largest, float(square.sum(1).max()))
            energy += square.sum(0)
        return floor * (math.sqrt(largest) + math.sqrt(float(energy.max())))

    def _fill(self, out: Tensor, scratch: Tensor, start: int) -> Tensor:
        base, tuned = self._sides
        tuned.fill(out, self._start + start)
        base.fill(scratch, self._start + start)
        return out.sub_(scratch)


@dataclass(frozen=True)
class Spectrum:
    """Leading singular triplets of a matrix, with the energy of its rows and columns.

    ``energy`` is the squared Frobenius norm; its share beyond the triplets is what they leave out.
    """

    values: Tensor
    """Singular values, descending, shape ``(k,)``, float64."""
    left: Tensor
    """Left singular vectors times the values, shape ``(rows, k)``."""
    right: Tensor
    """Right singular vectors, shape ``(k, columns)``."""
    row_energy: Tensor
    column_energy: Tensor
    is_exact: bool
    """Whether no singular value is missing."""
    least_edge: float = 0.0
    """Singular values up to here are known to be noise, whatever the rest of the matrix looks like."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.left.shape[0], self.right.shape[1]

    @cached_property
    def energy(self) -> float:
        """Squared Frobenius norm of the matrix."""
        return float(self.row_energy.sum())

    def captured(self, rank: int) -> float:
        """Share of the energy that the first ``rank`` values hold."""
        if self.energy == 0.0:
            return 1.0
        return min(1.0, float(self.values[:rank].square().sum()) / self.energy)

    def rank_for(self, energy: float) -> int | None:
        """Least rank that holds a share of the energy; None where it is beyond the known values."""
        if self.is_exact or self.energy == 0.0:
            return rank_for_energy(self.values, energy)
        kept = torch.cumsum(self.values.square(), 0) / self.energy
        return int(torch.searchsorted(kept, energy)) + 1 if float(kept[-1]) >= energy else None

    def noise_edge(self, rank: int) -> float:
        """Largest singular value that what remains behind ``rank`` triplets would have if it were noise.

        For independent entries with standard deviation s it is ``s (sqrt(rows) + sqrt(columns))``, the upper edge of
        the Marchenko-Pastur law; with entries of unequal size the largest row and the largest column count. The
        triplets take noise away with the update, most from the rows and columns that they point at; it is put back
        as in a jackknife, by the square of the share that their span leaves of such a row.

        Reference:
            Marchenko and Pastur (1967); Bandeira and van Handel, https://arxiv.org/abs/1408.6185, theorem 1.1 (the
            leading term); MacKinnon and White (1985), HC3.
        """
        left = self.left[:, :rank].double()
        right = self.right[:rank].double()
        values = self.values[:rank]
        rows = _whole_noise(self.row_energy - left.square().sum(1), (left / values.clamp_min(_TINY)).square().sum(1))
        columns = _whole_noise(self.column_energy - (right * values[:, None]).square().sum(0), right.square().sum(0))
        return max(math.sqrt(rows) + math.sqrt(columns), _ROUNDING * float(self.values[0]), self.least_edge)

    @cached_property
    def rank_above_noise(self) -> int:
        """How many singular values stand out of the noise that remains behind them.

        A knee, where the values fall by more than half and lie above the edge before it, is taken at once; from there,
        or from none, the rank grows until all that remains lies below its edge.
        """
        rank = max(filter(self._is_knee, range(1, 1 + min(len(self.values) - 1, min(self.shape) // 2))), default=0)
        while (above := int((self.values > self.noise_edge(rank)).sum())) > rank:
            rank = above
        return rank

    def _is_knee(self, rank: int) -> bool:
        last, following = float(self.values[rank - 1]), float(self.values[rank])
        return last > KNEE * following and last > self.noise_edge(rank)

    def factors(self, rank: int) -> LoraFactors:
        """Balanced factors of the best approximation of that rank: ``B`` (rows, rank), ``A`` (rank, columns)."""
        root = self.values[:rank].clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        B = (self.left[:, :rank].double() / root).float()
        A = (self.right[:rank].double() * root[:, None]).float()
        return LoraFactors(A.contiguous(), B.contiguous(), 1.0, self.shape)


_ROUNDING = 1e-6
"""Share of the largest singular value below which float32 arithmetic makes others up."""
_TINY = 1e-300
_LEAST_LEFT = 0.1
"""A row of which the leading triplets leave less than this share tells nothing of its noise."""


def _whole_noise(remainder: Tensor, leverage: Tensor) -> float:
    """Largest energy of the noise in a row (or column), from what is left of it and how far the triplets span it."""
    return max(0.0, float((remainder / (1.0 - leverage).clamp_min(_LEAST_LEFT).square()).max()))


def leading_spectrum(
    matrix: DeltaMatrix, count: int, *, is_exact: bool = False, iterations: int = POWER_ITERATIONS
) -> Spectrum:
    """The ``count`` largest singular values with their vectors, by a randomised range finder with power iterations.

    Each iteration is one pass over the blocks of the matrix: ``Z <- orth(sum D_b.T (D_b Z))``. Small matrices, and
    those of which nearly all values are wanted, have an exact decomposition. The sketch comes from fixed counters: the
    same bytes on every run.

    Args:
        matrix: The difference.
        count: Values wanted.
        is_exact: Whether to decompose the whole matrix in memory, whatever its size.
        iterations: Power iterations; more of them tell the last of many values of a flat spectrum better apart.

    Reference:
        Halko, Martinsson, Tropp, https://arxiv.org/abs/0909.4061, algorithms 4.4 and 5.1.
    """
    rows, columns = matrix.shape
    if is_exact or min(rows, columns) <= max(SMALL, 2 * count):
        return _exact(matrix.whole())
    Z = CounterRng(seed=0).normal("sketch", columns * count).reshape(columns, count)
    for _ in range(iterations):
        G = torch.zeros(columns, count)
        for _, block in matrix.blocks():
            G.addmm_(block.T, block @ Z)
        Z = torch.linalg.qr(G).Q
    return _projected(matrix, Z)


def _projected(matrix: DeltaMatrix, Z: Tensor) -> Spectrum:
    """Singular triplets inside the span of ``Z``, from the Gram matrix of the projection in float64."""
    rows, columns = matrix.shape
    Y = torch.empty(rows, Z.shape[1])
    gram = torch.zeros(Z.shape[1], Z.shape[1], dtype=torch.float64)
    row_energy, column_energy = torch.empty(rows, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64)
    for at, block in matrix.blocks():
        part = torch.mm(block, Z, out=Y[at : at + len(block)]).double()
        gram.addmm_(part.T, part)
        square = block.square()
        row_energy[at : at + len(block)] = square.sum(1)
        column_energy += square.sum(0)
    values, W = torch.linalg.eigh(gram)
    values, W = values.flip(0).clamp_min(0.0).sqrt(), W.flip(1).float()
    return Spectrum(values, Y @ W, (Z @ W).T.contiguous(), row_energy, column_energy, is_exact=False)


def _exact(matrix: Tensor) -> Spectrum:
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    square = matrix.double().square()
    return Spectrum(S.double(), U * S, Vh, square.sum(1), square.sum(0), is_exact=True)


def residual_norm(matrix: DeltaMatrix, factors: LoraFactors) -> float:
    """Frobenius norm of what factors leave of a matrix, from the entries themselves."""
    left, right = factors.stored_factors()
    total = 0.0
    for at, block in matrix.blocks():
        rest = torch.addmm(block, left[at : at + len(block)], right, alpha=-1.0)
        total += float(rest.square_().sum(dtype=torch.float64))
    return math.sqrt(total)
