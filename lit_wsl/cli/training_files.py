"""Configurations of trainings: those that ship are found by name, and that of a run is kept beside its checkpoints."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lit_wsl.cli.parser import ConfigFile
from lit_wsl.cli.resources import shipped_config, shipped_path

FOLDERS = ("train", "learn")
"""Where trainings are among the configurations that ship."""


class TrainingFile(ConfigFile):
    """Reads the configuration of a training: a file, or the name of one that ships."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        """Take the options of a file into the namespace."""
        ConfigFile.apply_config(parser, cfg, dest, str(shipped_config(value, *FOLDERS) or value))


def find_shipped_paths(config: Any) -> None:
    """Let paths that begin with `configs/` mean what ships, in place, where the working directory has no such file."""
    entries = config.items(branches=True) if isinstance(config, Namespace) else config.items()
    for name, value in list(entries):
        if isinstance(value, str):
            config[name] = shipped_path(value)
        elif isinstance(value, dict):
            find_shipped_paths(value)


class SaveRunConfig(SaveConfigCallback):
    """Keeps the options of a training as ``config.yaml`` in the directory of its run."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write them when a training begins; other commands leave those of the training as they are."""
        folder = run_folder(trainer) if stage == "fit" else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / self.config_filename
            self.parser.save(self.config, file, skip_unset=False, overwrite=self.overwrite, multifile=self.multifile)


def run_folder(trainer: Trainer) -> Path | None:
    """Where a run keeps what it writes: with its logs, in ``default_root_dir``, or beside its checkpoints.

    None where the trainer is told none of them, so that the working directory is left as it is.
    """
    if trainer.loggers:
        logger = trainer.loggers[0]
        folder = logger.log_dir if isinstance(logger, TensorBoardLogger | CSVLogger) else logger.save_dir
        return None if folder is None else Path(folder)
    if Path(trainer.default_root_dir).resolve() != Path.cwd():
        return Path(trainer.default_root_dir)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            return Path(callback.dirpath or "checkpoints")
    return None
