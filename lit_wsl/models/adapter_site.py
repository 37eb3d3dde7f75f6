"""One adapted layer in PEFT's terms."""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lit_wsl.models.adapter_source import AdapterSource
from lit_wsl.models.export_plan import Planned, keep
from lit_wsl.models.universal.layout import AdaptedLayer, LowRankPart
from lit_wsl.state.adapters import PREFIX
from lit_wsl.state.reader import TensorInfo


class Site:
    """One adapted layer in PEFT's terms.

    Parts that PEFT has no form for, such as a fused projection's or several active adapters, become one adapter
    whose rank is their sum, with the scales inside ``B``.
    """

    def __init__(self, name: str, layer: AdaptedLayer, source: AdapterSource) -> None:
        self.name, self.layer, self._saved = name, layer, source.saved
        self.module: nn.Module = source.model.get_submodule(name)
        self._weight = source.state[str(source.layout.plain(layer.weight))]
        groups: dict[tuple[str, tuple[int, int] | None], list[LowRankPart]] = {}
        for part in layer.parts:
            groups.setdefault((part.A, part.A_rows), []).append(part)
        self._groups = list(groups.values())
        self._alone = len(layer.parts) == 1 and layer.parts[0].B_rows is None and layer.parts[0].A_rows is None
        self.rank = sum(parts[0].rank for parts in self._groups)
        self.scale = layer.parts[0].scale if self._alone else 1.0

    @property
    def embedding(self) -> bool:
        """Whether PEFT has an adapter of its own kind for this layer."""
        return isinstance(self.module, nn.Embedding)

    @property
    def turned(self) -> bool:
        """Whether the weight is stored as ``(d_in, d_out)``."""
        return isinstance(self.module, Conv1D)

    @property
    def shifted(self) -> bool:
        """Whether a bias of the up projection was trained."""
        return any(part.shift for part in self.layer.parts)

    def tensors(self, *, shifted: bool) -> dict[str, Planned]:
        """The tensors of the adapter file; with a bias everywhere if there is one anywhere."""
        down, up = ("lora_embedding_A", "lora_embedding_B") if self.embedding else ("lora_A.weight", "lora_B.weight")
        A, B = self._factors()
        named = {down: A, up: B}
        if shifted:
            named["lora_B.bias"] = self._shift(B)
        if self.layer.magnitude:
            named["lora_magnitude_vector"] = keep(self._saved.adapters[self.layer.magnitude])
        return {f"{PREFIX}{self.name}.{key}": planned for key, planned in named.items()}

    def _factors(self) -> tuple[Planned, Planned]:
        if self._alone:
            return keep(self._down(self.layer.parts[0])), keep(self._saved.adapters[self.layer.parts[0].B])
        first, up = self._down(self.layer.parts[0]), self._saved.adapters[self.layer.parts[0].B]
        outputs = self._weight.shape[1 if self.layer.transposed else 0]
        shapes = (self.rank, *first.shape[1:]), (outputs, self.rank, *up.shape[2:])
        makers = (self._stacked_A, lambda: self._stacked_B(shapes[1]))
        A, B = (Planned(TensorInfo(s, torch.float32), m) for s, m in zip(shapes, makers, strict=True))
        return A, B

    def _down(self, part: LowRankPart) -> Tensor:
        A = self._saved.adapters[part.A]
        A = A.T if part.A_turned else A
        return A if part.A_rows is None else A[slice(*part.A_rows)]

    def _stacked_A(self) -> Tensor:
        return torch.cat([self._down(parts[0]).float() for parts in self._groups])

    def _stacked_B(self, shape: tuple[int, ...]) -> Tensor:
        B = torch.zeros(shape)
        column = 0
        for parts in self._groups:
            for part in parts:
                rows = self._saved.adapters[part.B]
                rows = rows if part.B_rows is None else rows[slice(*part.B_rows)]
                B[part.start : part.start + len(rows), column : column + part.rank] = part.scale * rows.float()
            column += parts[0].rank
        return B

    def _shift(self, up: Planned) -> Planned:
        shifts = [(part.scale / self.scale, part.shift) for part in self.layer.parts if part.shift]
        if len(shifts) == 1 and self._alone:
            return keep(self._saved.adapters[shifts[0][1]])

        def total() -> Tensor:
            zero = torch.zeros(up.info.shape[0])
            return sum((factor * self._saved.adapters[key].float() for factor, key in shifts), start=zero)

        return Planned(TensorInfo(up.info.shape[:1], torch.float32), total)
