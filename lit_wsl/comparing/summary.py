"""Findings added up: for each kind of module, each layer, each tower, and the whole model."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lit_wsl.comparing.records import Finding
from lit_wsl.state.names import parse_name

RANKS = (1, 4, 16, 64)
"""Ranks whose share of the energy is told."""
OUTSIDE = "(outside of layers)"
"""Tower of the tensors that stand in no layer."""
_LEAVES = (".weight", ".bias", ".gamma", ".beta")
_NUMBERS = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class Total:
    """What several findings come to; norms add up in squares, shares by entries."""

    tensors: int
    """Those that were compared."""
    changed: int
    """Those with a difference, rounding included."""
    modified: int
    """Those beyond the bars of the comparison."""
    entries: int
    diff_norm: float
    base_norm: float
    relative_diff: float
    """Norm of all differences over that of all base entries."""
    changed_ratio: float
    """Share of entries that differ by more than the threshold."""
    low_rank: int
    """Matrices whose difference is of low rank."""
    ranks: list[int]
    """Ranks that these have, each once, ascending."""
    energy_at: dict[str, float]
    """Share of the squared norm of the matrices' differences that ranks 1, 4, 16 and 64 hold; empty without one."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Summary:
    """Totals by name, in the order of the base; layers by their numbers."""

    whole: Total
    towers: dict[str, Total]
    layers: dict[str, Total]
    """By the path of the layer, such as ``model.layers.3``."""
    kinds: dict[str, Total]
    """By the path behind the layer without the parameter's own name, such as ``self_attn.q_proj``."""

    def has_towers(self) -> bool:
        """Whether there are several stacks of layers."""
        return len(self.towers.keys() - {OUTSIDE}) > 1

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def summarise(findings: Iterable[Finding]) -> Summary:
    """Add the findings up; tensors that could not be compared are left out."""
    compared = [finding for finding in findings if finding.change is not None]
    return Summary(
        whole=total(compared),
        towers=_grouped(compared, lambda finding: tower_of(finding.name)),
        layers=_grouped(in_layers(compared), lambda finding: layer_of(finding.name)),
        kinds=_grouped(compared, lambda finding: kind_of(finding.name)),
    )


def in_layers(findings: Iterable[Finding]) -> list[Finding]:
    """Findings of tensors in layers, sorted by the number of the layer inside each tower; files sort 10 before 2."""
    inside = [finding for finding in findings if layer_of(finding.name)]
    towers = {tower: at for at, tower in enumerate(dict.fromkeys(tower_of(finding.name) for finding in inside))}
    return sorted(inside, key=lambda finding: (towers[tower_of(finding.name)], parse_name(finding.name).layer or 0))


def tower_of(name: str) -> str:
    """Path in front of the layers; :data:`OUTSIDE` for a tensor in none, ``.`` for layers at the root."""
    parsed = parse_name(name)
    return (parsed.tower or ".") if layer_of(name) else OUTSIDE


def layer_of(name: str) -> str:
    """Path of the layer that a tensor stands in; empty outside of any.

    A numbered module without modules of its own, such as ``classifier.1``, is no layer.
    """
    parsed = parse_name(name)
    is_module = parsed.layer is None or f".{parsed.role}" in _LEAVES
    return "" if is_module else name.removesuffix(f".{parsed.role}")


def kind_of(name: str) -> str:
    """Path of the module behind the layer, the same for all layers and for all experts."""
    layer = layer_of(name)
    path = name.removeprefix(f"{layer}.") if layer else name
    module = next((path.removesuffix(leaf) for leaf in _LEAVES if path.endswith(leaf)), path)
    return _NUMBERS.sub("*", module) if layer else module


def short_kinds(kinds: Iterable[str]) -> dict[str, str]:
    """The last part of each kind of module, or as many more as tell it from all others."""
    paths = {kind: kind.split(".") for kind in kinds}
    short: dict[str, str] = {}
    for kind, parts in paths.items():
        others = [other for other in paths.values() if other != parts]
        least = 2 if parts[-1].isdigit() else 1
        counts = range(least, len(parts))
        count = next((n for n in counts if all(other[-n:] != parts[-n:] for other in others)), len(parts))
        short[kind] = ".".join(parts[-count:])
    return short


def total(findings: Sequence[Finding]) -> Total:
    """What these findings come to."""
    changes = [finding.change for finding in findings if finding.change is not None]
    entries = sum(change.numel for change in changes)
    diff_norm = math.hypot(*(change.diff_norm for change in changes))
    base_norm = math.hypot(*(change.base_norm for change in changes))
    low = [finding.pattern for finding in findings if finding.pattern is not None and finding.pattern.is_low_rank]
    return Total(
        tensors=len(changes),
        changed=sum(change.diff_norm > 0.0 for change in changes),
        modified=sum(change.modified for change in changes),
        entries=entries,
        diff_norm=diff_norm,
        base_norm=base_norm,
        relative_diff=diff_norm / (base_norm + 1e-10),
        changed_ratio=math.fsum(change.changed_ratio * change.numel for change in changes) / max(entries, 1),
        low_rank=len(low),
        ranks=sorted({pattern.effective_rank for pattern in low}),
        energy_at=_energy_at(findings),
    )


def _energy_at(findings: Iterable[Finding]) -> dict[str, float]:
    """Mean share of the energy by rank, weighted by the energy of each difference; for ranks that all are known at."""
    norms = [(one.change.diff_norm, one) for one in findings if one.change is not None and one.pattern is not None]
    largest = max((norm for norm, _ in norms), default=0.0) or 1.0  # the square of a large one is no float
    known = [((norm / largest) ** 2, one) for norm, one in norms]
    energy = math.fsum(weight for weight, _ in known)
    shares: dict[str, float] = {}
    for rank in RANKS if energy else ():
        held = [(weight, _held(finding, rank)) for weight, finding in known]
        if all(share is not None for _, share in held):
            shares[str(rank)] = math.fsum(weight * (share or 0.0) for weight, share in held) / energy
    return shares


def _held(finding: Finding, rank: int) -> float | None:
    """Share of the energy that a rank holds: all of it for a matrix with no more singular values."""
    assert finding.pattern is not None
    return 1.0 if rank >= min(finding.pattern.shape) else finding.pattern.energy_at.get(str(rank))


def _grouped(findings: Iterable[Finding], key: Callable[[Finding], str]) -> dict[str, Total]:
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(key(finding), []).append(finding)
    return {name: total(group) for name, group in groups.items()}
