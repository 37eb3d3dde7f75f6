"""What a comparison is asked to do."""

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lit_wsl.errors import ConfigError

Method = Literal["tensor", "both"]
Extraction = Literal["found", "always", "never"]
_ENERGY = re.compile(r"energy:(\d*\.?\d+)")


@dataclass(frozen=True)
class CompareSettings:
    """Bars and choices of a comparison.

    Raises:
        ConfigError: If a value is out of its range.
    """

    threshold: float = 1e-6
    """What an entry must differ by to count as changed."""
    min_ratio: float = 0.01
    """Share of changed entries above which a tensor counts as modified."""
    min_relative: float = 0.01
    """Relative difference above which a tensor counts as modified."""
    method: Method = "tensor"
    """``both`` repeats every figure with NumPy and compares results and times."""
    extraction: Extraction = "found"
    """Whether factors are taken out of all changed matrices, of those of low rank, or of none."""
    rank: str = "auto"
    """Rank of extracted factors: a number, ``auto`` (the estimate) or ``energy:0.99``."""
    max_rank: int = 64
    """Largest rank that ``auto`` and ``energy`` give a matrix that is not of low rank."""
    known_values: int = 64
    """Singular values that the analysis finds of each matrix."""
    is_exact: bool = False
    """Whether every matrix is decomposed in full."""
    skip_1d: bool = False
    """Whether changed biases and norms stay out of an extracted adapter, which otherwise keeps them whole."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("threshold", "min_ratio", "min_relative"):
            if not getattr(self, name) >= 0.0:
                raise ConfigError(f"`{name} >= 0` must hold, got {getattr(self, name)}.")
        for name in ("max_rank", "known_values"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name} >= 1` must hold, got {getattr(self, name)}.")
        if self.energy is None and self.rank != "auto" and not (self.rank.isdecimal() and int(self.rank) > 0):
            raise ConfigError(f"A rank is a positive number, `auto` or `energy:0.99`, got {self.rank!r}.")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise ConfigError(f"The energy of a rank must lie in (0, 1], got {self.rank!r}.")

    @property
    def energy(self) -> float | None:
        """Share of the energy that extracted factors shall hold, if the rank is given that way."""
        found = _ENERGY.fullmatch(self.rank)
        return float(found[1]) if found else None

    @property
    def fixed_rank(self) -> int | None:
        """The rank of extracted factors, if it is given as a number."""
        return int(self.rank) if self.rank.isdecimal() else None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
