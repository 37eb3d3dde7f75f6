"""Prove a mapping: run both models with the same random weights, and settle by the outputs what is ambiguous."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.mapper.assign import tell_again
from lit_wsl.mapper.complete import assemble
from lit_wsl.mapper.hypotheses import Change, readings
from lit_wsl.mapper.probe import Probe, Run
from lit_wsl.mapper.units import Unit

if TYPE_CHECKING:
    from lit_wsl.mapper.result import MappingResult

TOLERANCE = 1e-4
"""Relative error up to which outputs agree in float32. A cosine would not do: with a swapped pair it can be 0.995."""
MOST = 400
"""Readings that are tried at one divergence."""
PROVEN = 0.99
"""Confidence of a match that the outputs confirm."""


@dataclass(frozen=True)
class Verification:
    """What running both models showed."""

    result: "MappingResult"
    """The mapping, with ambiguous recipes settled where the outputs told."""
    error: float
    """Relative error of the target's output: norm of the difference over norm of the source's output."""
    is_proven: bool
    """Whether the models' outputs were compared and ``error`` is at most the tolerance."""
    first_divergence: str | None
    """First module of the target whose output differs; None where none does, or where nothing can be compared."""
    tried: int
    """Readings that were run."""


def verify(
    result: "MappingResult",
    dummy_input: Any,
    tolerance: float = TOLERANCE,
    output: Callable[[Any], Any] | None = None,
) -> Verification:
    """Run both modules with the same random parameters and statistics, and search the readings of what diverges.

    Neither module is changed. Where the output differs, readings of the matches in the first module that diverges are
    tried: exchanges among twins, orders of joined parts, transposed squares, order of rows within heads.

    Args:
        result: The mapping.
        dummy_input: A tensor, a tuple of arguments or a mapping of keywords that both models take, or a mapping with
            the keys ``source`` and ``target``.
        tolerance: Relative error up to which outputs agree.
        output: What to compare of what either model returns; all floating-point tensors when None.

    Raises:
        ConfigError: If the mapping was made without modules, or a model does not run.
    """
    if result.source_module is None or result.target_module is None:
        raise ConfigError("To verify a mapping both models must run; give `source_module` and `target_module`.")
    sources = result.recipes.sources()
    probe = Probe((result.source_module, result.target_module), sources, dummy_input, tolerance, output)
    search = _Search(result, probe, tolerance)
    run = search.settle()
    is_proven = run.is_complete and run.error <= tolerance
    settled = search.result(is_proven=is_proven)
    return Verification(settled, run.error, is_proven, run.divergence, search.tried)


class _Search:
    """Replaces units one divergence after the other, as long as that moves the divergence further back."""

    def __init__(self, result: "MappingResult", probe: Probe, tolerance: float) -> None:
        self._given, self._probe, self._tolerance = result, probe, tolerance
        self._units = list({id(match.unit): match.unit for match in result.matches if match.unit is not None}.values())
        self.tried = 0

    def settle(self) -> Run:
        """The last run, after every divergence that a reading explains."""
        run = self._run(self._units)
        while run.error > self._tolerance:
            better = self._better(run)
            if better is None:
                return run
            self._units, run = better
        return run

    def result(self, *, is_proven: bool) -> "MappingResult":
        """The mapping as it is now, with the evidence for it; sure, and without rivals, where it is proven."""
        units = [replace(unit) for unit in self._units]
        if self.tried > 1:
            tell_again(units)
        for unit in units if is_proven else ():
            unit.confidence, unit.note, unit.rivals = max(unit.confidence, PROVEN), "", []
        matches = assemble(units, self._given.source, self._given.target)
        return replace(self._given, matches=tuple(matches))

    def _better(self, run: Run) -> tuple[list[Unit], Run] | None:
        """Units and run of the first reading that gets past the divergence."""
        for group in self._groups(run.divergence):
            for change in islice(readings(group, *self._head_counts()), MOST):
                units = _changed(self._units, change)
                try:
                    found = self._run(units)
                except CheckpointError:  # shapes at some position forbid this reading
                    continue
                if found.error <= self._tolerance or found.place > run.place:
                    return units, found
        return None

    def _groups(self, divergence: str | None) -> Iterator[list[Unit]]:
        """Units of the container where the outputs part, of the one around it, and so on to all."""
        size = 0
        path = divergence or ""
        while path:
            path = path.rpartition(".")[0]
            inside = [unit for unit in self._units if not path or _touches(unit, path)]
            if len(inside) > size:
                size = len(inside)
                yield inside
        if size < len(self._units):
            yield self._units

    def _run(self, units: Sequence[Unit]) -> Run:
        self.tried += 1
        return self._probe.run(assemble(units, self._given.source, self._given.target))

    def _head_counts(self) -> tuple[int | None, int | None]:
        source, target = self._given.source, self._given.target
        heads = source.heads or target.heads
        return heads, source.kv_heads or target.kv_heads or heads


def _touches(unit: Unit, path: str) -> bool:
    """Whether a unit makes a tensor of a module or of one inside it."""
    return any(
        weight is not None and weight.name.startswith(path + ".")
        for module in unit.targets
        for template in module.leaves.values()
        for weight in template.weights
    )


def _changed(units: Sequence[Unit], change: Change) -> list[Unit]:
    return [change.get(id(unit), unit) for unit in units]
