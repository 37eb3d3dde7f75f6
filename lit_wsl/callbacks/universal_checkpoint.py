"""Universal checkpoints for a LightningModule that does not carry the mixin."""

from types import MethodType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_wsl.models.universal.fold import MergedDtype
from lit_wsl.models.universal.sidecar import Kind
from lit_wsl.training.universal import UniversalCheckpoint, fit_to_module, make_universal, prepare

_SETTINGS = "_universal_checkpoint"


class UniversalCheckpointCallback(Callback):
    """Let every checkpoint of a trainer hold plain keys and merged weights, whatever adapters the module has.

    Lightning calls a callback's own checkpoint hooks too late, and not for weights-only files; so this one
    hangs itself onto the module's hooks, which run after the module's own. They stay bound after ``fit``.

    Args:
        sidecar: ``exact`` restores the same configuration bit by bit, ``factors`` up to rounding without a copy of
            the adapted weights, ``none`` keeps merged weights only.
        merged_dtype: Dtype of merged weights; see :func:`lit_wsl.get_merged_state_dict`.
    """

    def __init__(self, sidecar: Kind = "exact", merged_dtype: MergedDtype = "auto") -> None:
        self.sidecar: Kind = sidecar
        self.merged_dtype: MergedDtype = merged_dtype

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Bind the hooks; refuse adapters that no plain checkpoint can hold, before any training.

        Raises:
            CheckpointError: If a layer cannot be folded, or tied weights are adapted one without the other.
        """
        if isinstance(pl_module, UniversalCheckpoint):
            pl_module.sidecar, pl_module.merged_dtype = self.sidecar, self.merged_dtype
            return
        prepare(pl_module, trainer)
        bound = {
            _SETTINGS: (self.sidecar, self.merged_dtype),
            "on_save_checkpoint": MethodType(on_save_checkpoint, pl_module),
            "on_load_checkpoint": MethodType(on_load_checkpoint, pl_module),
        }
        pl_module.__dict__.update(bound)


def on_save_checkpoint(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """The module's own hook, and then the folding; a copy of the module has it bound to the copy."""
    type(module).on_save_checkpoint(module, checkpoint)
    sidecar, merged_dtype = getattr(module, _SETTINGS)
    make_universal(module, checkpoint, sidecar, merged_dtype)


def on_load_checkpoint(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """The module's own hook, and then the keys of this module."""
    type(module).on_load_checkpoint(module, checkpoint)
    fit_to_module(module, checkpoint)
