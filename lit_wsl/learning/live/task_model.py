"""What a merged model makes of a task's batches: a head, or a LightningModule, over the backbone that all share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from transformers import AutoModel

from lit_wsl.errors import ConfigError, MergeError
from lit_wsl.evaluation.backbone import backbone_path
from lit_wsl.evaluation.encoder import make_head
from lit_wsl.evaluation.task import Task
from lit_wsl.state.locate import model_dir
from lit_wsl.training.encoder import embed
from lit_wsl.training.tokenizer import read_tokenizer


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch."""

    logits: Tensor | None = None
    """Shape ``(B, C)`` of a classifier, or ``(B, L, V)``."""
    labels: Tensor | None = None
    """Shape ``(B,)`` or ``(B, L)``."""
    attention_mask: Tensor | None = None
    """Shape ``(B, L)``."""
    loss: Tensor | None = None
    """The model's own mean loss."""
    causal: bool = False
    """Whether a position predicts the label of the next one."""


class TaskModel(ABC):
    """One task's way through the shared backbone."""

    @abstractmethod
    def __call__(self, batch: Any) -> Outputs:
        """What the model says of a batch."""

    @property
    @abstractmethod
    def head(self) -> nn.Module | None:
        """What belongs to the task alone and moves to its device; None if there is nothing."""


class EncoderTask(TaskModel):
    """Texts classified by a head over an encoder."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        self._encoder, self._head = encoder, head.requires_grad_(False)  # noqa: FBT003

    def __call__(self, batch: Any) -> Outputs:
        """Logits of shape ``(B, C)``."""
        return Outputs(self._head(embed(self._encoder, batch)), batch.get("labels"))

    @property
    def head(self) -> nn.Module:
        """The head."""
        return self._head


class ModuleTask(TaskModel):
    """A task that a LightningModule computes.

    The module is called with the batch. A tensor that it returns holds the logits; anything else may have ``logits``
    and ``loss``. A module without a ``forward`` gives the loss of its ``training_step``.
    """

    def __init__(self, module: LightningModule, backbone: nn.Module) -> None:
        self._module = module.requires_grad_(False).eval()  # noqa: FBT003
        self._has_forward = type(module).forward is not LightningModule.forward
        self._causal = is_causal(backbone)

    def __call__(self, batch: Any) -> Outputs:
        """Whatever of logits and loss the module gives."""
        labels, mask = _of(batch, "labels"), _of(batch, "attention_mask")
        if not self._has_forward:
            return Outputs(labels=labels, loss=_loss(self._module.training_step(batch, 0)))
        found = self._module(batch)
        if isinstance(found, Tensor):
            return Outputs(found, labels, mask, None, self._causal)
        return Outputs(_of(found, "logits"), labels, mask, _of(found, "loss"), self._causal)

    @property
    def head(self) -> nn.Module:
        """The module, whose parts beside the backbone belong to the task."""
        return self._module


def task_models(tasks: Sequence[Task], base: str) -> tuple[nn.Module, dict[str, TaskModel]]:
    """The backbone, and every task's way through it.

    Args:
        tasks: What to learn on; all with a module of their own, or none.
        base: The base model, which texts without a module are encoded by.

    Raises:
        ConfigError: If some tasks have a module and others have none.
        MergeError: If the modules' backbones differ.
    """
    with_module = [task for task in tasks if task.model is not None]
    if not with_module:
        directory = model_dir(base)
        encoder = AutoModel.from_pretrained(directory).eval()
        tokenizer = read_tokenizer(directory)
        return encoder, {task.name: EncoderTask(encoder, make_head(task, encoder, tokenizer)) for task in tasks}
    if len(with_module) < len(tasks):
        lacking = next(task.name for task in tasks if task.model is None)
        raise ConfigError(f"Task {lacking!r} has no `model`, and others have one; give it one.")
    return _shared_modules(tasks)


def _shared_modules(tasks: Sequence[Task]) -> tuple[nn.Module, dict[str, TaskModel]]:
    """One backbone in the place of every module's own, which must be alike."""
    shared: nn.Module | None = None
    found: dict[str, TaskModel] = {}
    for task in tasks:
        module = task.model
        assert module is not None
        path = backbone_path(module, task.backbone, task.name)
        own = module.get_submodule(path)
        if shared is None:
            shared = own
        elif own is not shared:
            _check_alike(shared, own, tasks[0].name, task.name)
            if not path:
                raise ConfigError(
                    f"Task {task.name!r}: the whole module is its backbone; name the part that all tasks share as "
                    "`backbone`, or give all tasks one module."
                )
            module.set_submodule(path, shared)
        found[task.name] = ModuleTask(module, shared)
    assert shared is not None
    return shared, found


def _check_alike(first: nn.Module, second: nn.Module, one: str, other: str) -> None:
    """Refuse backbones that hold other weights."""
    ours, theirs = first.state_dict(), second.state_dict()
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            raise MergeError(f"Tasks {one!r} and {other!r} have backbones of different architecture, first {name!r}.")
        if not ours[name].equal(theirs[name]):
            raise MergeError(f"Tasks {one!r} and {other!r} have backbones with different weights, first {name!r}.")


def is_causal(backbone: nn.Module) -> bool:
    """Whether a transformers model predicts each position's next token."""
    generates = getattr(backbone, "can_generate", None)
    decoder_only = not getattr(getattr(backbone, "config", None), "is_encoder_decoder", False)
    return bool(decoder_only and generates is not None and generates())


def _of(given: Any, name: str) -> Any:
    return given.get(name) if isinstance(given, Mapping) else getattr(given, name, None)


def _loss(step: Any) -> Tensor | None:
    return step if isinstance(step, Tensor) else _of(step, "loss")
