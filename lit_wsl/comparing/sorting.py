"""Findings sorted by what kind of change they are."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lit_wsl.comparing.records import Finding, TensorChange
from lit_wsl.comparing.run import Comparison
from lit_wsl.comparing.summary import kind_of, layer_of

_PART = 10
_PRECISIONS = {2.0**-4: "float8_e5m2", 2.0**-5: "float8_e4m3fn", 2.0**-9: "bfloat16", 2.0**-12: "float16"}
"""Coarsest dtype by the relative difference that rounding to it gives."""


@dataclass(frozen=True)
class Sorted:
    """Every tensor that was compared, in one of six groups."""

    same: list[Finding]
    """Without a difference of value."""
    rounded: list[Finding]
    """Equal once both sides are rounded."""
    low_rank: list[Finding]
    dense: list[Finding]
    """Matrices with a change that is not of low rank."""
    unclear: list[Finding]
    """Matrices of which others of their kind are of low rank, with a change too near to rounding to have a rank."""
    vectors: list[Finding]
    """Biases, norms and other tensors of one dimension."""

    def changed(self) -> list[Finding]:
        """All that differ by more than rounding."""
        return [*self.low_rank, *self.dense, *self.unclear, *self.vectors]

    def matrices(self) -> int:
        """How many matrices differ by more than rounding."""
        return len(self.low_rank) + len(self.dense) + len(self.unclear)


def sort_findings(findings: Iterable[Finding]) -> Sorted:
    """Sort those that could be compared."""
    findings = list(findings)
    low_kinds = {kind_of(one.name) for one in findings if one.pattern is not None and one.pattern.is_low_rank}
    found = Sorted([], [], [], [], [], [])
    for one in findings:
        if one.change is None:
            continue
        if one.change.diff_norm == 0.0:
            found.same.append(one)
        elif one.change.is_rounding:
            found.rounded.append(one)
        elif one.pattern is None:
            found.vectors.append(one)
        elif one.pattern.is_low_rank:
            found.low_rank.append(one)
        elif is_as_small_as_rounding(one.change) and kind_of(one.name) in low_kinds:
            found.unclear.append(one)
        else:
            found.dense.append(one)
    return found


def is_mostly_dense(groups: Sorted) -> bool:
    """Whether less than a tenth of the changed matrices is of low rank, as some are by chance in a dense fine-tune."""
    return bool(groups.dense) and _PART * len(groups.low_rank) < groups.matrices()


def is_as_small_as_rounding(change: TensorChange) -> bool:
    """Whether a round trip through the coarser of both precisions would give as large a difference."""
    return change.relative_diff <= change.rounding_floor


def coarsest(findings: Iterable[Finding]) -> str:
    """The dtype whose rounding most of these differences are as large as."""
    floors = Counter(one.change.rounding_floor for one in findings if one.change is not None)
    common = floors.most_common(1)
    return _PRECISIONS.get(common[0][0], "float32") if common else "float32"


def added_rows(comparison: Comparison) -> dict[str, int]:
    """Rows that the fine-tuned model has beyond the base's, by tensor; negative where it has fewer."""
    shapes = comparison.architecture.shape_mismatch
    return {name: shapes[name]["finetuned"][0] - shapes[name]["base"][0] for name in comparison.architecture.resized()}


def other_shapes(comparison: Comparison) -> list[str]:
    """Common names whose tensors cannot be compared for their shapes."""
    resized = set(comparison.architecture.resized())
    return [name for name in comparison.architecture.shape_mismatch if name not in resized]


def layers_of(names: Iterable[str]) -> list[str]:
    """The layers that tensors stand in, each once."""
    return list(dict.fromkeys(layer for name in names if (layer := layer_of(name))))
