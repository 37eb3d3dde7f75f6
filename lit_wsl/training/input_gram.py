"""Gram matrices of what goes into the linear layers of a model."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lit_wsl.training.plain_parameters import PlainParameter

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


class InputGrams:
    """The mean of ``x x^T`` over the inputs of each linear layer, summed in float64 while hooks are attached.

    Rows of padding are left out: where the batch has an ``attention_mask``, that holds for inputs of its shape
    ``(b, s, d)``, or flattened ``(b s, d)``. All rows of other inputs count, such as pooled ones.

    Args:
        parameters: Where to look for weights of ``nn.Linear`` and of transformers' ``Conv1D``.
    """

    def __init__(self, parameters: Iterable[PlainParameter]) -> None:
        weights = [p for p in parameters if isinstance(p.owner, nn.Linear | Conv1D) and p.tensor is p.owner.weight]
        self._layers = {p.name: p.owner for p in weights}
        self._sums = {p.name: _zeros(p) for p in weights}
        self._rows = {p.name: torch.zeros((), dtype=torch.float64, device=p.tensor.device) for p in weights}
        self._mask: Tensor | None = None
        self._hooks: list[Any] = []

    @property
    def inputs_first(self) -> list[str]:
        """Weights that are stored as ``(inputs, outputs)``."""
        return [name for name, layer in self._layers.items() if isinstance(layer, Conv1D)]

    def attach(self) -> None:
        """Look at every input from now on."""
        for name, layer in self._layers.items():
            self._hooks.append(layer.register_forward_pre_hook(self._watching(name), with_kwargs=True))

    def detach(self) -> None:
        """Look no longer."""
        while self._hooks:
            self._hooks.pop().remove()

    def expect(self, batch: Any) -> None:
        """Take the padding from the batch that comes next."""
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def result(self, reduce: Reduce) -> dict[str, Tensor]:
        """Gram matrices of the layers that saw inputs, float32, symmetric."""
        sums = {name: (reduce(total), reduce(self._rows[name])) for name, total in self._sums.items()}
        return {name: (total / rows).add(total.T / rows).div(2).float() for name, (total, rows) in sums.items() if rows}

    def _watching(self, name: str) -> Callable[..., None]:
        def watch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()))
            rows = _rows(inputs.detach(), self._mask)
            with torch.autocast(rows.device.type, enabled=False):  # mixed precision would round the products
                self._sums[name] += rows.T @ rows
            self._rows[name] += len(rows)

        return watch


def _zeros(parameter: PlainParameter) -> Tensor:
    inputs = parameter.tensor.shape[0 if isinstance(parameter.owner, Conv1D) else 1]
    return torch.zeros(inputs, inputs, dtype=torch.float64, device=parameter.tensor.device)


def _rows(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Inputs that are no padding, shape ``(n, d)``, float32 or wider."""
    rows = inputs.reshape(-1, inputs.shape[-1]).to(torch.promote_types(inputs.dtype, torch.float32))
    is_flat = inputs.ndim == 2 and mask is not None and mask.shape[1] > 1 and len(rows) == mask.numel()
    if mask is not None and (inputs.shape[:-1] == mask.shape or is_flat):
        return rows[mask.reshape(-1).bool()]
    return rows
