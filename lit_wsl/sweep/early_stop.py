"""Stop a search that no longer finds anything better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_wsl.errors import ConfigError
from lit_wsl.merging.parameters import is_number
from lit_wsl.merging.settings import read_part
from lit_wsl.sweep.records import Record, best_of


@dataclass(frozen=True)
class EarlyStop:
    """When a search has ended before its budget has.

    Raises:
        ConfigError: If a value is out of range.
    """

    enabled: bool = True
    """Whether it stops at all."""
    min_evals: int = 10
    """Measured points before it may stop."""
    patience: int = 5
    """The latest points that are looked at."""
    min_score_delta: float = 1e-3
    """The best score must have grown by more than this in the latest points."""
    param_resolution: float | Mapping[str, float] | None = None
    """Or: the latest points differ from the best by no more than this, in the parameter's own unit (or by name)."""
    require_both: bool = False
    """Stop only when neither the score grows nor the points move."""

    def __post_init__(self) -> None:
        for name in ("enabled", "require_both"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    f"`{name}` must be true or false in `search.early_stop`, got {getattr(self, name)!r}."
                )
        for name in ("min_evals", "patience"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"`{name}` must be a whole number in `search.early_stop`, got {value!r}.")
        for name, least in (("min_evals", 1), ("patience", 1), ("min_score_delta", 0.0)):
            value = getattr(self, name)
            if not is_number(value) or not value >= least:
                raise ConfigError(f"`{name} >= {least}` must hold for `search.early_stop`, got {value!r}.")
        given = self.param_resolution
        for value in given.values() if isinstance(given, Mapping) else () if given is None else (given,):
            if not is_number(value) or not value >= 0:
                raise ConfigError(f"`param_resolution >= 0` must hold for `search.early_stop`, got {value!r}.")
        if self.require_both and given is None:
            raise ConfigError("`search.early_stop.require_both` needs `param_resolution`, such as 0.01.")

    def reason(self, records: Sequence[Record]) -> str | None:
        """Why to stop after these points, or None to go on."""
        measured = [one for one in records if one.is_finished and one.source in ("search", "initial")]
        if not self.enabled or len(measured) < max(self.min_evals, self.patience + 1):
            return None
        best, before = best_of(measured), best_of(measured[: -self.patience])
        if best is None or before is None:
            return None
        assert best.score is not None
        assert before.score is not None
        flat = best.score - before.score <= self.min_score_delta
        still = self._still(measured[-self.patience :], best)
        if (flat and still) if self.require_both else (flat or still):
            told = [f"the best score grew by {best.score - before.score:.3g}"] if flat else []
            told += ["the points no longer moved"] if still else []
            return f"in the latest {self.patience} points {' and '.join(told)}"
        return None

    def _still(self, latest: Sequence[Record], best: Record) -> bool:
        given = self.param_resolution
        if given is None:
            return False
        return all(
            abs(value - best.params[name]) <= (given.get(name, 0.0) if isinstance(given, Mapping) else given)
            if is_number(value) and is_number(best.params[name])
            else value == best.params[name]
            for one in latest
            for name, value in one.params.items()
        )


def read_early_stop(given: Any) -> EarlyStop | None:
    """The early stop of a configuration, or None.

    Raises:
        ConfigError: If it has unknown keys, or values out of range.
    """
    if given is None or given is False:
        return None
    if given is True:
        return EarlyStop()
    return read_part(EarlyStop, given, "search.early_stop")
