"""Whether values fit the fields of a merge, as far as a file can say it."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from lit_wsl.errors import ConfigError
from lit_wsl.merging.parameters import is_number


def check_fields(cls: type[Any], content: Mapping[str, Any]) -> None:
    """Refuse values that the fields of a record cannot hold; other keys, choices and texts are left alone.

    Args:
        cls: The record, such as a :class:`~lit_wsl.merging.spec.MergeSpec`.
        content: Values by field.

    Raises:
        ConfigError: If a value has the wrong type.
    """
    hints = get_type_hints(cls)
    for name, value in content.items():
        if name in hints:
            _check(name, value, hints[name])


_KINDS: dict[Any, tuple[str, Any]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: ("a number", is_number),
    dict[str, Any]: ("a mapping", lambda value: isinstance(value, Mapping)),
    dict[str, dict]: ("a mapping", lambda value: isinstance(value, Mapping)),
    list[str]: ("a list of texts", lambda value: _is_list(value) and all(isinstance(one, str) for one in value)),
}


def _check(name: str, value: Any, hint: Any) -> None:
    is_optional = type(None) in get_args(hint)
    if value is None and is_optional:
        return
    parts = [part for part in get_args(hint) if part is not type(None)] if is_optional else [hint]
    kinds = [_KINDS[part] for part in parts if part in _KINDS]
    if any(map(_is_records, parts)):
        kinds.append(("a list of mappings", _is_list))
    is_text = str in parts and isinstance(value, str) and value
    if kinds and not is_text and not any(fits(value) for _, fits in kinds):
        wanted = " or ".join([*(told for told, _ in kinds), *(["a path"] if str in parts else [])])
        raise ConfigError(f"`{name}` must be {wanted}, got {value!r}.")
    if any(map(_is_records, parts)):
        for number, one in enumerate(value):
            if not isinstance(one, Mapping) and not is_dataclass(one):
                raise ConfigError(f"`{name}[{number}]` must be a mapping, got {one!r}.")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_records(hint: Any) -> bool:
    """Whether a type is a list of records, which stand in a file as mappings."""
    return get_origin(hint) is list and is_dataclass(get_args(hint)[0])
