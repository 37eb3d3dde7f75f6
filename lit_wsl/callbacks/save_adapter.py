"""Writes what was trained when the training ends."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_wsl.errors import ConfigError
from lit_wsl.models.adapter_base import OtherBaseError
from lit_wsl.state.publish import check_target
from lit_wsl.training.module import BackboneModule

logger = logging.getLogger(__name__)


class SaveAdapter(Callback):
    """Save the trained adapter (or, without LoRA, the whole model) at the end of ``fit``.

    An adapter is of use on its base alone, so the weights under it are compared with the base's files: at the start of
    training, once a checkpoint is loaded, and again before the adapter is written, after everything else is saved.

    Args:
        directory: Directory to write, replaced whole if it exists.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that cannot save itself, or a directory that cannot be written, before any work is done.

        Raises:
            ConfigError: If the module has no ``save_pretrained``.
            CheckpointError: If the directory cannot be made, or holds something else than an earlier save, or if
                the adapters will fit no base on disk.
        """
        if stage == "fit":
            check_target(self.directory, overwrite=True)
            if isinstance(pl_module, BackboneModule):
                pl_module.check_saveable()
        if not callable(getattr(pl_module, "save_pretrained", None)):
            raise ConfigError(f"SaveAdapter: {type(pl_module).__name__} has no `save_pretrained`; remove the callback.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse adapters on other weights than their base's, now that a checkpoint is loaded.

        Raises:
            CheckpointError: If a tensor under the adapters is not the base's, or trains.
        """
        if isinstance(pl_module, BackboneModule):
            pl_module.check_base()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the directory, on one process; a trial run (``fast_dev_run``) writes nothing.

        Raises:
            CheckpointError: If the weights under the adapters were changed while training; a run without
                checkpoints then leaves one beside the directory.
        """
        if getattr(trainer, "fast_dev_run", False) or not (
            trainer.is_global_zero or isinstance(pl_module, BackboneModule)
        ):
            return
        module: Any = pl_module
        try:
            module.save_pretrained(self.directory)  # every process of ours gives its shards
        except OtherBaseError:
            if not trainer.checkpoint_callbacks:
                trainer.save_checkpoint(self.directory.with_name(f"{self.directory.name}.ckpt"))
            raise
        if trainer.is_global_zero:
            logger.info("Wrote %s.", self.directory)
