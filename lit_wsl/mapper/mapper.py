"""Map the weights of one architecture to those of another."""

from collections.abc import Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from torch import nn

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.mapper.assign import Rules, Strategy
from lit_wsl.mapper.complete import complete
from lit_wsl.mapper.evidence import Weights
from lit_wsl.mapper.execution import in_order_of_execution
from lit_wsl.mapper.inventory import Inventory, Source, take_inventory
from lit_wsl.mapper.match import Matcher
from lit_wsl.mapper.result import MappingResult
from lit_wsl.mapper.settle import settle_heads, settle_turns
from lit_wsl.mapper.units import ScoreBreakdown

MODES = ("exclude", "lenient", "strict")
STRATEGIES = ("optimal", "best_match", "greedy", "conservative", "shape_only")
THRESHOLD = 0.25
"""Least confidence by default: below it the rivals are likelier together."""
CONSERVATIVE = 0.75


class WeightMapper:
    """Finds which tensors of a source make which of a target, through which operations.

    Args:
        source_module: Model with the weights; or give ``source_params``.
        target_module: Model that shall have them; or give ``target_params``.
        shape_tolerance: How far a dimension may be off, relative, for an unmatched tensor to be named as near miss.
            Recipes are exact always.
        buffer_matching_mode: ``exclude`` leaves all buffers out; ``lenient`` maps those that fit; ``strict`` rejects a
            module of which a buffer is missing or does not fit.
        source_params: State dict, checkpoint (file or directory, read by header only), names and shapes, or an
            inventory that was taken before.
        target_params: The same for the target.
        dummy_input: Input that both modules take; then the order of execution counts instead of the order of
            registration, and :meth:`suggest_mapping` can validate outputs.
        incompatible_pairs: Pairs of names, patterns (``*.encoder.*``) or words (``query``, ``key``) that must not be
            matched.

    Raises:
        ConfigError: If an option is unknown, a side is missing or given twice, or a model has no tensors.
        CheckpointError: If a file cannot be opened.
    """

    def __init__(
        self,
        source_module: nn.Module | None = None,
        target_module: nn.Module | None = None,
        shape_tolerance: float = 0.0,
        buffer_matching_mode: str = "exclude",
        *,
        source_params: Source | None = None,
        target_params: Source | None = None,
        dummy_input: Any = None,
        incompatible_pairs: Iterable[tuple[str, str]] | None = None,
    ) -> None:
        _check_choice("buffer_matching_mode", buffer_matching_mode, MODES)
        if not isfinite(shape_tolerance) or not 0.0 <= shape_tolerance < 1.0:
            raise ConfigError(f"`0 <= shape_tolerance < 1` must hold, got {shape_tolerance}.")
        self.buffer_matching_mode = buffer_matching_mode
        self.shape_tolerance = shape_tolerance
        self.source_module, self.target_module = source_module, target_module
        self.dummy_input = dummy_input
        self._incompatible = _checked_pairs(incompatible_pairs)
        self.source = self._inventory("source", source_module, source_params)
        self.target = self._inventory("target", target_module, target_params)
        self._result: MappingResult | None = None

    @classmethod
    def from_state_dict(
        cls, source_state_dict: Mapping[str, Any], target_module: nn.Module | None = None, **options: Any
    ) -> "WeightMapper":
        """A mapper from a state dict, or from names and shapes; ``options`` as in the constructor."""
        return cls(None, target_module, source_params=source_state_dict, **options)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, target_module: nn.Module | None = None, **options: Any
    ) -> "WeightMapper":
        """A mapper from a checkpoint, of which only the header is read; ``options`` as in the constructor."""
        return cls(None, target_module, source_params=path, **options)

    def suggest_mapping(
        self,
        threshold: float | None = None,
        weights: Mapping[str, float] | None = None,
        validate_outputs: bool = False,  # noqa: FBT001, FBT002 (the documented signature)
        strategy: str = "optimal",
    ) -> MappingResult:
        """Map the source to the target.

        Args:
            threshold: Least confidence of a match that is kept; default 0.25.
            weights: What ``shape``, ``name``, ``hierarchy`` and ``order`` count; they are scaled to sum to one.
            validate_outputs: Run both modules on ``dummy_input`` with the same random weights, and settle ambiguous
                matches by the outputs.
            strategy: ``optimal`` (or ``best_match``) takes the assignment with the best total; ``greedy`` the best
                pair first; ``conservative`` keeps matches from 0.75 only; ``shape_only`` counts no
                likeness of names (parts of a join are still told apart by theirs).

        Raises:
            ConfigError: If an option is unknown or out of range, or outputs cannot be validated.
        """
        _check_choice("strategy", strategy, STRATEGIES)
        if threshold is not None and not 0.0 <= threshold <= 1.0:
            raise ConfigError(f"`0 <= threshold <= 1` must hold, got {threshold}.")
        least = THRESHOLD if threshold is None else threshold
        least = max(least, CONSERVATIVE) if strategy == "conservative" else least
        result = self._match(_weights(weights, strategy), strategy).filter_by_score(least)
        if validate_outputs:
            if self.dummy_input is None:
                raise ConfigError("validate_outputs needs an input; pass `dummy_input` to the WeightMapper.")
            result = result.verify(self.dummy_input).result
        self._result = result
        return result

    def get_unmatched(self) -> dict[str, str]:
        """Source tensors that the last mapping left out, with reasons; ``["source"]`` and ``["target"]`` give lists."""
        return self._last().get_unmatched()

    def get_mapping_dict(self) -> dict[str, str]:
        """Source name to target name of the last mapping."""
        return self._last().get_mapping()

    def get_score_breakdown(self, source: str) -> ScoreBreakdown:
        """The evidence for the match of a source tensor.

        Raises:
            ConfigError: If it is not mapped.
        """
        return self._last().get_score_breakdown(source)

    def print_analysis(self, width: int | None = None) -> None:
        """Print what was mapped, what is ambiguous, and what is left over.

        Args:
            width: Columns of the tables; default those of the terminal or notebook, in a file as many as are needed.
        """
        from lit_wsl.mapper.tables import print_analysis

        print_analysis(self._last(), width)

    def visualize_mapping(self, width: int | None = None) -> None:
        """Print a table of the recipes, repeated blocks in one row.

        Args:
            width: Columns of the table; default those of the terminal or notebook, in a file as many as are needed.
        """
        from lit_wsl.mapper.tables import print_mapping

        print_mapping(self._last(), width)

    def visualize_hierarchies(self) -> None:
        """Print both models as trees, repeated blocks once."""
        from lit_wsl.mapper.tables import print_hierarchies

        print_hierarchies(self.source, self.target)

    def export_mapping_report(self, path: str | Path) -> None:
        """Write the last mapping as JSON, or as a page where the path ends in ``.html``.

        Raises:
            CheckpointError: If the file cannot be written.
        """
        from lit_wsl.mapper.report import write_report

        write_report(self._last(), Path(path))

    def _inventory(self, side: str, module: nn.Module | None, params: Source | None) -> Inventory:
        if (module is None) == (params is None):
            what = "both" if module is not None else "neither"
            raise ConfigError(f"Give `{side}_module` or `{side}_params`; {what} was given.")
        if module is not None and not isinstance(module, nn.Module):
            raise ConfigError(
                f"`{side}_module` is a {type(module).__name__}, no module; pass state dicts, paths, shapes and "
                f"inventories as `{side}_params`."
            )
        inventory = take_inventory(module if module is not None else params)  # type: ignore[arg-type]
        if module is not None and self.dummy_input is not None:
            inventory = in_order_of_execution(inventory, module, self.dummy_input, side)
        if self.buffer_matching_mode == "exclude":
            inventory = inventory.without_buffers()
        return inventory

    def _match(self, weights: Weights, strategy: str) -> MappingResult:
        chosen: Strategy = "greedy" if strategy == "greedy" else "optimal"
        chosen = "shape_only" if strategy == "shape_only" else chosen
        is_registered = not (self.source.is_sorted() or self.target.is_sorted())
        rules = Rules(self.buffer_matching_mode, chosen, weights, is_registered, self._incompatible)
        units = Matcher(rules).match(self.source.weights, self.target.weights)
        settle_turns(units)
        settle_heads(units, self.source, self.target)
        return complete(units, self, strategy)

    def _last(self) -> MappingResult:
        return self._result if self._result is not None else self.suggest_mapping()


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(
            f"`{option}` is one of {', '.join(choices)}; got {value!r}. {did_you_mean(str(value), choices)}"
        )


def _checked_pairs(pairs: Iterable[tuple[str, str]] | None) -> tuple[tuple[str, str], ...]:
    found = tuple(tuple(pair) for pair in pairs or ())
    for pair in found:
        if len(pair) != 2 or not all(isinstance(name, str) and name for name in pair):
            raise ConfigError(f"`incompatible_pairs` holds pairs of names or words; got {pair!r}.")
    return tuple((one, two) for one, two in found)


def _weights(values: Mapping[str, float] | None, strategy: str) -> Weights:
    """Weights of the kinds of evidence, scaled to sum to one."""
    if strategy == "shape_only":
        return Weights(shape=0.5, name=0.0, hierarchy=0.0, order=0.5)
    if values is None:
        return Weights()
    known = Weights.__dataclass_fields__
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"`weights` has no part {name!r}. {did_you_mean(str(name), known)}")
        if not isfinite(value) or value < 0:
            raise ConfigError(f"`weights[{name}] >= 0` must hold, got {value}.")
    total = sum(values.values())
    if total <= 0:
        raise ConfigError("`weights` must not all be zero.")
    return Weights(**{name: values.get(name, 0.0) / total for name in known})
