"""The tokenizer beside a model: copied from another one, and compared by its vocabulary."""

import shutil
from pathlib import Path

from lit_wsl.errors import CheckpointError
from lit_wsl.state.formats import read_object

_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
)


def check_tokenizer(directory: Path) -> None:
    """Refuse a directory that has no tokenizer.

    Raises:
        CheckpointError: If it has none of the usual files.
    """
    if not _found(directory):
        raise CheckpointError(f"{directory} has no tokenizer, such as `tokenizer.json`; name a model that has one.")


def carry_tokenizer(source: Path, target: Path) -> None:
    """Replace the tokenizer in a directory by that of another."""
    for old in _found(target):
        old.unlink()
    for file in _found(source):
        shutil.copyfile(file, target / file.name)


def _found(directory: Path) -> list[Path]:
    """The files of a tokenizer."""
    return sorted({file for pattern in _FILES for file in directory.glob(pattern) if file.is_file()})


def vocabulary(directory: Path) -> dict[str, int] | None:
    """Tokens and their numbers; None where there is no ``tokenizer.json``.

    Raises:
        CheckpointError: If that is damaged.
    """
    file = directory / "tokenizer.json"
    if not file.is_file():
        return None
    content = read_object(file)
    try:
        given = content.get("model", {}).get("vocab") or {}
        known = given if isinstance(given, dict) else {str(entry[0]): number for number, entry in enumerate(given)}
        return {**known, **{str(token["content"]): token["id"] for token in content.get("added_tokens", [])}}
    except (AttributeError, TypeError, LookupError) as error:
        raise CheckpointError(f"{file} is no tokenizer ({error!r}); download it again.") from error
