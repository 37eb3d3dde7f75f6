"""Remembers the finished parts of a long job, so that an interrupted one can go on."""

import json
from pathlib import Path
from typing import Any

from lit_wsl.errors import ConfigError


class FinishedParts:
    """A small JSON file of finished parts, replaced whole at every change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.loads(path.read_text()) if path.exists() else {}
        except OSError as error:
            raise ConfigError(f"{path.parent} cannot be used ({error.strerror}); pass another `--output`.") from error
        except (ValueError, RecursionError):
            content = {}
        # a damaged record only costs a repetition
        self._content: dict[str, Any] = content if isinstance(content, dict) else {}

    def get(self, key: str) -> Any:
        """What was put under ``key``, or None."""
        return self._content.get(key)

    def put(self, key: str, value: Any) -> None:
        """Remember a JSON value."""
        self._content[key] = value
        scratch = self._path.with_name(self._path.name + ".partial")
        scratch.write_text(json.dumps(self._content, indent=1))
        scratch.replace(self._path)
