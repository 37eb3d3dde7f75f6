"""Experts that share one parameter: their factors as PEFT lays them out for ``target_parameters``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_wsl.state.adapter_layers import ModelLayers
from lit_wsl.state.safetensors import TensorInfo

Read = Callable[[str, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StackPart:
    """The factors of one expert, or of some rows of one."""

    name: str
    """Tensor in the base's files."""
    stored_expert: int
    """Number of the factors among those of that tensor."""
    expert: int
    slot: int
    """Place of its rows among those that are joined."""
    rank: int


@dataclass(frozen=True)
class Stack:
    r"""All experts of a parameter under one rank; what an expert lacks is zero.

    PEFT keeps ``A`` as ``(experts * r, d_in)`` by expert and ``B`` as ``(d_out, r * experts)`` with the expert
    running fastest.
    """

    parts: list[StackPart]
    experts: int
    ranks: dict[int, int]
    """Rank of each slot."""
    rows: dict[int, int]
    """Outputs of each slot."""
    columns: int
    is_turned: bool

    @property
    def rank(self) -> int:
        """Rank of every expert."""
        return sum(self.ranks.values())

    @property
    def shape_A(self) -> tuple[int, int]:
        """Shape of the down projections."""
        return self.experts * self.rank, self.columns

    @property
    def shape_B(self) -> tuple[int, int]:
        """Shape of the up projections."""
        return sum(self.rows.values()), self.rank * self.experts

    def make_A(self, read: Read) -> Tensor:
        """The down projections."""
        A = torch.zeros(self.experts, self.rank, self.columns)
        for part in self.parts:
            start = self._before(self.ranks, part.slot)
            A[part.expert, start : start + part.rank] = self._factors(part, read)[0]
        return A.flatten(0, 1)

    def make_B(self, read: Read) -> Tensor:
        """The up projections."""
        B = torch.zeros(sum(self.rows.values()), self.rank, self.experts)
        for part in self.parts:
            row, start = self._before(self.rows, part.slot), self._before(self.ranks, part.slot)
            B[row : row + self.rows[part.slot], start : start + part.rank, part.expert] = self._factors(part, read)[1]
        return B.flatten(1, 2)

    def _factors(self, part: StackPart, read: Read) -> tuple[Tensor, Tensor]:
        A, B = read(part.name, part.stored_expert)
        return (B.T, A.T) if self.is_turned else (A, B)

    @staticmethod
    def _before(sizes: dict[int, int], slot: int) -> int:
        return sum(size for other, size in sizes.items() if other < slot)


def stacked(parts: list[StackPart], layers: ModelLayers, infos: Mapping[str, TensorInfo], *, is_turned: bool) -> Stack:
    """The layout of the experts of one parameter.

    Args:
        parts: The factors that there are.
        layers: The modules of the model.
        infos: Shapes of the tensors in the base's files.
        is_turned: Whether the parameter is stored as ``(experts, d_in, d_out)``.
    """
    ranks: dict[int, int] = {}
    for part in parts:
        ranks[part.slot] = max(part.rank, ranks.get(part.slot, 0))
    shape = infos[parts[0].name].shape
    if len(shape) == 3:
        rows, columns = (shape[2], shape[1]) if is_turned else (shape[1], shape[2])
        return Stack(parts, shape[0], ranks, {0: rows}, columns, is_turned)
    parameter = layers.parts[parts[0].name].parameter
    family = [(name, part) for name, part in layers.parts.items() if part.parameter == parameter]
    heights = {part.slot: infos[name].shape[0] for name, part in family}
    experts = 1 + max(part.expert for _, part in family)
    return Stack(parts, experts, {s: ranks.get(s, 0) for s in heights}, heights, shape[1], is_turned=False)


def parameter_wraps(parameters: list[str], layers: ModelLayers) -> dict[str, int]:
    """How many wrappers of other parameters stand around each: PEFT nests them, the first one innermost."""
    wraps: dict[str, int] = {}
    for parameter in parameters:
        module = parameter.rpartition(".")[0]
        order = [name for name in layers.tensors.get(module, ()) if name in parameters]
        wraps[parameter] = len(order) - 1 - order.index(parameter) if parameter in order else 0
    return wraps
