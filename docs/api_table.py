"""Sections on the public names: level, signature and law of each, read from the package."""

import dataclasses
import inspect
import re
from typing import Any

from config_tables import LISTED, PAGES, trainer_classes

import lit_wsl

WIDTH = 100
_MODULES = re.compile(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])")
_FIELDS = {**PAGES, "MergeSpec": PAGES["MergeConfig"]}
"""Where the fields of a record stand that has no table in the configuration reference."""


def api_sections(homes: dict[str, str]) -> str:
    """A section for each name: its signature, or where its fields are, and its law.

    Args:
        homes: Names, and the rooms that they come from.
    """
    return "\n\n".join(part for name in sorted(homes, key=str.lower) for part in _section(name))


def _section(name: str) -> list[str]:
    found = getattr(lit_wsl, name)
    law = (inspect.getdoc(found) or "").splitlines()[0].replace("``", "`")
    law = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", law)
    return [f"### {name}", f"```python\n{told_signature(name, found)}\n```", law, *_fields(name, found)]


def _fields(name: str, found: Any) -> list[str]:
    if not inspect.isclass(found):
        return []
    is_listed = f"{found.__module__}.{name}" in LISTED or any(found in some for some in trainer_classes().values())
    place = f"config_reference.md#{name.lower()}" if is_listed else _FIELDS.get(name)
    return [f"Its arguments are in the [reference]({place})."] if place else []


def told_signature(name: str, found: Any) -> str:
    """A call with the types of its arguments, on one line if it fits; of a record with a table, its name alone.

    Args:
        name: The public name.
        found: What it stands for.
    """
    if _fields(name, found) and dataclasses.is_dataclass(found):
        return f"{name}(...)"
    signature = inspect.signature(found)
    result = "" if signature.return_annotation in (inspect.Signature.empty, None) else f" -> {_result(signature)}"
    parts = [_MODULES.sub("", str(one)).replace("<factory>", "...") for one in _with_stars(signature)]
    line = f"{name}({', '.join(parts)}){result}"
    return line if len(line) <= WIDTH else "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){result}"])


def _with_stars(signature: inspect.Signature) -> list[Any]:
    """The parameters, with a star before those that go by name only."""
    parts: list[Any] = []
    for one in signature.parameters.values():
        is_first = one.kind is one.KEYWORD_ONLY and not any(str(part).startswith("*") for part in parts)
        parts += ["*", one] if is_first else [one]
    return parts


def _result(signature: inspect.Signature) -> str:
    return _MODULES.sub("", inspect.formatannotation(signature.return_annotation))
