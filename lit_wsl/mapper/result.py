"""What a mapping says: recipes with their confidence, what is left over and why."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.mapper.inventory import Inventory, Shape
from lit_wsl.mapper.units import ScoreBreakdown, Unit
from lit_wsl.state.operations import Fuse, Reshape, Split, Stack, Transpose, Unstack
from lit_wsl.state.remap import Entry, WeightMap

if TYPE_CHECKING:
    from lit_wsl.mapper.verify import Verification

SURE = 0.9
"""Confidence from which a match is meant to be relied on."""

_TYPES = ((Stack, "stack"), (Unstack, "unstack"), (Fuse, "fuse"), (Split, "split"), (Transpose, "transpose"))


@dataclass(frozen=True)
class Match:
    """One recipe: tensors of the source, what is done with them, the tensors of the target that this makes."""

    entry: Entry
    shapes: tuple[Shape, ...]
    """Shapes of the targets."""
    scores: ScoreBreakdown
    alternatives: tuple[str, ...] = ()
    """Targets that the first source could make instead, likeliest first."""
    note: str = ""
    """Why it is not certain."""
    unit: Unit | None = field(default=None, compare=False, repr=False)

    @property
    def score(self) -> float:
        """Confidence in [0, 1]."""
        return self.scores.confidence

    @property
    def match_type(self) -> str:
        """``copy``, ``transpose``, ``reshape``, ``fuse``, ``split``, ``stack``, ``unstack`` or ``permute_heads``."""
        operations = self.entry.operations
        for kind, name in _TYPES:
            if any(isinstance(operation, kind) for operation in operations):
                return name
        if operations:
            return "reshape" if isinstance(operations[0], Reshape) else operations[0].name
        return "copy"

    @property
    def is_ambiguous(self) -> bool:
        """Whether another reading is about as likely."""
        return self.score < SURE


class Unmatched(dict[str, str]):
    """Source tensors that are not mapped, with the reason.

    ``["source"]`` and ``["target"]`` give the names left over on either side as lists.
    """

    def __init__(self, source: Mapping[str, str], target: Iterable[str]) -> None:
        super().__init__(source)
        self._sides = {"source": list(source), "target": list(target)}

    def __getitem__(self, key: str) -> Any:
        """The reason for a source tensor, or the list of a side."""
        return super().__getitem__(key) if super().__contains__(key) else self._sides[key]


@dataclass(frozen=True)
class MappingResult:
    """A mapping between two models, in order of the target."""

    matches: tuple[Match, ...]
    source: Inventory
    target: Inventory
    threshold: float
    strategy: str
    reasons: Mapping[str, str]
    """Why source tensors are not mapped."""
    source_module: nn.Module | None = field(default=None, repr=False, compare=False)
    target_module: nn.Module | None = field(default=None, repr=False, compare=False)

    @property
    def recipes(self) -> WeightMap:
        """The executable map."""
        return WeightMap(tuple(match.entry for match in self.matches))

    @property
    def coverage(self) -> float:
        """Share of the source's tensors that are mapped."""
        return len(set(self.recipes.sources())) / len(self.source.weights)

    @property
    def target_coverage(self) -> float:
        """Share of the target's tensors that are made."""
        return len(self.recipes.targets()) / len(self.target.weights)

    def get_mapping(self) -> dict[str, str]:
        """Source name to target name; a source that is split is listed with its first target.

        Operations are in :attr:`recipes`; this is the short form.
        """
        return {name: target for name, (target, _) in self.get_mapping_with_scores().items()}

    def get_mapping_with_scores(self) -> dict[str, tuple[str, float]]:
        """Source name to target name and confidence, sources in order of the targets."""
        found: dict[str, tuple[str, float]] = {}
        for match in self.matches:
            for name in match.entry.sources:
                found.setdefault(name, (match.entry.targets[0], match.score))
        return found

    def get_unmatched(self) -> Unmatched:
        """Source tensors that are not mapped, each with its reason; ``["target"]`` lists targets that are not made."""
        mapped, made = set(self.recipes.sources()), set(self.recipes.targets())
        left = {name: self.reasons.get(name, "no match") for name in self.source.names() if name not in mapped}
        return Unmatched(left, [name for name in self.target.names() if name not in made])

    def get_score_breakdown(self, source: str) -> ScoreBreakdown:
        """The evidence for the match of a source tensor.

        Raises:
            ConfigError: If it is not mapped.
        """
        for match in self.matches:
            if source in match.entry.sources:
                return match.scores
        known = self.recipes.sources()
        raise ConfigError(f"{source!r} is not mapped. {did_you_mean(source, known)}")

    def get_low_confidence_matches(self, threshold: float = 0.7) -> dict[str, tuple[str, float]]:
        """Matches less sure than ``threshold``, as :meth:`get_mapping_with_scores` gives them."""
        scored = self.get_mapping_with_scores()
        return {name: (target, score) for name, (target, score) in scored.items() if score < threshold}

    def filter_by_score(self, min_score: float) -> "MappingResult":
        """The result without matches that are less sure than ``min_score``."""
        kept = tuple(match for match in self.matches if match.score >= min_score)
        dropped = {
            name: f"its match has score {match.score:.2f}, below {min_score:g}"
            for match in self.matches
            if match.score < min_score
            for name in match.entry.sources
        }
        reasons = {**self.reasons, **dropped}
        return replace(self, matches=kept, reasons=reasons, threshold=max(self.threshold, min_score))

    def verify(
        self, dummy_input: Any, tolerance: float = 1e-4, output: Callable[[Any], Any] | None = None
    ) -> "Verification":
        """Run both models with random weights and compare what they return; see :func:`~lit_wsl.mapper.verify.verify`.

        Raises:
            ConfigError: If the mapping was made without modules.
        """
        from lit_wsl.mapper.verify import verify

        return verify(self, dummy_input, tolerance, output)

    def apply(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The target's tensors from a source state dict; copies share memory.

        Raises:
            CheckpointError: If a source tensor is missing or has another shape.
        """
        return self.recipes.apply(state_dict)

    def save(self, path: str | Path) -> None:
        """Write the recipes as JSON; :meth:`WeightMap.load` reads them.

        Raises:
            CheckpointError: If the file cannot be written.
        """
        self.recipes.save(path)

    def inverse(self) -> WeightMap:
        """The map back.

        Raises:
            ConfigError: If a source tensor is used in two ways.
        """
        return self.recipes.inverse()
