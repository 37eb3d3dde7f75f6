"""Checkpoints as dictionaries, whatever wrote them; what a file says is never executed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_wsl.errors import CheckpointError, did_you_mean
from lit_wsl.state.formats import unwrap
from lit_wsl.state.reader import TORCH_SUFFIXES, open_state, read_torch_file


def load_checkpoint_as_dict(path: str | Path) -> dict[str, Any]:
    """All that a checkpoint holds: a torch file's dictionary as it was saved, the tensors by name of any other.

    Tensors are mapped from the file, so loading costs their headers; treat them as read-only.

    Args:
        path: A torch or safetensors file, a directory with either, sharded or not, or an index.

    Raises:
        CheckpointError: If the file is missing or damaged, would run code, or holds no dictionary.
    """
    path = Path(path)
    if path.suffix in TORCH_SUFFIXES and path.is_file():
        content = read_torch_file(path)
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, no dictionary; save `model.state_dict()`.")
        return dict(content)
    reader = open_state(path)
    return {name: reader.read(name) for name in reader.keys()}


def extract_state_dict(
    checkpoint: str | Path | Mapping[str, Any], key: str | None = None, *, prefix: str = ""
) -> dict[str, Tensor]:
    """The flat state dict inside a checkpoint: tensors alone, without the names that wrappers of a module insert.

    Args:
        checkpoint: A path, or what :func:`load_checkpoint_as_dict` returned.
        key: Where the state dict stands, with dots between levels; by default where training tools put it, which
            is ``state_dict``, ``model``, ``model_state_dict``, ``module``, or the checkpoint itself.
        prefix: Keep the names that begin with it, without it.

    Raises:
        CheckpointError: If there is no state dict, or no name with the prefix.
    """
    where = "The checkpoint" if isinstance(checkpoint, Mapping) else str(checkpoint)
    content = checkpoint if isinstance(checkpoint, Mapping) else load_checkpoint_as_dict(checkpoint)
    state = unwrap(content, where) if key is None else _at(content, key, where)
    if not prefix:
        return state
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not found:
        known = {f"{name.split('.')[0]}." for name in state}
        raise CheckpointError(f"{where} has no name with the prefix {prefix!r}. {did_you_mean(prefix, known)}")
    return found


def _at(content: Mapping[str, Any], key: str, where: str) -> dict[str, Tensor]:
    """The state dict under a key, or under keys within keys."""
    inner: Any = content
    for part in [key] if key in content else key.split("."):
        if part not in inner:
            known = [name for name, value in inner.items() if isinstance(value, Mapping)]
            raise CheckpointError(f"{where} has no {key!r}. {did_you_mean(part, known)}")
        inner = inner[part]
        if not isinstance(inner, Mapping):
            raise CheckpointError(f"{where} has a {type(inner).__name__} under {key!r}, no state dict; name another.")
    return unwrap({"state_dict": inner}, f"{where} under {key!r}")
