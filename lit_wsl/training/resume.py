"""The rest of a run's state: optimizers by parameter name, schedules, and random numbers."""

import json
import random
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedules

from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.layout import Layout
from lit_wsl.state.formats import strip_wrappers

_PROGRESS = ("last_epoch", "_step_count", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i")
"""What a schedule counts, as opposed to its settings."""
_CLOSED = (schedules.LambdaLR, schedules.OneCycleLR, schedules.CosineAnnealingWarmRestarts, schedules.CyclicLR)
"""Schedules whose ``get_lr`` looks at the progress alone."""
_WHOLE = (torch.optim.LBFGS,)
"""Optimizers that keep one history for all parameters."""


@dataclass(frozen=True)
class ParameterNames:
    """Names and shapes of an optimizer's parameters, one list a group."""

    names: list[list[str]]
    shapes: list[list[list[int]]]
    options: list[dict[str, Any]]
    """Learning rate and other numbers of each group."""
    kind: str = ""
    """Class of the optimizer, if known."""
    rate: float = 0.0
    """Learning rate that the optimizer was made with; 0 if unknown."""

    def flat(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of every parameter, in the optimizer's order."""
        pairs = zip(self.names, self.shapes, strict=True)
        return [(n, tuple(s)) for names, shapes in pairs for n, s in zip(names, shapes, strict=True)]


def parameter_names(module: nn.Module, layout: Layout, optimizer: Optimizer) -> ParameterNames:
    """Names of an optimizer's parameters: plain ones, and raw ones for those that only an adapter has."""
    known: dict[int, str] = {}
    for path, parameter in module.named_parameters():
        raw = strip_wrappers(path)
        known[id(parameter)] = layout.plain(raw) or raw
    groups = [group["params"] for group in optimizer.param_groups]
    return ParameterNames(
        [[known.get(id(p), "") for p in group] for group in groups],
        [[list(p.shape) for p in group] for group in groups],
        [_numbers(group) for group in optimizer.param_groups],
        type(optimizer).__name__,
        float(optimizer.defaults.get("lr") or 0.0),
    )


def names_in_sidecar(meta: Mapping[str, Any]) -> list[ParameterNames]:
    """Names of the parameters of every optimizer, as the side-car of a checkpoint keeps them.

    Raises:
        CheckpointError: If it is damaged.
    """
    try:
        return [ParameterNames(**names) for names in json.loads(meta.get("optimizers", "[]"))]
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"The checkpoint's side-car is damaged ({error}); use an earlier one.") from error


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a parameter group that JSON can hold."""
    fixed = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    return {key: value for key, value in fixed.items() if isinstance(value, float | int | str | tuple | None)}


def names_in_state(state: Mapping[str, Any], layout: Layout) -> ParameterNames | None:
    """Names that an optimizer built from named parameters leaves in its own state; None without them."""
    groups = [group.get("param_names") for group in state["param_groups"]]
    if not all(groups):
        return None
    raw = [[strip_wrappers(name) for name in group] for group in groups if group]
    names = [[layout.plain(name) or name for name in group] for group in raw]
    return ParameterNames(names, [[[] for _ in group] for group in names], [{} for _ in names])


@dataclass(frozen=True)
class MatchedState:
    """An optimizer's state dict with what fits of a saved one."""

    state: dict[str, Any]
    kept: list[str]
    """Names of the parameters whose state was taken over."""
    total: int
    same_groups: bool
    """Whether all of it goes on, in the same parameter groups with known learning rates."""

    @property
    def complete(self) -> bool:
        """Whether every parameter goes on with its saved state."""
        return len(self.kept) == self.total


def match_state(
    optimizer: Optimizer,
    saved: Mapping[str, Any],
    theirs: ParameterNames | None,
    ours: ParameterNames,
    anew: Collection[str] = (),
    place: Callable[[Tensor, Tensor], Tensor] = lambda value, parameter: value,
) -> MatchedState:
    """State dict for ``optimizer``: a parameter takes over its saved state if name and shape are the same.

    Args:
        optimizer: The optimizer that will load the result.
        saved: State dict of an earlier one.
        theirs: Names in ``saved``; without them parameters are matched by position, all of them or none.
        ours: Names in ``optimizer``.
        anew: Names of parameters with fresh values, to which an old state does not belong.
        place: Puts a saved tensor where the state of a parameter belongs, such as onto the shards of a mesh.
    """
    own = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    indices = [i for group in own["param_groups"] for i in group["params"]]
    numbers = [i for group in saved["param_groups"] for i in group["params"]]
    found = _places(saved, own, parameters, theirs, ours, numbers)
    state, kept = dict(own["state"]), []
    for index, parameter, (name, shape) in zip(indices, parameters, ours.flat(), strict=True):
        if not name or name not in found or name in anew:
            continue
        number, saved_shape = found[name]
        entry = saved["state"].get(number, {})
        if not _fits(entry, saved_shape, shape):
            continue
        kept.append(name)
        if entry:
            placed = {k: place(v, parameter) if isinstance(v, Tensor) else v for k, v in entry.items()}
            state[index] = placed
    if isinstance(optimizer, _WHOLE) and len(kept) < len(parameters):
        state, kept = dict(own["state"]), []
    groups, before = own["param_groups"], saved["param_groups"]
    names_agree = theirs is None or theirs.names == ours.names
    same_groups = len(kept) == len(parameters) and names_agree and all("lr" in group for group in before)
    if same_groups:
        groups = _with_rates(groups, before)
    return MatchedState({**own, "state": state, "param_groups": groups}, kept, len(parameters), same_groups)


def _with_rates(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups with the learning rates, and whatever else, of the saved run."""
    fixed = ("params", "param_names")
    pairs = zip(ours, theirs, strict=True)
    return [{**mine, **{key: value for key, value in old.items() if key not in fixed}} for mine, old in pairs]


def _fits(entry: Mapping[str, Any], saved_shape: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if saved_shape:
        return saved_shape == shape
    return all(v.shape == shape for v in entry.values() if isinstance(v, Tensor) and v.ndim > 0)


_Places = dict[str, tuple[int, tuple[int, ...]]]


def _places(
    saved: Mapping[str, Any],
    own: Mapping[str, Any],
    parameters: Sequence[Tensor],
    theirs: ParameterNames | None,
    ours: ParameterNames,
    numbers: Sequence[int],
) -> _Places:
    """Number and shape in ``saved`` of every parameter by name; none when another kind of optimizer saved it."""
    if theirs is None:
        return _by_position(saved, own, parameters, ours, numbers)
    if theirs.kind and theirs.kind != ours.kind:
        return {}
    return {name: (i, shape) for i, (name, shape) in zip(numbers, theirs.flat(), strict=False)}


def _by_position(
    saved: Mapping[str, Any],
    own: Mapping[str, Any],
    parameters: Sequence[Tensor],
    ours: ParameterNames,
    numbers: Sequence[int],
) -> _Places:
    """Parameters by their place, if the groups have the same sizes and every state has its parameter's shape."""
    sizes = [[len(group["params"]) for group in state["param_groups"]] for state in (saved, own)]
    if sizes[0] != sizes[1]:
        return {}
    pairs = zip(numbers, parameters, strict=True)
    if not all(_fits(saved["state"].get(number, {}), (), tuple(p.shape)) for number, p in pairs):
        return {}
    return {name: (number, shape) for number, (name, shape) in zip(numbers, ours.flat(), strict=True)}


def continue_schedule(scheduler: Any, saved: Mapping[str, Any], rate: float = 0.0) -> None:
    """Carry a schedule's progress over to a fresh optimizer, in place.

    The schedule keeps its own settings and base learning rates, and takes over how far the saved one was. Where the
    rate is a function of the progress it is that of these settings; elsewhere each group goes on at the same share of
    its configured rate as the first group of the saved run had.

    Args:
        scheduler: A schedule of the configuration, not yet stepped.
        saved: State of the schedule that goes on.
        rate: Learning rate that the saved optimizer was made with, for schedules that do not say it.
    """
    _copy_progress(scheduler, saved)
    groups = scheduler.optimizer.param_groups
    rates = _rates_by_progress(scheduler)
    if rates is None:
        share = _share(saved, rate)
        rates = [group.get("initial_lr", group["lr"]) * share for group in groups]
    for group, value in zip(groups, rates, strict=True):
        group["lr"] = value
    scheduler._last_lr = [group["lr"] for group in groups]


def _copy_progress(scheduler: Any, saved: Mapping[str, Any]) -> None:
    scheduler.__dict__.update({key: saved[key] for key in _PROGRESS if key in saved and hasattr(scheduler, key)})
    for inner, state in zip(getattr(scheduler, "_schedulers", ()), saved.get("_schedulers", ()), strict=False):
        _copy_progress(inner, state)


def _rates_by_progress(scheduler: Any) -> list[float] | None:
    """What the settings of a schedule give for its progress; None if that depends on the way there."""
    if isinstance(scheduler, schedules.SequentialLR):
        return _rates_by_progress(scheduler._schedulers[bisect_right(scheduler._milestones, scheduler.last_epoch)])
    if hasattr(scheduler, "_get_closed_form_lr"):
        return [float(rate) for rate in scheduler._get_closed_form_lr()]
    if isinstance(scheduler, _CLOSED):
        with schedules._enable_get_lr_call(scheduler):
            return [float(rate) for rate in scheduler.get_lr()]
    return None


def _share(saved: Mapping[str, Any], rate: float) -> float:
    """The saved run's learning rate over its configured one, for the first group."""
    first = saved
    while not first.get("base_lrs") and first.get("_schedulers"):
        first = first["_schedulers"][0]
    base = (first.get("base_lrs") or [rate])[0]
    last = saved.get("_last_lr")
    return float(last[0] / base) if base and last else 1.0


def random_state() -> dict[str, Any]:
    """State of this process's random generators, as tensors and text."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 -- the generator that other libraries draw from
    state = {
        "torch": torch.get_rng_state(),
        "python": json.dumps(random.getstate()),
        "numpy": json.dumps([numpy_state[0], np.asarray(numpy_state[1]).tolist(), *numpy_state[2:]]),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the random generators of this process into an earlier state."""
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = json.loads(state["python"])
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = json.loads(state["numpy"])
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def gather_random_states() -> list[dict[str, Any]]:
    """The random state of every process, in the order of their ranks."""
    own = random_state()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, own)
    return states


def describe(kept: Collection[str], total: int) -> str:
    """One line on what an optimizer goes on with."""
    names = ", ".join(list(kept)[:20]) + (" …" if len(kept) > 20 else "")
    listed = f" ({names})." if 0 < len(kept) < total else "."
    return f"Optimizer: restored {len(kept)} of {total} parameters{listed}"
