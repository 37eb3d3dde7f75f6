"""What a comparison comes to: one sentence, and what a reader should know beside it."""

from dataclasses import asdict, dataclass
from typing import Any

from lit_wsl.comparing.headlines import Kind, headline_of
from lit_wsl.comparing.notes import notes_of
from lit_wsl.comparing.run import Comparison
from lit_wsl.comparing.sorting import Sorted, is_mostly_dense, other_shapes, sort_findings


@dataclass(frozen=True)
class Verdict:
    """What kind of change it is."""

    kind: Kind
    headline: str
    """One sentence without a full stop."""
    findings: list[str]
    """Further sentences, the most important first."""
    kind_of_compared: Kind
    """The kind as far as tensors were compared; differs from ``kind`` in an incomplete comparison alone."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def verdict_of(comparison: Comparison) -> Verdict:
    """Judge what was found so far."""
    groups = sort_findings(comparison.findings)
    kind = _kind(comparison, groups)
    is_whole = comparison.is_complete and not comparison.failed()
    return Verdict(
        kind=kind if is_whole else "incomplete",
        headline=headline_of(kind, comparison, groups),
        findings=list(notes_of(comparison, groups)),
        kind_of_compared=kind,
    )


def _kind(comparison: Comparison, groups: Sorted) -> Kind:
    if groups.dense:
        return "dense" if is_mostly_dense(groups) else "partly_low_rank"
    if groups.low_rank:
        return "lora"
    if groups.vectors:
        return "vectors"
    if groups.rounded:
        return "rounding"
    if comparison.architecture.resized():
        return "resized"
    return "other_tensors" if _is_uneven(comparison) else "identical"


def _is_uneven(comparison: Comparison) -> bool:
    """Whether some tensor has no counterpart of its shape."""
    known = comparison.architecture
    return bool(known.only_in_base or known.only_in_finetuned or other_shapes(comparison))
