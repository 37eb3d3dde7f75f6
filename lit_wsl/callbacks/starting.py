"""What callbacks share that start a training from other weights."""

import inspect
import logging
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lit_wsl.errors import ConfigError, LitWslError, did_you_mean
from lit_wsl.models.places import earlier

logger = logging.getLogger("lit_wsl.callbacks")


class StartingWeights(Callback, ABC):
    """Fills a module at setup, once, unless the run takes up a checkpoint.

    A subclass has ``load``, which fills a module and keeps what it did as ``report``.

    Args:
        module: Dotted path of the submodule to fill, such as ``model``; empty for the whole module.
    """

    stages: ClassVar[tuple[str, ...]] = ("fit", "validate", "test", "predict")
    """What may run first after setup."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._done: LightningModule | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fill the module, unless this was done or the run takes up a checkpoint.

        Raises:
            CheckpointError: If the weights cannot be read or do not fit the module.
            ConfigError: If there is no such submodule, or its tensors cannot be filled yet.
        """
        if stage not in self.stages or self._done is pl_module:
            return
        resumed = resumed_from(trainer)
        if resumed:
            told = f"nothing is loaded, since the run takes up {resumed}"
        else:
            self.load(pl_module)
            told = self.told(told_part(pl_module, self.module))
        if trainer.is_global_zero:
            logger.info("%s: %s.", type(self).__name__, told)
        self._done = pl_module

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let our error be seen."""
        release(trainer, pl_module, exception)

    @abstractmethod
    def load(self, module: nn.Module) -> Any:
        """Fill a module at once."""

    @abstractmethod
    def told(self, where: str) -> str:
        """What was loaded, in one sentence without its end."""

    @property
    def call(self) -> str:
        """The call that fills a module at once, for messages."""
        return f"{type(self).__name__}(...).load(self)"


def resumed_from(trainer: Trainer) -> Any:
    """The checkpoint that a run takes up, or None.

    Lightning sets ``trainer.ckpt_path`` after ``setup`` only; until then the path is an argument of its running method.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is Trainer._run.__code__ and frame.f_locals["self"] is trainer:
            return frame.f_locals["ckpt_path"]
        frame = frame.f_back
    return trainer.ckpt_path


def release(trainer: Trainer, module: LightningModule, error: BaseException) -> None:
    """Let an error of ours be seen: Lightning's clean-up cannot move a module off the meta device, and raises then."""
    if isinstance(error, LitWslError) and any(parameter.is_meta for parameter in module.parameters()):
        trainer.strategy._lightning_module = None


def part_to_fill(module: nn.Module, path: str, load: str) -> nn.Module:
    """The submodule of that path; the module itself for an empty one.

    Args:
        module: The whole module.
        path: Names with dots between them.
        load: The call that fills a module at once, for messages.

    Raises:
        ConfigError: If there is none.
    """
    modules = dict(module.named_modules(remove_duplicate=False))
    if path not in modules:
        hint = did_you_mean(path, [name for name in modules if name])
        raise ConfigError(
            f"{load.partition('(')[0]}: {type(module).__name__} has no submodule {path!r} at setup. {hint} If it is "
            f"built later, {earlier(load)}."
        )
    return modules[path]


def told_part(module: nn.Module, path: str) -> str:
    """A module's class and the path of the part, for messages."""
    return ".".join(part for part in (type(module).__name__, path) if part)
