"""Diagonal Fisher information: squared gradients of the loss, one example at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.tensors.objectives import IGNORED
from lit_wsl.training.causal_lm import CausalLMModule
from lit_wsl.training.plain_parameters import PlainParameter

Labels = Literal["data", "model"]

_IMAGES = "batch_num_images"
_OF_IMAGES = ("pixel_values", "image_sizes")
FEW_CLASSES = 10
"""Up to so many classes all are taken, each by its probability; of more one is drawn."""


class FisherInformation:
    r"""The mean over examples of the squared gradient of each example's training loss, in each entry.

    The loss is that of ``training_step`` on the example alone, so a mean over tokens stays a mean. An adapter adds to
    the same product as the weight beneath it, so the gradient of that weight is the gradient of the folded one.

    Variants: ``labels: data`` is the empirical Fisher information, at the labels of the data. ``labels: model`` is the
    Fisher information of the paper, the expectation over labels by the model's own probabilities: exact for a
    classifier of up to ten classes, as in the authors' code, else for one label (for a language model, one at each
    position) drawn per example.

    Args:
        module: Has a ``training_step`` that returns the loss of a batch and does no steps of its own.
        parameters: What to gather it for.
        labels: The variant.

    Raises:
        ConfigError: If the module optimises by itself.
        CheckpointError: If a parameter is under DoRA, whose gradient is not that of the folded weight.

    Reference:
        https://arxiv.org/abs/2111.09832, section 3.
    """

    def __init__(self, module: LightningModule, parameters: Sequence[PlainParameter], labels: Labels = "data") -> None:
        if not module.automatic_optimization:
            raise ConfigError(
                f"{type(module).__name__} optimises by itself, so its `training_step` gives no loss; gather `gram`."
            )
        scaled = next((p.name for p in parameters if p.adapted is not None and p.adapted.magnitude), None)
        if scaled is not None:
            raise CheckpointError(
                f"{scaled!r} is under DoRA, whose gradient is not that of the folded weight; "
                "gather on the folded model (`lit-wsl export CKPT --format hf`)."
            )
        self._module, self._labels = module, labels
        self._tensors = [p.tensor for p in parameters]
        self._sums = {p.name: torch.zeros_like(p.tensor, dtype=torch.float32) for p in parameters}
        self.examples = 0

    def add(self, batch: Any) -> None:
        """Take in every example of a batch; gradients are taken even where the caller switched them off.

        Raises:
            ConfigError: If the batch cannot be split into examples, or its labels cannot be replaced.
        """
        with torch.inference_mode(mode=False), torch.enable_grad(), _only(self._module, self._tensors):
            for example in examples_of(batch):
                for share, labelled in self._labelled(example):
                    self._add(self._loss(labelled), share)
                self.examples += 1

    def result(self, reduce: Callable[[Tensor], Tensor], examples: int) -> dict[str, Tensor]:
        """The information of every parameter, float32.

        Args:
            reduce: Sums a tensor over all processes.
            examples: Number of examples of all processes.
        """
        return {name: reduce(total) / max(1, examples) for name, total in self._sums.items()}

    def _labelled(self, example: Any) -> Iterator[tuple[float, Any]]:
        return iter([(1.0, example)]) if self._labels == "data" else model_labels(self._module, example)

    def _loss(self, example: Any) -> Tensor:
        step: Any = self._module.training_step
        with_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
        output = step(example, 0) if with_index else step(example)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            raise ConfigError(f"`training_step` of {type(self._module).__name__} returns no loss; gather `gram`.")
        return loss

    def _add(self, loss: Tensor, share: float) -> None:
        gradients = torch.autograd.grad(loss, self._tensors, allow_unused=True)
        for total, gradient in zip(self._sums.values(), gradients, strict=True):
            if gradient is not None:
                wide = gradient.float()
                total.addcmul_(wide, wide, value=share)


def examples_of(batch: Any) -> list[Any]:
    """Batches of one example each, of normal tensors.

    Raises:
        ConfigError: If the tensors of the batch have different first dimensions.
    """
    if isinstance(batch, Mapping) and _IMAGES in batch:
        return _examples_with_images(batch)
    tensors: list[Tensor] = []
    apply_to_collection(batch, Tensor, tensors.append)
    sizes = {len(tensor) for tensor in tensors if tensor.ndim}
    if len(sizes) != 1:
        raise ConfigError(f"A batch must hold tensors of one first dimension to be split, got {sorted(sizes)}.")

    def one(tensor: Tensor, number: int) -> Tensor:
        return (tensor[number : number + 1] if tensor.ndim else tensor).clone()  # views of inference tensors are such

    return [apply_to_collection(batch, Tensor, one, number) for number in range(sizes.pop())]


def _examples_with_images(batch: Mapping[str, Any]) -> list[Any]:
    """Batches of one row each, with the images that the row has: their tensors hold those of all rows in turn."""
    counts = batch[_IMAGES].tolist()
    starts = [sum(counts[:row]) for row in range(len(counts))]

    def one(name: str, tensor: Tensor, row: int) -> Tensor:
        first, many = (starts[row], counts[row]) if name in _OF_IMAGES else (row, 1)
        return tensor[first : first + many].clone()

    return [
        {name: one(name, tensor, row) for name, tensor in batch.items() if counts[row] or name not in _OF_IMAGES}
        for row in range(len(counts))
    ]


def model_labels(module: LightningModule, example: Any) -> Iterator[tuple[float, Any]]:
    """An example under labels by the model's own probabilities: (share, example) pairs whose shares sum to one.

    Raises:
        ConfigError: If the module is no classifier of batches with ``labels``, and no ``CausalLMModule``.
    """
    if not isinstance(example, Mapping) or "labels" not in example:
        raise ConfigError("`labels: model` needs batches that are mappings with `labels`; use `labels: data`.")
    labels = example["labels"]
    with torch.no_grad():
        shares = module(example).float().softmax(dim=-1)
    if isinstance(module, CausalLMModule):
        drawn = torch.multinomial(shares[0, :-1], 1).T
        targets = labels[:, 1:]
        yield 1.0, {**example, "labels": torch.cat([labels[:, :1], drawn.where(targets != IGNORED, targets)], dim=1)}
    elif shares.shape[:-1] != labels.shape or labels.ndim != 1:
        raise ConfigError(
            f"`labels: model` needs logits of shape (b, classes), got {tuple(shares.shape)} for labels "
            f"{tuple(labels.shape)}; use `labels: data`."
        )
    elif shares.shape[1] <= FEW_CLASSES:
        for label, share in enumerate(shares[0].tolist()):
            yield share, {**example, "labels": torch.full_like(labels, label)}
    else:
        yield 1.0, {**example, "labels": torch.multinomial(shares, 1)[:, 0].to(labels.dtype)}


@contextmanager
def _only(module: LightningModule, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let these tensors alone require gradients, and nothing be logged."""
    wanted = {id(tensor) for tensor in tensors}
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    quiet = {"log": _nothing, "log_dict": _nothing}
    kept = {name: vars(module)[name] for name in quiet if name in vars(module)}
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in wanted)
        vars(module).update(quiet)
        yield
    finally:
        for name in quiet:
            del vars(module)[name]
        vars(module).update(kept)
        for parameter, trains in before:
            parameter.requires_grad_(trains)


def _nothing(*_: Any, **__: Any) -> None:
    """Stands for ``log`` and ``log_dict``."""
