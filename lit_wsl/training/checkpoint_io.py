"""Checkpoint files: written whole or not at all, read from any container."""

import errno
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer

from lit_wsl.errors import CheckpointError
from lit_wsl.models.sharded import is_sharded_checkpoint
from lit_wsl.models.universal.api import read_state
from lit_wsl.state.locate import PACKAGE
from lit_wsl.state.publish import published_file, untouched
from lit_wsl.state.reader import TORCH_SUFFIXES, read_torch_file
from lit_wsl.training.shards import read_shards

_VERSION_KEY = "pytorch-lightning_version"
_FULL = 2**20
"""Free bytes below which a failed write is put down to a full disk: a block or two may be left over."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, safe against a kill at any moment and without a second copy in memory.

    Writing goes to ``NAME.partial`` beside the checkpoint, which is synced and renamed. Reading maps the file and
    never runs code from it; besides checkpoints it takes a plain state dict, a safetensors file and a model directory,
    so that ``fit(ckpt_path=...)`` starts from these too. Remote paths are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one file; an earlier one of that name stays whole until the new one is.

        Raises:
            CheckpointError: If the file cannot be written.
        """
        if storage_options is not None or is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with published_file(Path(path)) as partial:
            try:
                torch.save(checkpoint, partial)
            except (OSError, RuntimeError) as error:  # the second is how torch reports a full disk
                raise CheckpointError(_unwritten(Path(path), error)) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,  # noqa: FBT001
    ) -> dict[str, Any]:
        """Read a checkpoint, or any other file or directory of weights as a checkpoint without a history.

        Args:
            path: What to read.
            map_location: Passed on for a trusted or remote file; otherwise tensors are mapped on the CPU.
            weights_only: False trusts the file and lets it run code.

        Raises:
            CheckpointError: If nothing is there, or the file is damaged or would run code.
        """
        if weights_only is False or is_remote(path):
            return super().load_checkpoint(path, map_location or (lambda storage, _: storage), weights_only)
        return read_checkpoint(Path(path))


def _unwritten(path: Path, error: Exception) -> str:
    """Why a checkpoint was not written; asked before the scratch file is removed, while a full disk is full."""
    free = shutil.disk_usage(path.parent).free
    if getattr(error, "errno", None) == errno.ENOSPC or free < _FULL:
        reason, remedy = f"the disk is full: {free} bytes are free in {path.parent}", "make room there"
    else:
        reason = getattr(error, "strerror", None) or (str(error) or repr(error)).splitlines()[0]
        remedy = "check the disk and the directory, or choose another"
    return f"{path} could not be written ({reason}){untouched(path)}; {remedy}."


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as Lightning expects it, from any file or directory of weights.

    Raises:
        CheckpointError: If nothing is there, or the file is damaged or would run code.
    """
    path = path.expanduser()
    if not path.exists() and not str(path).startswith(PACKAGE):
        raise CheckpointError(f"Checkpoint {path} does not exist; check `ckpt_path`, relative to {Path.cwd()}.")
    if is_sharded_checkpoint(path):
        return read_shards(path)
    if path.is_file() and path.suffix in TORCH_SUFFIXES:
        content = _read_torch_file(path)
        if isinstance(content, dict) and _VERSION_KEY in content:
            return content
    state, _ = read_state(path)
    return {"state_dict": state, _VERSION_KEY: lightning.__version__}


def _read_torch_file(path: Path) -> Any:
    """What a torch file holds; a refusal of objects that would run code names the way out for a trusted file."""
    try:
        return read_torch_file(path)
    except CheckpointError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError) or "would run code" not in str(error):
            raise
        raise CheckpointError(
            f"{str(error).removesuffix('.')}, or, if you trust the file, pass `weights_only=False` in Python: "
            "`trainer.fit(..., weights_only=False)`."
        ) from error


def use_atomic_io(trainer: Trainer) -> None:
    """Let a trainer write checkpoints through :class:`AtomicCheckpointIO`, unless it was given a plugin of its own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def is_remote(path: str | Path) -> bool:
    """Whether a path names another machine's file, which Lightning reads and writes."""
    return "://" in str(path)
