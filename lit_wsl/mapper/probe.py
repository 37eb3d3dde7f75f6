"""Run two models with the same random weights and see where their outputs part."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from math import inf, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lit_wsl.errors import ConfigError
from lit_wsl.mapper.execution import call, evaluating
from lit_wsl.mapper.inventory import STATISTICS
from lit_wsl.mapper.result import Match
from lit_wsl.state.remap import WeightMap

Recorded = dict[str, list[Tensor]]


class _EnoughError(Exception):
    """Ends a forward pass whose rest does not matter."""


@dataclass(frozen=True)
class Run:
    """How far the target's outputs agree with the source's."""

    divergence: str | None
    """Path of the first module whose output differs and that nothing behind it makes good; None where none does."""
    place: float
    """Place of the divergence in the order of execution; infinite where there is none."""
    error: float
    """Relative error of the output; where none could be compared, of the last module that could."""
    is_complete: bool
    """Whether the models' own outputs were compared, or else modules that hold every mapped tensor."""


@dataclass(frozen=True)
class _Compared:
    """A module of the target whose output was compared."""

    path: str
    error: float
    takes_values: bool
    """Whether it was given floating-point values, so that it depends on what ran before it."""


class Probe:
    """Two models, one input, one set of random weights: runs the target with them as a map lays them.

    Args:
        modules: Source and target, with values.
        names: Source tensors that are mapped; they get random values, all others keep their own.
        dummy_input: Input of both, or a mapping with ``source`` and ``target``.
        tolerance: Relative error up to which outputs agree.
        output: What to compare of what a model returns; all floating-point tensors when None.

    Raises:
        ConfigError: If a model has no values, or does not run on the input.
    """

    def __init__(
        self,
        modules: tuple[nn.Module, nn.Module],
        names: Iterable[str],
        dummy_input: Any,
        tolerance: float,
        output: Callable[[Any], Any] | None = None,
    ) -> None:
        source, target = modules
        for side, module in (("source", source), ("target", target)):
            if any(tensor.is_meta for _, tensor in _named(module)):
                raise ConfigError(f"The {side} model is on the meta device and cannot run; build it with values.")
        self._source, self._target = source, target
        self._input, self._tolerance = dummy_input, tolerance
        self._part = output or (lambda returned: returned)
        self._random = random_state(source, frozenset(names))
        self._own = dict(_named(target))
        self._recorded: Recorded = {}
        with evaluating(source), _hooks(source, self._record):
            self._output = _tensors(self._run(source, self._random, "source"))

    def run(self, matches: Sequence[Match], until: str | None = None) -> Run:
        """Run the target with the source's random weights in its own places.

        Args:
            matches: The mapping.
            until: Path of a target module behind which nothing matters; the whole model when None.
        """
        watch = _Watch(self._recorded, _counterparts(matches), until)
        with evaluating(self._target), _hooks(self._target, watch):
            try:
                output = _tensors(self._run(self._target, self._mapped(matches), "target"))
            except _EnoughError:
                output = []
        error = _output_error(self._output, output)
        if error is not None and error <= self._tolerance:
            return Run(None, inf, error, is_complete=True)
        place = _first_divergence(watch.compared, self._tolerance)
        last = watch.compared[-1].error if watch.compared else inf
        path = None if place is None else watch.compared[place].path
        is_complete = error is not None or (place is None and _is_covered(matches, watch.compared))
        return Run(path, inf if place is None else place, last if error is None else error, is_complete)

    def _run(self, module: nn.Module, state: Mapping[str, Tensor], side: str) -> Any:
        with torch.no_grad():
            run = partial(_functional, module, dict(state))
            return self._part(call(run, self._input, side))

    def _record(self, name: str, _: Any, output: Tensor) -> None:
        self._recorded.setdefault(name, []).append(output)

    def _mapped(self, matches: Sequence[Match]) -> dict[str, Tensor]:
        """The target's state: what the map makes, statistics beside mapped weights, and its own values for the rest."""
        made = WeightMap(tuple(match.entry for match in matches)).apply(self._random)
        for match in matches:
            made.update(self._statistics(match))
        return {name: tensor.to(self._own[name].device) for name, tensor in made.items() if name in self._own}

    def _statistics(self, match: Match) -> Iterator[tuple[str, Tensor]]:
        """Statistics of a normalization whose weight is mapped, so that modes without buffers can be proven."""
        owner, new = (names[0].rpartition(".")[0] for names in (match.entry.sources, match.entry.targets))
        for statistic in STATISTICS:
            old, name = f"{owner}.{statistic}", f"{new}.{statistic}"
            if old in self._random and name in self._own and self._random[old].shape == self._own[name].shape:
                yield name, self._random[old]


def _functional(module: nn.Module, state: dict[str, Tensor], *args: Any, **options: Any) -> Any:
    return functional_call(module, state, args, options)


class _Watch:
    """Compares outputs of the target's modules as they come with the recorded ones of their counterparts."""

    def __init__(self, recorded: Recorded, counterparts: Mapping[str, list[str]], until: str | None) -> None:
        self._recorded, self._counterparts, self._until = recorded, counterparts, until
        self._seen: set[str] = set()
        self.compared: list[_Compared] = []

    def __call__(self, path: str, given: Any, output: Tensor) -> None:
        if path in self._seen:
            return
        self._seen.add(path)
        others = [self._recorded[other][0] for other in self._counterparts.get(path, ()) if other in self._recorded]
        error = _closest(others, [output])
        if error is not None:
            self.compared.append(_Compared(path, error, bool(_tensors(given))))
            if path == self._until:
                raise _EnoughError


def _first_divergence(compared: Sequence[_Compared], tolerance: float) -> int | None:
    """Place of the first module that differs for good.

    One that differs inside a container that agrees does not count (rows of a query in another order), nor an embedding
    behind which its container goes on to agree (one model scales later).
    """
    for at, module in enumerate(compared):
        if module.error <= tolerance:
            continue
        later = [other for other in compared[at + 1 :] if other.error <= tolerance and other.takes_values]
        parent = module.path.rpartition(".")[0]
        is_scaled = not module.takes_values and any(_holds(parent, other.path) for other in later)
        if not is_scaled and not any(_holds(other.path, module.path) for other in later):
            return at
    return None


def _is_covered(matches: Sequence[Match], compared: Sequence[_Compared]) -> bool:
    """Whether every mapped tensor is in a module that was compared."""
    paths = {module.path for module in compared}
    names = (name.split(".") for match in matches for name in match.entry.targets)
    return all(any(".".join(parts[:end]) in paths for end in range(1, len(parts))) for parts in names)


def _holds(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(outer + ".")


def _counterparts(matches: Sequence[Match]) -> dict[str, list[str]]:
    """For each module of the target those of the source that hold the sources of just its tensors."""
    left: defaultdict[str, set[int]] = defaultdict(set)
    right: defaultdict[str, set[int]] = defaultdict(set)
    for at, match in enumerate(matches):
        for side, names in ((left, match.entry.sources), (right, match.entry.targets)):
            for name in names:
                parts = name.split(".")
                for end in range(1, len(parts)):
                    side[".".join(parts[:end])].add(at)
    known: defaultdict[frozenset[int], list[str]] = defaultdict(list)
    for path, numbers in left.items():
        known[frozenset(numbers)].append(path)
    return {path: known[key] for path, numbers in right.items() if (key := frozenset(numbers)) in known}


def random_state(module: nn.Module, names: Set[str]) -> dict[str, Tensor]:
    """Random values for some tensors and all statistics, under which signals stay of order one.

    Tied tensors stay tied, the other tensors keep their values, and the module is not changed.
    """
    generator = torch.Generator().manual_seed(0)
    made: dict[int, Tensor] = {}
    state = {}
    tensors = list(_named(module))
    drawn = {id(tensor) for name, tensor in tensors if name in names or name.rpartition(".")[2] in STATISTICS}
    for name, tensor in tensors:
        if id(tensor) not in made:
            made[id(tensor)] = _random(name, tensor, generator) if id(tensor) in drawn else tensor
        state[name] = made[id(tensor)]
    return state


def _random(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    leaf = name.rpartition(".")[2]
    if not tensor.is_floating_point():
        return tensor
    shape = tuple(tensor.shape)
    uniform = torch.rand(shape, generator=generator)
    if leaf == "running_var" or (len(shape) < 2 and "bias" not in leaf and leaf not in ("running_mean", "beta")):
        value = 0.75 + 0.5 * uniform
    elif len(shape) < 2:
        value = uniform - 0.5
    else:
        value = (uniform - 0.5) * (12 * max(shape) / prod(shape)) ** 0.5
    return value.to(tensor.device)


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers, tied ones under every name."""
    yield from module.named_parameters(remove_duplicate=False)
    kept = set(module.state_dict(keep_vars=True))
    yield from (pair for pair in module.named_buffers(remove_duplicate=False) if pair[0] in kept)


class _hooks:  # noqa: N801 (a context manager)
    """Hands input and first output tensor of every module to a function, with the module's path."""

    def __init__(self, module: nn.Module, note: Callable[[str, Any, Tensor], None]) -> None:
        self._module, self._note = module, note

    def __enter__(self) -> None:
        self._handles = [
            child.register_forward_hook(self._hook(name), with_kwargs=True)
            for name, child in self._module.named_modules()
            if name
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        def hook(_module: nn.Module, args: Any, options: Any, output: Any) -> None:
            tensors = _tensors(output)
            if tensors:
                self._note(name, (args, options), tensors[0].detach())

        return hook


def _tensors(output: Any) -> list[Tensor]:
    """Floating-point tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in _tensors(value)]
    if isinstance(output, (tuple, list)):
        return [tensor for value in output for tensor in _tensors(value)]
    return []


def _output_error(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float | None:
    """Largest error of an output, where both models return several; None where no shapes agree.

    Of one shape, each output of the model with fewer of them needs an equal one; the other may return more.
    """
    errors = []
    for shape in {tensor.shape for tensor in found}:
        one = [tensor for tensor in found if tensor.shape == shape]
        two = [tensor for tensor in expected if tensor.shape == shape]
        fewer, more = sorted((one, two), key=len)
        errors += [min(_error(other, tensor) for other in more) for tensor in fewer]
    return max(errors) if errors else _closest(expected, found)


def _closest(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float | None:
    """Least relative error between tensors of one shape; None where no shapes agree.

    A target that returns the last position only is compared with the last position.
    """
    for tensor in found:
        errors = [_error(other, tensor) for other in expected if other.shape == tensor.shape]
        if errors:
            return min(errors)
    for tensor in found:
        for other in expected:
            if tensor.ndim == other.ndim == 3 and tensor.shape[1] == 1 and other[:, -1:].shape == tensor.shape:
                return _error(other[:, -1:], tensor)
    return None


def _error(expected: Tensor, found: Tensor) -> float:
    """Norm of the difference over norm of the expected tensor; infinite where either is not finite."""
    expected = expected.to(torch.float64)
    difference = (found.to(expected) - expected).norm()
    scale = expected.norm()
    if not (torch.isfinite(difference) and torch.isfinite(scale)):
        return inf
    return float(difference / scale) if scale > 0 else float(difference)
