"""The rest of a run's state: optimizers by parameter name, schedules, and random numbers."""

import json
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_wsl.models.universal.layout import Layout
from lit_wsl.state.formats import strip_wrappers

_PER_GROUP = ("base_lrs", "_last_lr", "lr_lambdas", "min_lrs", "_schedulers")
"""What a schedule keeps for each parameter group, or for each schedule inside it."""


@dataclass(frozen=True)
class ParameterNames:
    """Names and shapes of an optimizer's parameters, one list a group."""

    names: list[list[str]]
    shapes: list[list[list[int]]]
    options: list[dict[str, Any]]
    """Learning rate and other numbers of each group."""

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
    )


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
    """Whether there are as many parameter groups as before, with known learning rates."""

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
    found: dict[str, tuple[int, tuple[int, ...]]]
    if theirs is not None:
        found = {name: (i, shape) for i, (name, shape) in zip(numbers, theirs.flat(), strict=False)}
    else:
        found = _by_position(saved, own, parameters, ours, numbers)
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
    groups, before = own["param_groups"], saved["param_groups"]
    same_groups = len(groups) == len(before) and all("lr" in group for group in before)
    if kept and same_groups:
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


def _by_position(
    saved: Mapping[str, Any],
    own: Mapping[str, Any],
    parameters: Sequence[Tensor],
    ours: ParameterNames,
    numbers: Sequence[int],
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Parameters by their place, if the groups have the same sizes and every state has its parameter's shape."""
    sizes = [[len(group["params"]) for group in state["param_groups"]] for state in (saved, own)]
    if sizes[0] != sizes[1]:
        return {}
    pairs = zip(numbers, parameters, strict=True)
    if not all(_fits(saved["state"].get(number, {}), (), tuple(p.shape)) for number, p in pairs):
        return {}
    return {name: (number, shape) for number, (name, shape) in zip(numbers, ours.flat(), strict=True)}


def continue_schedule(scheduler: Any, saved: Mapping[str, Any]) -> None:
    """Carry a schedule's progress over to an optimizer whose parameter groups differ, in place.

    The schedule keeps its own base learning rates; each group goes on at the same share of its base rate as the
    first group of the saved run had.
    """
    for inner, state in zip(getattr(scheduler, "_schedulers", ()), saved.get("_schedulers", ()), strict=False):
        continue_schedule(inner, state)
    scheduler.__dict__.update({key: value for key, value in saved.items() if key not in _PER_GROUP})
    base, last = saved.get("base_lrs"), saved.get("_last_lr")
    if not (base and last and base[0]) or not hasattr(scheduler, "base_lrs"):
        return
    share = last[0] / base[0]
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["lr"] = rate * share
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


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
    return f"Optimizer: restored {len(kept)} of {total} parameters" + (f" ({names})." if kept else ".")
