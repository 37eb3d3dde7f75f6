"""Writes what was trained when the training ends."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_wsl.errors import ConfigError
from lit_wsl.state.publish import check_target
from lit_wsl.training.module import BackboneModule

logger = logging.getLogger(__name__)


class SaveAdapter(Callback):
    """Save the trained adapter (or, without LoRA, the whole model) at the end of ``fit``.

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

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the directory, on one process; a trial run (``fast_dev_run``) writes nothing."""
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            module: Any = pl_module
            module.save_pretrained(self.directory)
            logger.info("Wrote %s.", self.directory)
