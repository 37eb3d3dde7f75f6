"""The space that a sweep searches: its dimensions, its points, and when two points are one."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.merging.parameters import is_finite, is_number
from lit_wsl.sweep.outcome import Params

DECIMALS = 12
"""Floats that agree to so many decimals are one point."""
_KINDS = {
    **dict.fromkeys(("float", "continuous"), "float"),
    **dict.fromkeys(("int", "integer"), "int"),
    **dict.fromkeys(("categorical", "cat", "choice", "enum"), "categorical"),
}
_KEYS = ("type", "min", "max", "log", "scale", "values", "choices", "step")
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Dimension:
    """One searched parameter."""

    name: str
    distribution: BaseDistribution
    values: tuple[Any, ...] = ()
    """What the choices of a categorical stand for, in their order."""

    @property
    def count(self) -> float:
        """Number of values; infinite for a float."""
        if isinstance(self.distribution, CategoricalDistribution):
            return len(self.values)
        if isinstance(self.distribution, IntDistribution):
            return (self.distribution.high - self.distribution.low) // self.distribution.step + 1
        return 1 if self.distribution.single() else math.inf

    def encode(self, value: Any) -> Any:
        """The value as the study stores it.

        Raises:
            ConfigError: If it lies outside the dimension.
        """
        if isinstance(self.distribution, CategoricalDistribution):
            wanted = _text(value)
            for choice, known in zip(self.distribution.choices, self.values, strict=True):
                if _text(known) == wanted:
                    return choice
            raise ConfigError(f"`{self.name}` cannot be {value!r}; its values are {list(self.values)}.")
        if not is_number(value) or not is_finite(value):
            raise ConfigError(f"`{self.name}` must be a number, got {value!r}.")
        if isinstance(self.distribution, IntDistribution) and value != int(value):
            raise ConfigError(f"`{self.name}` must be a whole number, got {value!r}.")
        number = int(value) if isinstance(self.distribution, IntDistribution) else float(value)
        if not self.distribution._contains(number):
            low, high = self.distribution.low, self.distribution.high  # type: ignore[attr-defined]
            raise ConfigError(f"`{self.name}` must be in [{low:g}, {high:g}], got {value!r}.")
        return number

    def decode(self, stored: Any) -> Any:
        """The value that the study stored."""
        if isinstance(self.distribution, CategoricalDistribution):
            return self.values[self.distribution.choices.index(stored)]
        return stored

    def all(self) -> Sequence[Any]:
        """Every value as the study stores it, where they can be counted."""
        if isinstance(self.distribution, CategoricalDistribution):
            return self.distribution.choices
        if isinstance(self.distribution, IntDistribution):
            return range(self.distribution.low, self.distribution.high + 1, self.distribution.step)
        return [self.distribution.low]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Space:
    """The dimensions of a sweep by name."""

    dimensions: Mapping[str, Dimension]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What the samplers draw from."""
        return {name: one.distribution for name, one in self.dimensions.items()}

    @property
    def count(self) -> float:
        """Number of different points; infinite where a dimension is continuous."""
        return math.prod(one.count for one in self.dimensions.values())

    def points(self) -> Iterator[Params]:
        """Every point as the study stores it, the last dimension fastest."""
        for values in product(*(one.all() for one in self.dimensions.values())):
            yield dict(zip(self.dimensions, values, strict=True))

    def encode(self, point: Mapping[str, Any], where: str) -> Params:
        """A point as the study stores it.

        Raises:
            ConfigError: If a dimension is missing, unknown, or its value outside.
        """
        missing = [name for name in self.dimensions if name not in point]
        if missing:
            raise ConfigError(f"`{where}` lacks a value of `{missing[0]}`; it needs one of every searched parameter.")
        for name in point:
            if name not in self.dimensions:
                raise ConfigError(f"`{where}` names {name!r}. {did_you_mean(str(name), self.dimensions)}")
        try:
            return {name: one.encode(point[name]) for name, one in self.dimensions.items()}
        except ConfigError as error:
            raise ConfigError(f"`{where}`: {error}") from error

    def decode(self, stored: Mapping[str, Any]) -> Params:
        """The point that the study stored."""
        return {name: one.decode(stored[name]) for name, one in self.dimensions.items() if name in stored}


def key_of(stored: Mapping[str, Any]) -> str:
    """The same text for two points that are one."""
    rounded = {name: round(v, DECIMALS) + 0.0 if isinstance(v, float) else v for name, v in stored.items()}
    return json.dumps(rounded, sort_keys=True)


def read_grid(grid: Any) -> Space:
    """The space of a grid: every parameter has a list of values, or one."""
    if not isinstance(grid, Mapping):
        raise ConfigError(f"`search.grid` must map parameters to lists of values, got {grid!r}.")
    return Space({str(name): _choice(str(name), _listed(values)) for name, values in grid.items()})


def read_space(space: Any) -> Space:
    """The space of a search that proposes its points itself.

    Raises:
        ConfigError: If it is empty, or a dimension is incomplete.
    """
    if not isinstance(space, Mapping) or not space:
        raise ConfigError(
            "`search.space` is empty; name a parameter, such as `{lambda: {type: float, min: 0, max: 1}}`."
        )
    return Space({str(name): _dimension(str(name), one) for name, one in space.items()})


def _dimension(name: str, given: Any) -> Dimension:
    where = f"search.space.{name}"
    if not isinstance(given, Mapping):
        raise ConfigError(f"`{where}` must be a mapping such as `{{type: float, min: 0, max: 1}}`, got {given!r}.")
    for key in given:
        if key not in _KEYS:
            raise ConfigError(f"`{where}` has no key {key!r}. {did_you_mean(str(key), _KEYS)}")
    default = "categorical" if {"values", "choices"} & set(given) else "float"
    asked = str(given.get("type", default)).lower()
    if asked not in _KINDS:
        raise ConfigError(f"`{where}.type` cannot be {asked!r}. {did_you_mean(asked, _KINDS)}")
    if _KINDS[asked] == "categorical":
        values = given.get("values", given.get("choices"))
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(f"`{where}` needs `values`, a list of choices.")
        return _choice(name, list(values))
    return Dimension(name, _range(where, given, whole=_KINDS[asked] == "int"))


def _range(where: str, given: Mapping[str, Any], *, whole: bool) -> BaseDistribution:
    low, high = (_bound(where, given, name) for name in ("min", "max"))
    if not high > low:
        raise ConfigError(f"`max > min` must hold for `{where}`, got min {low} and max {high}.")
    scale = str(given.get("scale", "linear")).lower()
    if scale not in ("linear", "log"):
        raise ConfigError(f"`{where}.scale` must be linear or log, got {scale!r}.")
    if not isinstance(given.get("log", False), bool):
        raise ConfigError(f"`{where}.log` must be true or false, got {given['log']!r}.")
    log = given.get("log", False) or scale == "log"
    if log and low <= 0:
        raise ConfigError(f"`{where}` is logarithmic and needs min > 0, got {low}.")
    step = _step(where, given)
    if step is not None and log:
        raise ConfigError(f"`{where}` cannot have a step on a logarithmic scale; leave one out.")
    if not whole:
        return FloatDistribution(low, high, log=log, step=step)
    if low != int(low) or high != int(high):
        raise ConfigError(f"`{where}` is of whole numbers; its bounds must be too, got {low} and {high}.")
    if step is not None and step != int(step):
        raise ConfigError(f"`{where}` is of whole numbers; its `step` must be too, got {step}.")
    return IntDistribution(int(low), int(high), log=log, step=int(step or 1))


def _step(where: str, given: Mapping[str, Any]) -> float | None:
    step = given.get("step")
    if step is not None and not (is_number(step) and 0 < step < math.inf):
        raise ConfigError(f"`{where}.step` must be a number above 0, got {step!r}.")
    return step


def _bound(where: str, given: Mapping[str, Any], name: str) -> float:
    value = given.get(name)
    if value is None or not is_number(value) or not is_finite(value):
        raise ConfigError(f"`{where}` needs `min` and `max`, two numbers; `{name}` is {value!r}.")
    bound: float = value
    return bound


def _choice(name: str, values: list[Any]) -> Dimension:
    distinct = list({_text(value): value for value in values}.values())
    if not distinct:
        raise ConfigError(f"`{name}` has no values to try.")
    plain = all(isinstance(value, _PLAIN) for value in distinct) and len(set(distinct)) == len(distinct)
    choices = distinct if plain else [_text(value) for value in distinct]
    return Dimension(name, CategoricalDistribution(choices), tuple(distinct))


def _listed(values: Any) -> list[Any]:
    """A list of values; one value is a list of one."""
    return list(values) if isinstance(values, list | tuple) else [values]


def _text(value: Any) -> str:
    if isinstance(value, float) and not isinstance(value, bool):
        value = int(value) if value.is_integer() else round(value, DECIMALS)
    return json.dumps(value, sort_keys=True, default=str)
