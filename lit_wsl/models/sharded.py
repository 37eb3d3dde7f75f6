"""Models whose weights are spread over processes: tensors in one piece, and what their checkpoints consist of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_wsl.state.reader import read_torch_file

METADATA_FILE = "meta.pt"
"""Everything of a sharded checkpoint but weights and optimizer states; the name is Lightning's."""
EXPORT_FILE = "model.safetensors"
"""Merged weights inside a sharded checkpoint."""


def is_sharded_checkpoint(path: Path) -> bool:
    """Whether a path is a directory of shards with the metadata that Lightning puts beside them."""
    return path.is_dir() and (path / METADATA_FILE).is_file()


def read_metadata(path: Path) -> dict[str, Any]:
    """Everything of a sharded checkpoint but weights and optimizer states.

    Raises:
        CheckpointError: If the file is damaged or would run code.
    """
    content: dict[str, Any] = read_torch_file(path / METADATA_FILE)
    return content


def is_spread(tensor: Tensor) -> bool:
    """Whether this process holds a part of a tensor only."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """A tensor in one piece on the CPU; of a sharded one every process must ask for it at once."""
    full: Tensor = tensor.full_tensor() if is_spread(tensor) else tensor
    return full.detach().cpu()


def gathered(state: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """A state dict in one piece on the CPU; every process must call it, and one that only contributes gets nothing.

    Args:
        state: State dict, sharded or not.
        keep: Whether this process is one that needs it.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if keep:
            found[name] = whole(tensor)
        elif is_spread(tensor):
            whole(tensor)
    return found
