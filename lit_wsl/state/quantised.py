"""Weights that are stored packed in few bits: known by name, never read as numbers."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lit_wsl.errors import CheckpointError
from lit_wsl.state.reader import StateReader
from lit_wsl.state.safetensors import TensorInfo

_LEAVES = ("qweight", "weight_packed", "W_q")
"""What GPTQ and AWQ, compressed-tensors and HQQ store in the place of ``weight``."""
_BLOCKS = "_blocks"
"""Ending of a parameter in MXFP4, beside ``_scales``."""


class QuantisedState(StateReader):
    """A checkpoint of which some weights are packed; these go by the names they have in the model.

    Args:
        reader: The checkpoint as it is stored.
        packed: Its packed weights; see :func:`packed_weights`.
    """

    def __init__(self, reader: StateReader, packed: Mapping[str, str]) -> None:
        self.where, self.packed = reader.where, packed
        self._reader = reader

    def keys(self) -> list[str]:
        """Names of all tensors, and of the weights that packed tensors stand for."""
        return list(dict.fromkeys([*self._reader.keys(), *self.packed]))

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a tensor; of a packed weight those of the tensor that holds it."""
        return self._reader.info(self.packed.get(name, name))

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """A tensor that is not packed.

        Raises:
            CheckpointError: If it is.
        """
        if name in self.packed:
            raise CheckpointError(
                f"{self.where}: {name!r} is quantised ({self.packed[name]}) and cannot be computed with; "
                "give the model in 16 or 32 bits."
            )
        return self._reader.read(name, rows)

    def files(self) -> list[Path]:
        """The files of the checkpoint."""
        return self._reader.files()

    def __contains__(self, name: str) -> bool:
        return name in self.packed or name in self._reader


def packed_weights(reader: StateReader) -> dict[str, str]:
    """Parameters whose entries are stored packed, each with the tensor that holds them.

    These are 8-bit weights, floating point (DeepSeek's ``weight_scale_inv``) or not (bitsandbytes), and what
    bitsandbytes in 4 bits, GPTQ, AWQ, HQQ, compressed-tensors and MXFP4 store; names and dtypes tell.
    """
    stored = reader.keys()
    known = frozenset(stored)
    packed: dict[str, str] = {}
    for name in stored:
        module, _, leaf = name.rpartition(".")
        dtype = reader.info(name).dtype
        if leaf in _LEAVES:
            packed[f"{module}.weight"] = name
        elif name.endswith(_BLOCKS) and dtype == torch.uint8:
            packed[name.removesuffix(_BLOCKS)] = name
        elif (leaf == "weight" and _has_few_bits(dtype)) or f"{name}.absmax" in known or _is_scaled(name, dtype):
            packed[name] = name
    return packed


def packed_of(reader: StateReader | None) -> Mapping[str, str]:
    """The packed weights of an opened checkpoint; empty where it has none."""
    return reader.packed if isinstance(reader, QuantisedState) else {}


def known_by_name(reader: StateReader) -> StateReader:
    """The checkpoint with its packed weights under the model's names; as it is where nothing is packed."""
    packed = packed_weights(reader)
    return QuantisedState(reader, packed) if packed else reader


def _has_few_bits(dtype: torch.dtype) -> bool:
    return dtype.itemsize == 1 and dtype != torch.bool


def _is_scaled(name: str, dtype: torch.dtype) -> bool:
    """Whether it is an 8-bit float that is no scale itself."""
    return dtype.is_floating_point and dtype.itemsize == 1 and "scale" not in name.rpartition(".")[2]
