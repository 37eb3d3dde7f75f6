"""JSON Lines: the value on each line, and what is wrong with a line that holds none."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Damaged:
    """A line that holds no JSON."""

    reason: str


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of every line that is not empty; :class:`Damaged` stands for one that is no JSON.

    Raises:
        UnicodeDecodeError: If the file is no UTF-8 text.
    """
    with path.open(encoding="utf-8-sig") as file:
        for line, content in enumerate(file, start=1):
            if content.strip():
                yield line, _value(content)


def is_unicode(text: str) -> bool:
    """Whether a text of JSON can be tokenised: half of a surrogate pair, which JSON can name, stands for nothing."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _value(content: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        return Damaged(f"no JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of too many digits, or lists in lists
        return Damaged(f"no JSON that can be read ({error})")
