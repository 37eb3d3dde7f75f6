"""What is done of a comparison, line by line, so that a killed one goes on where it stood."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lit_wsl.comparing.records import Finding
from lit_wsl.errors import CheckpointError
from lit_wsl.state.fingerprint import fingerprint
from lit_wsl.state.publish import published_file

NAME = "journal.jsonl"


class Journal:
    """Findings of a comparison in a file: one line for the work, then one for each tensor.

    Args:
        directory: Existing output directory.
        work: What identifies the comparison: settings and files.
        is_resumed: Whether to go on from what is there.

    Raises:
        CheckpointError: If another comparison is to be resumed.
    """

    def __init__(self, directory: Path, work: Mapping[str, Any], *, is_resumed: bool) -> None:
        path = directory / NAME
        self.finished: dict[str, Finding] = {}
        if is_resumed and path.exists():
            earlier, lines = _read(path)
            if earlier and earlier != work:
                changed = sorted(key for key in work if earlier.get(key) != work[key])
                raise CheckpointError(
                    f"{directory} holds a comparison with other {', '.join(changed) or 'contents'}; "
                    "repeat it without `--resume`."
                )
            self.finished = {finding.name: finding for finding in lines if not finding.failed}
        with published_file(path) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(
                _line(content) for content in ({"work": work}, *(one.to_json() for one in self.finished.values()))
            )
        self._file = path.open("a", encoding="utf-8")

    def add(self, finding: Finding) -> None:
        """Record a finished tensor."""
        self.finished[finding.name] = finding
        self._file.write(_line(finding.to_json()))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content) + "\n"


def _read(path: Path) -> tuple[dict[str, Any], list[Finding]]:
    """What identifies the work, and findings; a last line that was cut off is left out."""
    try:
        first, *lines = path.read_text(encoding="utf-8").split("\n")[:-1] or ["{}"]
        return dict(dict(json.loads(first)).get("work", {})), [Finding.from_json(json.loads(line)) for line in lines]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); repeat the comparison without `--resume`.") from error


def read_journal(directory: Path) -> tuple[dict[str, Any], list[Finding]]:
    """What identifies the comparison in a directory, and its findings so far.

    Raises:
        CheckpointError: If there is none.
    """
    path = directory / NAME
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no comparison; make one with `lit-wsl compare`.")
    return _read(path)


def identity(files: Iterable[Path]) -> str:
    """Fingerprint of files by path, size and time of change."""
    return fingerprint("", files)[:16]
