"""Proof that adapters belong to a base: what stands under them is what the base's files hold."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_wsl.errors import CheckpointError
from lit_wsl.models.adapter_source import WHOLE, AdapterSource, base_tensors
from lit_wsl.models.architecture import current_names, parameter_shapes, tied_names
from lit_wsl.models.universal.foreign import align
from lit_wsl.state.reader import StateReader


def check_base(source: AdapterSource, base: StateReader, base_name: str) -> None:
    """Refuse a base on which the adapters would give another function.

    Raises:
        CheckpointError: If a tensor of the base is not the one that the run had under its adapters.
    """
    known = _names_in_base(source.model, base)
    differing, compared = [], 0
    for name, tensor, slack in base_tensors(source):
        if name not in known and any(name.startswith(f"{copy}.") for copy in source.copies):
            continue  # a new head, which the adapter holds whole
        compared += 1
        theirs = base.read(known[name]) if name in known else None
        if theirs is None or not _fits(tensor, theirs, slack):
            differing.append(name)
    if differing:
        raise CheckpointError(
            f"{source.where}: its adapters do not belong to {base_name}: {len(differing)} of {compared} base tensors "
            f"differ, first {differing[0]!r} (resumed from another rank, PiSSA or OLoRA, or another base); "
            f"{WHOLE} and use that as the base."
        )


def _names_in_base(model: PreTrainedModel, base: StateReader) -> dict[str, str]:
    """Names of the model to those of the base's files, which may be of a class with another prefix."""
    names = base.keys()
    current = dict(zip(current_names(names, model), names, strict=True))
    shapes = {name: torch.empty(base.info(theirs).shape, device="meta") for name, theirs in current.items()}
    known = dict(zip(align(shapes, parameter_shapes(model)), current.values(), strict=True))
    for duplicate, original in tied_names(model).items():  # a file may hold either
        if duplicate in known:
            known.setdefault(original, known[duplicate])
    return known


def _fits(ours: Tensor, theirs: Tensor, slack: Tensor | None) -> bool:
    """Whether the base's tensor is the one that the run had, in whatever dtype it loaded it."""
    if ours.shape != theirs.shape:
        return False
    if slack is None:
        return torch.equal(ours, theirs.to(ours.dtype))
    rounded = (theirs, *(theirs.to(dtype) for dtype in (torch.bfloat16, torch.float16) if theirs.itemsize > 2))
    return any(bool(((ours.double() - candidate.double()).abs() <= slack).all()) for candidate in rounded)
