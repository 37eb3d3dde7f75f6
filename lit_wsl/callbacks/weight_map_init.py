"""Starts a training from the weights of another architecture's checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import nn

from lit_wsl.callbacks.starting import StartingWeights, part_to_fill, told_part
from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.mapper.inventory import Inventory, take_inventory
from lit_wsl.mapper.mapper import WeightMapper
from lit_wsl.mapper.result import SURE, MappingResult, Match
from lit_wsl.mapper.units import ScoreBreakdown
from lit_wsl.models.places import Places
from lit_wsl.state.reader import open_state
from lit_wsl.state.remap import WeightMap

_NAMED = 3
"""So many tensors an error names."""
_GIVEN = ScoreBreakdown(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
"""Scores of a recipe that the user gave."""


class WeightMapInit(StartingWeights):
    """Load a foreign checkpoint into a module at setup, through a map of weights that is found or given.

    It happens once for a module, in the first stage that runs (``fit``, ``validate``, ``test`` or ``predict``), before
    a strategy wraps or moves the module, on every process alike. A run that takes up a checkpoint (``ckpt_path``)
    keeps the weights of that checkpoint, and the foreign one is not opened. Everything is checked before the first
    tensor is changed, and memory holds the tensors of one recipe at a time. Put it before callbacks that copy the
    weights at setup, such as averages of weights.

    Args:
        checkpoint: Any container: a safetensors or torch file, a sharded directory, an index.
        module: Dotted path of the submodule to fill, such as ``model``; empty for the whole module.
        weight_map: Map that ``lit-wsl map --save`` or ``MappingResult.save`` wrote; by default one is looked for.
        buffer_matching_mode: ``lenient`` also loads running statistics, which belong to the weights wherever these
            are used without training all of them; ``exclude`` leaves every buffer as it is; ``strict`` leaves out a
            layer of which a buffer is missing or does not fit.
        threshold: Confidence from which a match is relied on.
        allow_ambiguous: Whether less certain matches are taken too, rather than refused.
        min_coverage: Least share of the module's parameters, in [0, 1], that the checkpoint must make.
        strict_missing: Whether a parameter or running statistic that the checkpoint does not make is an error.
    """

    report: MappingResult | None = None
    """What was loaded, once it was."""

    def __init__(
        self,
        *,
        checkpoint: str | Path,
        module: str = "",
        weight_map: str | Path | None = None,
        buffer_matching_mode: Literal["exclude", "lenient", "strict"] = "lenient",
        threshold: float = SURE,
        allow_ambiguous: bool = False,
        min_coverage: float = 0.5,
        strict_missing: bool = False,
    ) -> None:
        for name, share in (("threshold", threshold), ("min_coverage", min_coverage)):
            if not 0.0 <= share <= 1.0:
                raise ConfigError(f"WeightMapInit: `0 <= {name} <= 1` must hold, got {share}.")
        super().__init__(module)
        self.checkpoint = Path(checkpoint)
        self.weight_map = weight_map
        self.buffer_matching_mode = buffer_matching_mode
        self.threshold = threshold
        self.allow_ambiguous = allow_ambiguous
        self.min_coverage = min_coverage
        self.strict_missing = strict_missing

    def load(self, module: nn.Module) -> MappingResult:
        """Fill a module at once, without a trainer: before adapters are put in, or in ``configure_model``.

        Args:
            module: The module in which :attr:`module` names a part; changed in place.

        Returns:
            What was loaded; also kept as :attr:`report`.

        Raises:
            CheckpointError: If the checkpoint cannot be read or does not fit the module surely enough.
            ConfigError: If there is no such submodule, or its tensors cannot be filled yet.
        """
        root = part_to_fill(module, self.module, self.call)
        places = Places.of(root, told_part(module, self.module), self.call)
        reader = open_state(self.checkpoint)
        result = self._find(root, places) if self.weight_map is None else self._given(root, places, self.weight_map)
        self._check(result, places)
        places.check(result.recipes, reader)
        places.fill(result.recipes, reader)
        self.report = result
        return result

    def told(self, where: str) -> str:
        """Counts of tensors; the report itself has more."""
        result = self.report
        assert result is not None
        unsure = sum(len(match.entry.targets) for match in result.matches if match.score < self.threshold)
        return (
            f"{len(result.recipes.targets())} tensors of {where} loaded from {result.source.where}, "
            f"{len(_left(result))} left as initialised, {unsure} ambiguous"
        )

    def _find(self, root: nn.Module, places: Places) -> MappingResult:
        mapper = WeightMapper.from_checkpoint(self.checkpoint, root, buffer_matching_mode=self.buffer_matching_mode)
        mapper.target = _plain_inventory(mapper.target, places)
        return mapper.suggest_mapping()

    def _given(self, root: nn.Module, places: Places, path: str | Path) -> MappingResult:
        """The result that a saved map is; every recipe in it is certain."""
        recipes, source = WeightMap.load(path), take_inventory(self.checkpoint)
        target = _plain_inventory(take_inventory(root), places)
        shapes = {weight.name: weight.shape for weight in target.weights}
        matches = tuple(
            Match(entry, tuple(shapes.get(name, ()) for name in entry.targets), _GIVEN) for entry in recipes
        )
        reasons = dict.fromkeys(source.names(), f"{path} does not use it")
        return MappingResult(matches, source, target, 0.0, "weight_map", reasons, target_module=root)

    def _check(self, result: MappingResult, places: Places) -> None:
        """Refuse a mapping that makes too little of the module, or is not sure."""
        made = set(result.recipes.targets())
        parameters = {weight.name for weight in result.target.weights if weight.kind == "parameter"}
        left = _left(result)
        share = len(parameters & made) / len(parameters) if parameters else 0.0
        if share < self.min_coverage:
            raise CheckpointError(
                f"{self.checkpoint} makes {len(parameters & made)} of the {len(parameters)} parameters of "
                f"{places.where}, a share of {share:.2f} below `min_coverage` {self.min_coverage:g}; it lacks "
                f"{_some(left)}. Check that both are one architecture, or name the part to fill by `module`."
            )
        if self.strict_missing and left:
            raise CheckpointError(
                f"{self.checkpoint} does not make {_some(left)} of {places.where}; give a checkpoint that does, or set "
                "`strict_missing=False`."
            )
        unsure = [match for match in result.matches if match.score < self.threshold]
        if unsure and not self.allow_ambiguous:
            why = next((f" ({match.note})" for match in unsure if match.note), "")
            raise CheckpointError(
                f"{self.checkpoint} fits {places.where}, but it is not certain what makes "
                f"{_some([name for match in unsure for name in match.entry.targets])}{why}. Save a map with `lit-wsl "
                "map --save`, check it and pass it as `weight_map`, or set `allow_ambiguous=True`."
            )


def _plain_inventory(inventory: Inventory, places: Places) -> Inventory:
    """An inventory of the module, under plain names and without what adapters add."""
    plain = places.plain
    kept = {plain[weight.name]: weight for weight in reversed(inventory.weights) if weight.name in plain}
    weights = sorted(
        (replace(weight, name=name, path=tuple(name.split("."))) for name, weight in kept.items()),
        key=lambda weight: weight.order,
    )
    aliases = {
        plain[name]: plain[first]
        for name, first in inventory.aliases.items()
        if name in plain and first in plain and plain[name] != plain[first]
    }
    return replace(inventory, weights=weights, aliases=aliases)


def _left(result: MappingResult) -> list[str]:
    """Parameters and running statistics that stay as they are."""
    made = set(result.recipes.targets())
    return [weight.name for weight in result.target.weights if weight.kind != "buffer" and weight.name not in made]


def _some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more
