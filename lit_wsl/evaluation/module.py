"""Evaluate backbones of any LightningModule through Lightning's own validation and test loops."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.evaluation.backbone import backbone_of
from lit_wsl.evaluation.content import digest_of, tensors_digest
from lit_wsl.evaluation.placing import put_in_place
from lit_wsl.evaluation.result import ScoresEveryTask, TaskResult
from lit_wsl.evaluation.split_loader import row_count, split_loader
from lit_wsl.evaluation.subset import Subset, SubsetCache, SubsetSpec
from lit_wsl.evaluation.task import Task
from lit_wsl.training.quiet import quiet_trainer
from lit_wsl.training.tasks import Split, cache_directory

_QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "devices": 1,
}
_STAGES = ("val/", "test/", "valid/", "val_", "test_", "valid_")


class ModuleEvaluator(ScoresEveryTask):
    """Scores state dicts of a backbone by what a LightningModule logs while it validates or tests.

    A metric is named as the module logs it, with or without the stage: ``acc`` finds ``val/acc`` and ``test/acc``.

    Args:
        tasks: What to measure; each has a ``model`` unless there is one for all.
        model: The module of the tasks that have none of their own.
        backbone: Its submodule that takes the weights; by default the backbone of our modules, else all of it.
        trainer: Options of the Trainer.
        cache: Where the rows of subsets are remembered; default in the cache of the built-in tasks.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        model: LightningModule | None = None,
        backbone: str | None = None,
        trainer: Mapping[str, Any] | None = None,
        cache: Path | None = None,
    ) -> None:
        self._tasks = {task.name: task for task in tasks}
        self._model, self._backbone = model, backbone
        lacking = next((task.name for task in tasks if task.model is None and model is None), None)
        if lacking is not None:
            raise ConfigError(f"Task {lacking!r} has no `model`, and there is none for all; give it one.")
        self._options = {**_QUIET, **(trainer or {})}
        self._subsets = SubsetCache(cache or cache_directory() / "eval_subsets")
        copies: dict[int, dict[str, Tensor]] = {}  # one a module, however many tasks share it
        for task in tasks:
            target = self._target(task)
            copies.setdefault(id(target), _copied(target))
        self._bases = {task.name: copies[id(self._target(task))] for task in tasks}
        self._digests: dict[str, str] = {}

    @property
    def registry(self) -> Mapping[str, Task]:
        """The tasks by name."""
        return self._tasks

    def evaluate(
        self, state: Mapping[str, Tensor] | None, task: str, split: Split, subset: Subset | None = None
    ) -> TaskResult:
        """Metrics of one backbone on one task, by the module's own loop.

        Args:
            state: State dict of the backbone; None is the base.
            task: Name of a known task.
            split: ``validation`` and ``train`` rows go through the validation loop, ``test`` rows through the test
                loop.
            subset: Some of those rows, or how many; None for all.

        Raises:
            CheckpointError: If the state dict is not one of this backbone.
            ConfigError: If the task, the split or the subset cannot be had, or the metric was not logged.
        """
        known = self._task(task)
        put_in_place(self._target(known), state, self._bases[task])
        loader = split_loader(known, split, SubsetSpec.read(subset), self._subsets)
        with quiet_trainer():
            trainer = Trainer(**self._options)
            run = trainer.test if split == "test" else trainer.validate
            logged = run(self._module(known), dataloaders=loader, verbose=False)
        metrics = {_plain(name): float(value) for one in logged for name, value in one.items()}
        primary = _primary(known, metrics)
        return TaskResult(task, metrics, primary, known.better, row_count(loader))

    def digest(self, task: str, split: Split, subset: Subset | None = None) -> str:
        """Hash of all that a score depends on besides the weights that are put in.

        The data are told by how they are made and by their size, not by their rows, which no data module has to show.
        """
        known = self._task(task)
        if task not in self._digests:
            put_in_place(self._target(known), None, self._bases[task])
            self._digests[task] = tensors_digest(self._module(known).state_dict())
        count = row_count(split_loader(known, split))
        chosen = SubsetSpec.read(subset)
        tag = None if chosen is None else chosen.tag
        return digest_of(self._digests[task], known.description, known.metric, split, count, tag)

    def _task(self, name: str) -> Task:
        if name not in self._tasks:
            raise ConfigError(f"Unknown task {name!r}. {did_you_mean(name, self._tasks)}")
        return self._tasks[name]

    def _module(self, task: Task) -> LightningModule:
        model = task.model or self._model
        assert model is not None
        return model

    def _target(self, task: Task) -> nn.Module:
        """The submodule that takes the weights."""
        return backbone_of(self._module(task), task.backbone or self._backbone, task.name)


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _plain(name: str) -> str:
    """Name of a logged metric without its stage."""
    stage = next((stage for stage in _STAGES if name.startswith(stage)), "")
    return name.removeprefix(stage) or name


def _primary(task: Task, metrics: Mapping[str, float]) -> str | None:
    if task.metric is None:
        return None
    name = _plain(task.metric)
    if name not in metrics:
        raise ConfigError(f"Task {task.name!r}: no metric {task.metric!r} was logged. {did_you_mean(name, metrics)}")
    return name
