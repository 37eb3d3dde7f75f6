"""JSON that every program reads: no NaN, no Infinity, written whole or not at all."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date
from pathlib import Path
from typing import Any

from lit_wsl.errors import CheckpointError
from lit_wsl.state.publish import published_file


def plain(value: Any) -> Any:
    """The value as JSON holds it: numbers that are not finite become null, what JSON does not know becomes text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, date):
        return value.isoformat()
    if hasattr(value, "tolist"):  # arrays and their scalars
        return plain(value.tolist())
    return str(value)


def strict_json(value: Any) -> str:
    """The value as indented strict JSON with an end of line."""
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Put strict JSON in place of a file, at once.

    Raises:
        CheckpointError: If the file cannot be written; an earlier one is then untouched.
    """
    write_text(path, strict_json(value))


def write_text(path: Path, text: str) -> None:
    """Put text in place of a file, at once.

    Raises:
        CheckpointError: If the file cannot be written; an earlier one is then untouched.
    """
    with published_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Content of a JSON file; NaN and Infinity of foreign writers become null.

    Raises:
        CheckpointError: If the file is missing or damaged. Nothing is written then.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}) and was left as it is; repair it, or move it away to start a new one."
        ) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Content of a JSON file that holds a mapping.

    Raises:
        CheckpointError: If it cannot be read, or holds anything else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} should hold a mapping, not {type(content).__name__}, and was left as it is; "
            "repair it, or move it away to start a new one."
        )
    return content
