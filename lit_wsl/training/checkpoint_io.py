"""Checkpoint files: written whole or not at all, read from any container."""

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
from lit_wsl.state.publish import published_file
from lit_wsl.state.reader import TORCH_SUFFIXES, read_torch_file
from lit_wsl.training.shards import read_shards

_VERSION_KEY = "pytorch-lightning_version"


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
        if storage_options is not None or _is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with published_file(Path(path)) as partial:
            try:
                torch.save(checkpoint, partial)
            except RuntimeError as error:  # how torch reports a full disk
                reason = str(error).splitlines()[0]
                raise CheckpointError(
                    f"{path} could not be written ({reason}); an earlier file is untouched."
                ) from error

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
        if weights_only is False or _is_remote(path):
            return super().load_checkpoint(path, map_location or (lambda storage, _: storage), weights_only)
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as Lightning expects it, from any file or directory of weights.

    Raises:
        CheckpointError: If nothing is there, or the file is damaged or would run code.
    """
    if is_sharded_checkpoint(path):
        return read_shards(path)
    if path.is_file() and path.suffix in TORCH_SUFFIXES:
        content = read_torch_file(path)
        if isinstance(content, dict) and _VERSION_KEY in content:
            return content
    state, _ = read_state(path)
    return {"state_dict": state, _VERSION_KEY: lightning.__version__}


def use_atomic_io(trainer: Trainer) -> None:
    """Let a trainer write checkpoints through :class:`AtomicCheckpointIO`, unless it was given a plugin of its own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def _is_remote(path: str | Path) -> bool:
    return "://" in str(path)
