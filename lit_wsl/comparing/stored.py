"""Plain values read back from JSON, checked against what a dataclass declares."""

from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_LARGEST = 1 << 1023
"""Whole numbers beyond it are no float."""


def stored_fields(cls: type, content: Any) -> dict[str, Any]:
    """Values of the fields of a dataclass, all of the declared types; what it does not declare is left out.

    Raises:
        TypeError: If the content is no mapping, or a value is of another type.
    """
    if not isinstance(content, dict):
        raise TypeError(f"{content!r:.60} stands where the fields of {cls.__name__} should")
    found = {one.name: content[one.name] for one in fields(cls) if one.name in content}
    check_types(found, get_type_hints(cls))
    return found


def check_types(values: dict[str, Any], types: dict[str, Any]) -> None:
    """Refuse a value that is not of its type.

    Raises:
        TypeError: If there is one.
    """
    for name, value in values.items():
        if not _is_of(types[name], value):
            raise TypeError(f"`{name}` is {value!r:.60}")


def _is_of(declared: Any, value: Any) -> bool:
    origin, inner = get_origin(declared), get_args(declared)
    if origin in (Union, UnionType):
        return any(_is_of(one, value) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is list:
        return isinstance(value, list) and all(_is_of(inner[0], one) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_of(inner[1], one) for one in value.values())
    if declared in (float, int):
        is_number = isinstance(value, declared | int) and not isinstance(value, bool)
        return is_number and (isinstance(value, float) or -_LARGEST < value < _LARGEST)
    return isinstance(value, NoneType if declared is None else declared)
