"""Reads the tokenizer of a model."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from lit_wsl.errors import ConfigError

_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


def has_tokenizer(directory: Path) -> bool:
    """Whether a model directory holds files of a tokenizer."""
    return any((directory / name).is_file() for name in _FILES)


def read_tokenizer(directory: Path) -> Any:
    """The tokenizer in a model directory.

    Raises:
        ConfigError: If there is none; transformers would make one that knows no word from `config.json` alone.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory) if has_tokenizer(directory) else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(_told(directory, f" that can be read ({' '.join(str(error).split()):.200})")) from error
    if tokenizer is None:
        raise ConfigError(_told(directory, ""))
    return tokenizer


def _told(directory: Path, why: str) -> str:
    return f"{directory} has no tokenizer{why}; copy the tokenizer's files there, or name a model that has one."
