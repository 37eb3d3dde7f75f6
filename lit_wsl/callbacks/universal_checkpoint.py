"""Universal checkpoints for a LightningModule that does not carry the mixin."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_wsl.models.universal.fold import MergedDtype
from lit_wsl.models.universal.sidecar import Kind
from lit_wsl.training.universal import UniversalCheckpoint, fit_to_module, make_universal, prepare

_BOUND = "_universal_checkpoint"


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
        bound = getattr(pl_module, _BOUND, None)
        if bound is None:
            _bind(pl_module, self)
        else:
            bound.sidecar, bound.merged_dtype = self.sidecar, self.merged_dtype


def _bind(module: LightningModule, callback: UniversalCheckpointCallback) -> None:
    save, load = module.on_save_checkpoint, module.on_load_checkpoint

    def on_save_checkpoint(checkpoint: dict[str, Any]) -> None:
        save(checkpoint)
        make_universal(module, checkpoint, callback.sidecar, callback.merged_dtype)

    def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
        load(checkpoint)
        fit_to_module(module, checkpoint)

    hooks: Any = {"on_save_checkpoint": on_save_checkpoint, "on_load_checkpoint": on_load_checkpoint, _BOUND: callback}
    module.__dict__.update(hooks)
