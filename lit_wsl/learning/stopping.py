"""The best coefficients by a mean over the last updates, and an end where that no longer falls."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_wsl.errors import ConfigError
from lit_wsl.learning.learner import CoefficientLearner
from lit_wsl.training.options import check_least


class Plateau(Callback):
    """Follows the mean of the objective over a window of updates.

    Its best value and the coefficients behind it are kept. With a patience the run ends after so many updates without
    a fall by more than the threshold; updates of the warm-up do not count against it.

    Args:
        window: Updates of the mean.
        patience: 0 never ends a run.
        threshold: What counts as a fall.
        warmup: Updates that patience does not count.
        min_updates: Updates before a run may end.
        restore_best: End with the best coefficients.
    """

    def __init__(
        self,
        window: int = 10,
        patience: int = 0,
        threshold: float = 0.0,
        warmup: int = 0,
        min_updates: int = 0,
        *,
        restore_best: bool = False,
    ) -> None:
        check_least(1, window=window)
        check_least(0, patience=patience, warmup=warmup, min_updates=min_updates)
        if threshold < 0.0:
            raise ConfigError(f"`threshold >= 0` must hold, got {threshold}.")
        self._patience, self._threshold, self._warmup, self._least = patience, threshold, warmup, min_updates
        self._restores = restore_best
        self._values: deque[float] = deque(maxlen=window)
        self._steps: list[float] = []
        self._best_numbers: dict[str, Tensor] | None = None
        self._before: dict[str, Tensor] | None = None
        self._updates, self._waited = 0, 0
        self.best: float | None = None
        """Smallest mean of a window."""
        self.best_update: int | None = None
        """Where it was."""
        self.stopped_at: int | None = None
        """The update that ended the run, if patience did."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the coefficients that the objective of this update is about to be taken at."""
        if self._restores and not self._steps:
            self._before = _learner(pl_module).remember()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in an update when it is complete."""
        latest = _learner(pl_module).latest
        assert latest is not None
        self._steps.append(latest.objective)
        if trainer.global_step == self._updates:
            return
        self._updates = trainer.global_step
        self._values.append(sum(self._steps) / len(self._steps))
        self._steps = []
        self._judge(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the best, behind all that looks at the last update when training ends."""
        if self._restores and self._best_numbers is not None:
            _learner(pl_module).restore(self._best_numbers)

    def _judge(self, trainer: Trainer) -> None:
        mean = sum(self._values) / len(self._values)
        if self.best is None or mean < self.best - self._threshold:
            self.best, self.best_update, self._waited = mean, self._updates, 0
            self._best_numbers = self._before
            return
        if self._updates > self._warmup:
            self._waited += 1
        if self._patience and self._waited >= self._patience and self._updates >= self._least:
            self.stopped_at = self._updates
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run goes on with."""
        return {
            "values": list(self._values),
            "steps": self._steps,
            "updates": self._updates,
            "waited": self._waited,
            "best": self.best,
            "best_update": self.best_update,
            "best_numbers": self._best_numbers,
            "before": self._before,
            "stopped_at": self.stopped_at,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take it up."""
        self._values.extend(state_dict["values"])
        self._steps = list(state_dict["steps"])
        self._updates, self._waited = state_dict["updates"], state_dict["waited"]
        self.best, self.best_update = state_dict["best"], state_dict["best_update"]
        self._best_numbers, self._before = state_dict["best_numbers"], state_dict["before"]
        self.stopped_at = state_dict["stopped_at"]


def _learner(module: LightningModule) -> CoefficientLearner:
    if not isinstance(module, CoefficientLearner):
        raise ConfigError(f"`Plateau` follows a learner of coefficients, not a {type(module).__name__}.")
    return module
