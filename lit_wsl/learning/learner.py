"""The LightningModule that learns the coefficients of a merge; what it learns them by is up to its subclasses."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lit_wsl.errors import ConfigError, DataError, MergeError
from lit_wsl.evaluation.task import Task
from lit_wsl.evaluation.tasks import load_tasks
from lit_wsl.learning.coefficients import CoefficientModule, CoefficientSettings
from lit_wsl.learning.data import first_batches
from lit_wsl.learning.live.merge import EngineSettings, LiveMerge
from lit_wsl.learning.live.task_model import Outputs
from lit_wsl.learning.losses import TaskLoss, across_ranks, finite, mean_of
from lit_wsl.learning.rows import Granularity, rows_of
from lit_wsl.merging.config import MergeConfig
from lit_wsl.training.resumable import enter_next_epoch, loader_states, mark_position

_FP16_SCALE = 2.0**10
"""Factor on losses whose derivatives pass through float16, taken off again."""


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Adam with a learning rate of 1e-3 and no weight decay."""
    return torch.optim.Adam(parameters, lr=1e-3)


@dataclass(frozen=True)
class StepRecord:
    """What a training step found, over all processes."""

    objective: float
    """What is made smaller."""
    losses: dict[str, float]
    """Of each task."""
    gradient: Tensor
    """Of the objective by the coefficients, shape ``(rows, T)``, on the CPU."""
    counts: dict[str, int] = field(default_factory=dict)
    """Labels, or positions, that each task's loss is taken over."""


class CoefficientLearner(LightningModule):
    """Learns the coefficients of a sum of task vectors; the backbone and its sources stay as they are.

    A batch is a mapping from tasks to their batches, as :class:`~lit_wsl.learning.data.MergeTaskData` gives them. The
    weights are merged once an update. Each task is differentiated by itself, so that activations of one task are kept
    at a time; a subclass says what a task's loss is and how losses make one objective. On several processes losses and
    derivatives are those of all their batches together.

    Checkpoints hold the coefficients, never the backbone.

    Args:
        merge: Sources, base and tasks; its method is not used.
        tasks: Names of the tasks to learn on; default those of the sources.
        granularity: ``task`` learns one coefficient a source, ``layer`` and ``tensor`` one for each layer or parameter,
            ``groups`` one for each pattern.
        groups: Patterns over parameter names, for ``groups``.
        coefficients: How coefficients follow from free numbers; default by learner.
        initial: First coefficients: one number, one a source, or one a source for each row; default mostly 0.3.
        engine: How the merged model is kept live.
        optimizer: Makes the optimizer from the free numbers.
        lr_scheduler: Makes a schedule from the optimizer, stepped every update.
        source_tasks: Tasks of each source, in the order of the sources, where some stand for several; default the one
            that each is named after.

    Raises:
        LitWslError: If the merge or its tasks cannot be had.
    """

    name: ClassVar[str]
    """As in ``optimizer.type``."""
    default_coefficients: ClassVar[CoefficientSettings] = CoefficientSettings()
    parametrisations: ClassVar[Sequence[str]] = ("projected_lambda", "sigmoid_alpha")
    """Those that go with it, the default first."""
    default_initial: ClassVar[float] = 0.3
    reduction: Literal["mean", "sum"] = "mean"
    """Whether a task's loss is the mean over what it counts, or the sum."""

    def __init__(
        self,
        merge: MergeConfig,
        tasks: list[str] | None = None,
        granularity: Granularity = "task",
        groups: list[str] | None = None,
        coefficients: CoefficientSettings | None = None,
        initial: float | list[float] | list[list[float]] | None = None,
        engine: EngineSettings | None = None,
        optimizer: OptimizerCallable = adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        source_tasks: list[list[str]] | None = None,
    ) -> None:
        super().__init__()
        self.merge, self._optimizer, self._lr_scheduler = merge, optimizer, lr_scheduler
        settings = coefficients or self.default_coefficients
        if settings.parametrisation not in self.parametrisations:
            raise ConfigError(
                f"`{self.name}` learns by `coefficient_parameterization: {' | '.join(self.parametrisations)}`, "
                f"got {settings.parametrisation!r}."
            )
        given = source_tasks or [[task] for task in merge.source_tasks]
        self.source_tasks = [[_known(task, merge.registry) for task in tasks] for tasks in given]
        self.tasks = task_names(merge, tasks, self.source_tasks)
        self.task_objects: Mapping[str, Task] = load_tasks(merge.registry, base=merge.origin, names=self.tasks)
        self.live = LiveMerge(merge, self.task_objects, engine)
        rows = rows_of(self.live.plan.merged, granularity, groups or ())
        first = self.default_initial if initial is None else initial
        self.coefficients = CoefficientModule(rows, len(self.live.plan.sources), first, settings)
        self.latest: StepRecord | None = None
        self._loaders: list[dict[str, Any]] = []
        self._is_resumed = False

    @abstractmethod
    def task_loss(self, outputs: Outputs) -> TaskLoss:
        """The loss of one task's batch.

        Raises:
            DataError: If the batch has not what the loss needs.
        """

    def objective(self, losses: Tensor) -> Tensor:
        """What is made smaller, differentiable.

        Args:
            losses: Of the tasks, in the order of ``tasks``, shape ``(K,)``.
        """
        return losses.mean()

    def prepare(self) -> None:  # noqa: B027  # most need nothing
        """Measure what the objective is relative to, before the first step of a run that is not resumed."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the free numbers, with its schedule if there is one."""
        optimizer = self._optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])
        if self._lr_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._lr_scheduler(optimizer), "interval": "step"},
        }

    def on_fit_start(self) -> None:
        """Open the merge."""
        self.live.open(self.coefficients.rows, self.device)

    def on_train_start(self) -> None:
        """Try every task once, before anything is learned; restore the order of a resumed run."""
        enter_next_epoch(self.trainer, self._loaders)
        if not self._is_resumed:
            self._try()
            self.prepare()

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """A number with the objective's value and its derivative by the free numbers."""
        coefficients = self.coefficients()
        leaf = coefficients.detach().requires_grad_()
        parts = [self._differentiated(task, batch, leaf) for task in self.tasks]
        found = across_ranks(parts, self.reduction)
        with torch.enable_grad():
            losses = found.losses.requires_grad_()
            objective = self.objective(losses)
            (weights,) = torch.autograd.grad(objective, losses)
        gradient = torch.einsum("k,krt->rt", weights.to(found.gradients), found.gradients)
        self._record(objective, found.losses, found.mean_of_ranks(gradient), found.counts)
        return objective.detach() + ((coefficients - leaf.detach()) * gradient.to(coefficients)).sum()

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Take every task's loss; a task whose rows are over has None."""
        for task in self.tasks:
            if batch[task] is not None:
                self._validated[task].append(self.loss_of(task, batch))

    def on_validation_epoch_start(self) -> None:
        """Merge by the present coefficients."""
        self._validated: dict[str, list[TaskLoss]] = {task: [] for task in self.tasks}
        self.live.merge(self.coefficients())

    def on_validation_epoch_end(self) -> None:
        """Log the loss of every task over all rows, and the objective of these losses."""
        parts: list[tuple[TaskLoss, Tensor | None]] = []
        for task, found in self._validated.items():
            try:
                parts.append((mean_of(found), None))
            except DataError as error:
                raise DataError(f"Task {task!r}: {error}") from error
        losses = across_ranks(parts).losses
        values = dict(zip(self.tasks, losses.tolist(), strict=True))
        self.log_dict({f"val/loss/{task}": value for task, value in values.items()})
        if self.is_prepared:
            self.log("val/objective", float(self.objective(losses)), prog_bar=True)

    def on_validation_start(self) -> None:
        """Open the merge, where nothing was fitted before."""
        self.live.open(self.coefficients.rows, self.device)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """An update, after which coefficients are brought back into their bounds."""
        super().optimizer_step(*args, **kwargs)
        self.coefficients.project()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the position in the data, and what :meth:`prepare` measured."""
        if self._trainer is not None:
            mark_position(self._trainer, checkpoint)
        checkpoint["prepared"] = self.prepared()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up both."""
        self._loaders, self._is_resumed = loader_states(checkpoint), True
        self.restore_prepared(checkpoint.get("prepared", {}))

    @property
    def is_prepared(self) -> bool:
        """Whether the objective can be told: what it is relative to has been measured."""
        return True

    def prepared(self) -> dict[str, Any]:
        """What :meth:`prepare` measured, as plain values."""
        return {}

    def restore_prepared(self, values: Mapping[str, Any]) -> None:  # noqa: B027
        """Take up what an earlier process measured."""

    def teardown(self, stage: str) -> None:
        """Give the backbone back as it was."""
        self.live.close()

    def merged_state(self) -> dict[str, Tensor]:
        """State dict of the backbone merged by the present coefficients, on the CPU."""
        self.live.open(self.coefficients.rows, self.device)
        with torch.no_grad():
            self.live.merge(self.coefficients())
        return self.live.state()

    def remember(self) -> dict[str, Tensor]:
        """The free numbers, copied."""
        return {name: value.detach().cpu().clone() for name, value in self.coefficients.state_dict().items()}

    def restore(self, numbers: Mapping[str, Tensor]) -> None:
        """Take up free numbers that were remembered."""
        self.coefficients.load_state_dict(dict(numbers))

    def learned(self) -> MergeConfig:
        """The merge by the present coefficients."""
        dropped = dict.fromkeys(("optimizer", "lambda_policy", "learned_from"))
        values = {**self.merge.to_dict(), **self.coefficients.merge_fields(), **dropped}
        return MergeConfig(**values)

    def _differentiated(self, task: str, batch: Mapping[str, Any], leaf: Tensor) -> tuple[TaskLoss, Tensor]:
        """The loss of a task and the derivative of its mean by the coefficients."""
        self.live.merge(leaf)  # for each task: an implementation may keep a graph of its own, which is gone behind it
        loss = self.loss_of(task, batch)
        scale = _FP16_SCALE if _is_fp16() else 1.0
        (gradient,) = torch.autograd.grad(loss.mean * scale, leaf)
        return loss.detached(), gradient / scale

    def loss_of(self, task: str, batch: Mapping[str, Any]) -> TaskLoss:
        """The loss of one task in a batch of all of them, by the coefficients that were merged last.

        Raises:
            DataError: If the batch has not what the loss needs.
            MergeError: If the loss is not finite, or memory is out.
        """
        try:
            return finite(task, self.task_loss(self.live(task, batch[task])))
        except DataError as error:
            raise DataError(f"Task {task!r}: {error}") from error
        except torch.OutOfMemoryError as error:
            raise MergeError(
                f"Out of memory in step {self.trainer.fit_loop.total_batch_idx + 1} on task {task!r} (`merge_impl` "
                f"{self.live.settings.merge_impl}, `delta_residency` {self.live.settings.delta_residency}); lower "
                "`batch_size`, or set `gradient_checkpointing: true` or `delta_residency: cpu_stream`."
            ) from error

    @torch.no_grad()
    def _try(self) -> None:
        """Take the loss of every task's first batch, so that what cannot be learned on is told at once."""
        self.live.merge(self.coefficients())
        for batch in first_batches(self.trainer, 1):
            lacking = [task for task in self.tasks if task not in batch]
            if lacking:
                raise DataError(f"The data have no batches of {', '.join(lacking)}; they are {', '.join(batch)}.")
            moved = self.moved(batch)
            for task in self.tasks:
                self.loss_of(task, moved)

    def moved(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """A batch on the device of this process."""
        return self.trainer.strategy.batch_to_device(batch, self.device)

    def _record(self, objective: Tensor, losses: Tensor, gradient: Tensor, counts: Sequence[int]) -> None:
        by_task = dict(zip(self.tasks, losses.tolist(), strict=True))
        named = dict(zip(self.tasks, counts, strict=True))
        self.latest = StepRecord(float(objective.detach()), by_task, gradient.cpu(), named)
        self.log("objective", self.latest.objective, prog_bar=True, batch_size=1)
        self.log_dict({f"loss/{task}": value for task, value in by_task.items()}, batch_size=1)


def task_names(
    merge: MergeConfig, given: Sequence[str] | None, source_tasks: Sequence[Sequence[str]] | None = None
) -> list[str]:
    """The tasks to learn on: lower-cased where only so they are known, each once; one at least for every source.

    Args:
        merge: Sources and registry.
        given: The tasks; default those of the sources.
        source_tasks: Tasks of each source; default the one that it is named after.

    Raises:
        ConfigError: If a task is unknown, or a source has none.
    """
    registry = merge.registry
    if not registry:
        raise ConfigError("Coefficients are learned on data: name `tasks`, such as `configs/merge/tasks.yaml`.")
    own = [[task] for task in merge.source_tasks] if source_tasks is None else source_tasks
    wanted = [task for tasks in own for task in tasks] if given is None else given
    names = list(dict.fromkeys(_known(name, registry) for name in wanted))
    if not names:
        raise ConfigError("`tasks` are none; name those to learn on.")
    lacking = [" or ".join(tasks) for tasks in own if not {_known(task, registry) for task in tasks} & set(names)]
    if lacking:
        raise ConfigError(
            f"No task to learn on for {len(lacking)} of {len(own)} sources: {', '.join(lacking)}; add "
            "their tasks, or leave these sources out."
        )
    return names


def _known(task: str, registry: Mapping[str, Any]) -> str:
    """A task's name, lower-cased where only so it is known."""
    return task if task in registry else str(task).lower()


def _is_fp16() -> bool:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
