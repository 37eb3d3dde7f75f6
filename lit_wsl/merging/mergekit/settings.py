"""Values of parameters as mergekit writes them: numbers, gradients over depth, and lists with filters on names."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_wsl.errors import ConfigError, did_you_mean

Setting = float | bool | tuple[float, ...]
"""A value, or anchors that are spread evenly over the depth."""


@dataclass(frozen=True)
class Choice:
    """A value for the parameters whose names hold a text; for all without one."""

    value: Setting
    filter: str | None = None

    def holds(self, name: str) -> bool:
        """Whether it is meant for a parameter: names are searched as plain text."""
        return self.filter is None or self.filter in name


Choices = list[Choice]


def read_choices(value: Any, where: str) -> Choices:
    """A value of a parameter as ordered choices, of which the first that holds decides.

    Raises:
        ConfigError: If it cannot be read.
    """
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not any(isinstance(one, Mapping) for one in value):
        return [Choice(_setting(value, where))]
    return [_choice(one, f"{where}[{i}]") for i, one in enumerate(value)]


def _choice(value: Any, where: str) -> Choice:
    if not isinstance(value, Mapping) or "value" not in value:
        raise ConfigError(f"`{where}` must be a mapping with `value`, and `filter` if it does not hold everywhere.")
    for key in value:
        if key not in ("value", "filter"):
            raise ConfigError(f"`{where}` has no key {key!r}. {did_you_mean(str(key), ('value', 'filter'))}")
    text = value.get("filter")
    return Choice(_setting(value["value"], f"{where}.value"), None if text in (None, "*") else str(text))


def _setting(value: Any, where: str) -> Setting:
    if isinstance(value, bool):
        return value
    if isinstance(value, list | tuple) and value and not any(isinstance(one, bool) for one in value):
        return tuple(_number(one, where) for one in value)
    return _number(value, where)


def _number(value: Any, where: str) -> float:
    """A number; also one such as ``1e-5``, which YAML reads as text."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"`{where}` must be a number, a list of numbers, or a list with filters, got {value!r}."
        ) from error
    if not math.isfinite(number):
        raise ConfigError(f"`{where}` must be finite, got {value!r}.")
    return number


def first_that_holds(choices: Iterable[Choice], name: str) -> Setting | None:
    """The value for a parameter of the model, or None."""
    return next((choice.value for choice in choices if choice.holds(name)), None)


def at_depth(setting: Setting, t: float) -> float | bool:
    """A value at a depth.

    Args:
        setting: A value or anchors.
        t: 0 for the first layer, 1 for the last.
    """
    if not isinstance(setting, tuple):
        return setting
    position = t * (len(setting) - 1)
    lower = int(position)
    low, high = setting[lower], setting[min(lower + 1, len(setting) - 1)]
    return low + (position - lower) * (high - low)
