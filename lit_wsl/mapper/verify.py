"""Prove a mapping: run both models with the same random weights."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_wsl.mapper.result import MappingResult


@dataclass(frozen=True)
class Verification:
    """What running both models showed."""

    result: "MappingResult"
    """The mapping, with ambiguous recipes settled where the outputs told."""
    error: float
    """Relative error of the target's output: norm of the difference over norm of the source's output."""
    is_proven: bool
    """Whether ``error`` is at most the tolerance."""
    first_divergence: str | None
    """First module of the target whose output differs; None where none does, or where nothing can be compared."""
    tried: int
    """Readings that were run."""


def verify(result: "MappingResult", dummy_input: Any, tolerance: float = 1e-4) -> Verification:
    """Run both modules with the same random weights and statistics."""
    raise NotImplementedError
