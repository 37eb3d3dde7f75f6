"""Writes what was trained when the training ends."""

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_wsl.errors import ConfigError

logger = logging.getLogger(__name__)


class SaveAdapter(Callback):
    """Save the trained adapter (or, without LoRA, the whole model) at the end of ``fit``.

    Args:
        directory: Directory to write, replaced whole if it exists.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that cannot save itself before any work is done.

        Raises:
            ConfigError: If the module has no ``save_pretrained``.
        """
        if not callable(getattr(pl_module, "save_pretrained", None)):
            raise ConfigError(f"SaveAdapter: {type(pl_module).__name__} has no `save_pretrained`; remove the callback.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the directory, on one process."""
        if trainer.is_global_zero:
            module: Any = pl_module
            module.save_pretrained(self.directory)
            logger.info("Wrote %s.", self.directory)
