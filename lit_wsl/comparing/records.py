"""What is known of each tensor after a comparison; plain values that survive JSON."""

from dataclasses import dataclass, field
from typing import Any, Self

from lit_wsl.comparing.stored import check_types, stored_fields


@dataclass(frozen=True)
class _Record:
    """A record that is made of plain values."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The record that :meth:`to_json` described; values of a newer version are left out.

        Raises:
            TypeError: If a value is missing, or of another type.
        """
        return cls(**stored_fields(cls, content))


@dataclass(frozen=True)
class TensorChange(_Record):
    """How one tensor of the fine-tuned model differs from the base's."""

    shape: list[int]
    base_dtype: str
    tuned_dtype: str
    numel: int
    mean_abs_diff: float
    max_abs_diff: float
    relative_diff: float
    """Frobenius norm of the difference over that of the base."""
    changed_ratio: float
    """Share of entries that differ by more than the threshold."""
    cosine: float
    """Between both tensors."""
    mean_diff: float
    std_diff: float
    diff_norm: float
    base_norm: float
    is_equal: bool
    """Bit for bit."""
    is_rounding: bool
    """Equal once both are rounded to the coarser of their precisions."""
    rounding_floor: float
    """Relative difference that a round trip through the coarser precision alone gives."""
    modified: bool
    """Whether it differs by more than the bars of the comparison, and by more than rounding."""
    histogram: list[float] = field(default_factory=list)
    """Shares of a sample of entries by size of the difference, for a plot; empty where nothing changed."""
    nonfinite: dict[str, int] = field(default_factory=dict)
    """NaN and infinite entries that both sides share."""
    total_time: float = 0.0
    """Seconds."""
    tensor_time: float = 0.0
    numpy_time: float | None = None
    """Seconds of the same figures in NumPy, where they were asked for."""


@dataclass(frozen=True)
class Pattern(_Record):
    """What the singular values of a tensor's difference say."""

    shape: list[int]
    """Rows and columns of the matrix."""
    effective_rank: int
    """Singular values above the noise."""
    noise_edge: float
    """Largest singular value that noise of the size of the remainder would have."""
    rank_confidence: float
    """How far the last value stands above the edge: 0 on it, 1 infinitely far; 0 where none does."""
    rank_95_energy: int | None
    """Least rank that holds 95 % of the squared norm; None where it lies beyond the known values."""
    rank_99_energy: int | None
    max_singular_value: float
    min_singular_value: float
    """The smallest of the known values."""
    singular_values: list[float]
    """The leading ones, descending."""
    energy_captured: float
    """Share of the squared norm that the effective rank holds."""
    energy_at: dict[str, float]
    """Share of the squared norm that ranks 1, 2, 4 … hold."""
    is_potential_lora: bool
    """95 % of the energy in a rank below 64 and below a tenth of the smaller side."""
    is_low_rank: bool
    """What the effective rank leaves out is explained by rounding, or next to nothing."""
    is_exact: bool
    """Whether the singular values come from a full decomposition."""


@dataclass(frozen=True)
class Extracted(_Record):
    """Factors that were taken out of a tensor's difference."""

    rank: int
    """0 for a tensor that is kept whole."""
    relative_error: float
    """Norm of what the factors leave out, over the norm of the difference."""
    weight_error: float
    """The same over the norm of the fine-tuned weight."""
    parameters: int


@dataclass(frozen=True)
class Finding:
    """All that a comparison found of one tensor."""

    name: str
    change: TensorChange | None = None
    pattern: Pattern | None = None
    extracted: list[Extracted] = field(default_factory=list)
    """One for a matrix, one per expert of a stack."""
    failed: str = ""
    """Why it could not be compared."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "change": self.change and self.change.to_json(),
            "pattern": self.pattern and self.pattern.to_json(),
            "extracted": [one.to_json() for one in self.extracted],
            "failed": self.failed,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Finding":
        """The finding that :meth:`to_json` described.

        Raises:
            KeyError: If a value is missing.
            TypeError: If one is of another type.
        """
        check_types({name: content[name] for name in ("name", "failed")}, {"name": str, "failed": str})
        return cls(
            content["name"],
            None if content["change"] is None else TensorChange.from_json(content["change"]),
            None if content["pattern"] is None else Pattern.from_json(content["pattern"]),
            [Extracted.from_json(one) for one in content["extracted"]],
            content["failed"],
        )
