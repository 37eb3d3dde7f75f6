"""Make methods and transforms from names and values that a user wrote, and refuse what does not fit."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from lit_wsl.errors import ConfigError, did_you_mean

_Record = TypeVar("_Record")


def build_from(cls: type[_Record], kind: str, name: str, params: Mapping[str, Any]) -> _Record:
    """Make a frozen dataclass from parameters by public name.

    Args:
        cls: A dataclass whose fields are numbers, booleans, texts, choices, lists of numbers or texts, or mappings;
            also optional, or numbers by layer.
        kind: What it is, for messages, such as ``Method``.
        name: Its registered name, for messages.
        params: Values by public name, for instance ``{"k": 20, "lambda": 0.7}``; ``-`` and ``_`` are alike.

    Raises:
        ConfigError: If a parameter is unknown, or a value has the wrong type or range.
    """
    hints = get_type_hints(cls)
    names = {public_name(f.name): f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = {}
    for given, value in params.items():
        public = spelled(given)
        if public not in names:
            raise ConfigError(f"{kind} {name!r} has no parameter {given!r}. {did_you_mean(public, names)}")
        values[names[public]] = _checked(f"`{public}` of {name!r}", value, hints[names[public]])
    return cls(**values)


def spelled(name: Any) -> str:
    """A name that a user wrote, in the one spelling of it: ``-`` and ``_`` are alike."""
    return str(name).replace("-", "_")


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a float, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: float) -> bool:
    """Whether a number is finite as a float, which an integer of hundreds of digits is not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def params_of(record: Any) -> dict[str, Any]:
    """Parameters of a method or transform under their public names."""
    return {public_name(f.name): getattr(record, f.name) for f in dataclasses.fields(record)}


def public_name(field: str) -> str:
    """Public name of a parameter: ``lam`` is written ``lambda`` everywhere outside Python code."""
    return "lambda" if field == "lam" else field


def _checked(where: str, value: Any, kind: Any) -> Any:
    """``value`` as ``kind``; ints pass as floats, booleans as neither."""
    if type(None) in get_args(kind):
        if value is None:
            return None
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is tuple:
        return _numbers(where, value)
    if get_origin(kind) is list:
        return _listed(where, value, get_args(kind)[0])
    if get_origin(kind) is dict and get_args(kind)[0] is str:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a mapping, got {value!r}.")
        return dict(value)
    if get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must map layers to lists of numbers, got {value!r}.")
        return {key: _numbers(f"{where}, layer {key}", row) for key, row in value.items()}
    if get_origin(kind) is not None:
        if value not in get_args(kind):
            raise ConfigError(f"{where} must be one of {', '.join(get_args(kind))}, got {value!r}.")
        return value
    fits = isinstance(value, int | float if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if not fits:
        raise ConfigError(f"{where} must be of type {kind.__name__}, got {value!r}.")
    if kind is float and not is_finite(value):
        raise ConfigError(f"{where} must be finite, got {value!r}.")
    return kind(value)


def _listed(where: str, value: Any, kind: type) -> list[Any]:
    """A list of texts, or of numbers."""
    if kind is float:
        return list(_numbers(where, value))
    if not isinstance(value, list | tuple) or not all(isinstance(one, kind) for one in value):
        raise ConfigError(f"{where} must be a list of texts, got {value!r}.")
    return list(value)


def _numbers(where: str, value: Any) -> tuple[float, ...]:
    """A list of finite numbers."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(map(is_number, value)):
        raise ConfigError(f"{where} must be a list of numbers, got {value!r}.")
    if not all(map(is_finite, value)):
        raise ConfigError(f"{where} must hold finite numbers, got {value!r}.")
    return tuple(float(one) for one in value)
