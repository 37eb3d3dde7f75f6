"""Proof that adapters belong to a base: what stands under them is what the base's files hold."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_wsl.errors import CheckpointError
from lit_wsl.models.architecture import converted_names, current_names, possible_ties, tied_names, unsharded_class
from lit_wsl.models.sharded import whole
from lit_wsl.models.universal.api import find_layout
from lit_wsl.models.universal.foreign import align
from lit_wsl.models.universal.layout import Layout
from lit_wsl.state.formats import strip_wrappers
from lit_wsl.state.locate import model_path
from lit_wsl.state.reader import StateReader, open_state

_NARROW = (torch.bfloat16, torch.float16)
_REMEDY = "keep a checkpoint, run `lit-wsl export CKPT --format hf` and use that as the base"
Shapes = Mapping[str, tuple[int, ...]]


class OtherBaseError(CheckpointError):
    """Adapters stand on other weights than those of the base that they are said to belong to."""


@dataclass(frozen=True)
class BaseTensor:
    """A tensor as it stands under the adapters of a run."""

    name: str
    """In the plain model."""
    value: Tensor
    slack: Callable[[], Tensor | float] | None = None
    """How far rounding may have moved its entries; None if they are exact."""
    widened: bool = False
    """It may have more bits than the run had, since merged weights are stored in float32."""
    copied: bool = False
    """The adapter holds this layer whole, so the base may lack it."""


def rounding(value: Tensor) -> float:
    """How far an adapted weight may be from its base after a run went on from a checkpoint with a side-car of factors.

    It was then taken out of the merged weight again, which in float32 costs some units in the last place. A weight
    of 16 bits comes back exactly, since merged weights are stored in float32.
    """
    if value.itemsize < 4 or not value.numel():
        return 0.0
    return 4 * torch.finfo(value.dtype).eps * value.abs().max().item()


def check_base(
    tensors: Iterable[BaseTensor], model: nn.Module | None, shapes: Shapes, base: str, *, where: str, remedy: str
) -> StateReader:
    """Refuse a base on which adapters would give another function.

    Args:
        tensors: What stood under the adapters; all of them are looked at, since those of a sharded model are gathered.
        model: The plain architecture, which knows the names in older files; None if it has none of transformers.
        shapes: Names and shapes of the plain model.
        base: Where the base is.
        where: Whose adapters they are, for the message.
        remedy: What to do, for the message.

    Returns:
        The base.

    Raises:
        OtherBaseError: If a tensor of the base is not the one that the run had.
        CheckpointError: If there is no base.
    """
    reader = open_state(model_path(base))
    found = {name: torch.empty(reader.info(name).shape, device="meta") for name in reader.keys()}
    known = names_in_files(found, model, shapes)
    made = converted_names(shapes, model) if isinstance(model, PreTrainedModel) else set()
    differing, compared = [], 0
    for tensor in tensors:
        if tensor.name not in known and (tensor.copied or tensor.name in made):
            continue  # not of the base, or computed from tensors of other names when it is loaded
        compared += 1
        if tensor.name not in known or not _fits(tensor, reader.read(known[tensor.name])):
            differing.append(tensor.name)
    if differing:
        raise OtherBaseError(
            f"{where} do not belong to {base}: {len(differing)} of {compared} base tensors differ, "
            f"first {differing[0]!r} (resumed from another rank or from full fine-tuning, PiSSA or OLoRA, or another "
            f"base); {remedy}."
        )
    return reader


def check_live_base(model: nn.Module, base: str, unread: tuple[str, ...] = ()) -> None:
    """Refuse to name ``base`` as that of a model's adapters if other weights stand under them.

    Every process must call it where the weights are sharded, and every one comes to the same result.

    Args:
        model: A model with adapters.
        base: Where its base is.
        unread: Beginnings of the names of layers that no output depends on.

    Raises:
        OtherBaseError: If a tensor of the base is not the one under the adapters.
        CheckpointError: If there is no base.
    """
    plain, layout = _plain_architecture(model), find_layout(model)
    duplicates = tied_names(plain) if plain is not None else {}
    state = {n: t for n, t in _under_adapters(model, layout) if n not in duplicates and not n.startswith(unread)}
    adapted = {layout.plain(layer.weight) for layer in layout if layer.parts}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    tensors = (_live(name, whole(tensor), adapted=name in adapted) for name, tensor in state.items())
    check_base(tensors, plain, shapes, base, where="The adapters", remedy=_REMEDY)


def trained_base(model: nn.Module) -> list[str]:
    """Names of the tensors under a model's adapters that train themselves, so that they will not stay the base's."""
    layout = find_layout(model)
    names = [strip_wrappers(name) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [plain for name in names if (plain := layout.plain(name)) is not None]


def _live(name: str, value: Tensor, *, adapted: bool) -> BaseTensor:
    return BaseTensor(name, value, (lambda: rounding(value)) if adapted else None)


def _under_adapters(model: nn.Module, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Plain names and tensors of the model without what its adapters add."""
    for key, tensor in model.state_dict().items():
        name = layout.plain(strip_wrappers(key))
        if name is not None and isinstance(tensor, Tensor):
            yield name, tensor


def _plain_architecture(model: nn.Module) -> PreTrainedModel | None:
    """The model without weights and adapters; None for one that is not of transformers.

    Its class tells which names files have: that of a sharded model is not one of transformers' own.
    """
    if not isinstance(model, PreTrainedModel):
        return None
    config = type(model.config).from_dict(model.config.to_diff_dict())
    try:
        with torch.device("meta"):
            made: PreTrainedModel = unsharded_class(model)(config)
    except TypeError:  # a user's class with arguments of its own
        return model
    return made


def names_in_files(stored: Mapping[str, Tensor], model: nn.Module | None, shapes: Shapes) -> dict[str, str]:
    """Names of the model to those of its files, which may be of a class with another prefix.

    Args:
        stored: What the files hold, without entries.
        model: The plain architecture, which knows the names in older files.
        shapes: Names and shapes of the plain model.
    """
    names = list(stored)
    renamed = current_names(names, model) if isinstance(model, PreTrainedModel) else names
    current = dict(zip(renamed, names, strict=True))
    known = dict(
        zip(align({name: stored[old] for name, old in current.items()}, shapes), current.values(), strict=True)
    )
    ties = possible_ties(model) if isinstance(model, PreTrainedModel) else {}
    for one, other in [*ties.items(), *((b, a) for a, b in ties.items())]:  # a file may hold either
        if one in known:
            known.setdefault(other, known[one])
    return known


@torch.no_grad()
def _fits(tensor: BaseTensor, theirs: Tensor) -> bool:
    """Whether the base's tensor is the one that the run had, in whatever dtype it loaded it."""
    ours = tensor.value
    if ours.shape != theirs.shape:
        return False
    if torch.equal(ours, theirs.to(ours.dtype)):
        return True
    slack = tensor.slack() if tensor.slack is not None else 0.0
    narrow = [theirs.to(dtype) for dtype in _NARROW if theirs.itemsize > 2] if tensor.widened else []
    candidates = (theirs if tensor.widened else theirs.to(ours.dtype), *narrow)
    return any(bool(((ours.double() - candidate.double()).abs() <= slack).all()) for candidate in candidates)
