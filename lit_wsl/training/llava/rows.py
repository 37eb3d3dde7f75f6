"""Rows in LLaVA's format, one at a time, and what is wrong with a row; no image is decoded.

A row is ``{"id", "image": PATH or [PATH, ...], "conversations": [{"from": "human" or "gpt", "value": TEXT}, ...]}``
with one ``<image>`` in the text of a human turn for each image; a row without images is text alone.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_wsl.errors import DataError, did_you_mean
from lit_wsl.training.json_lines import Damaged, is_unicode, read_json_lines
from lit_wsl.training.llava.listing import Sampling, Source, find_sources

IMAGE = "<image>"
"""Stands in the text where an image is seen."""
VIDEO = "<video>"
HUMAN, GPT = ROLES = ("human", "gpt")
"""Who asks and who answers; only answers are learned."""

_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class LocatedRow:
    """A row and where it stands.

    Args:
        file: The file it is in.
        number: Its line in a ``.jsonl`` file; its element, counted from 1, in a ``.json`` list.
        row: What stands there: an object if the row is good; :class:`Damaged` if it is no JSON.
        line: Line on which it starts.
    """

    file: Path
    number: int
    row: Any
    line: int

    @property
    def where(self) -> str:
        """File and line, for messages; of a list the element too."""
        if self.file.suffix == ".jsonl":
            return f"{self.file}, line {self.line}"
        return f"{self.file}, row {self.number} (line {self.line})"


def iter_rows(path: str | Path, *, seed: int = 0) -> Iterator[LocatedRow]:
    """Every row behind a path, parsed one at a time, whether it is good or not.

    Args:
        path: A ``.json`` list, a ``.jsonl`` file, a brace list ``base{a,b}.json``, or a ``.yaml`` listing.
        seed: Chooses the rows of a listing's ``random:N``.

    Raises:
        ConfigError: If the path is of another form, or a sampling strategy is none.
        DataError: If a file is missing, is no text, or is a list that is damaged.
    """
    for source in find_sources(path):
        yield from _sampled(source, seed)


def image_paths(row: Mapping[str, Any], image_folder: Path) -> list[Path]:
    """Files of a good row's images, in order."""
    images = row.get("image")
    names = [] if images is None else [images] if isinstance(images, str) else images
    return [image_folder / _expanded(name) for name in names]


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # the home of a user that there is not
        return Path(name)


def faults_of(row: LocatedRow, image_folder: Path | None = None) -> list[str]:
    """What is wrong with a row, one text per fault; none if it is good.

    Args:
        row: From :func:`iter_rows`.
        image_folder: What paths of images are relative to; by default the folder of the row's file. Files are looked
            for, not opened.
    """
    content = row.row
    if isinstance(content, Damaged):
        return [content.reason]
    if not isinstance(content, dict):
        return [f"a row must be an object with `conversations`, got {content!r:.40}"]
    turns = content.get("conversations")
    if not isinstance(turns, list) or not turns:
        return ["`conversations` is empty" if turns == [] else f"`conversations` must be a list, got {turns!r:.40}"]
    faults = [fault for number, turn in enumerate(turns, start=1) for fault in _faults_of_turn(turn, number)]
    if not any(isinstance(turn, dict) and turn.get("from") == GPT for turn in turns):
        faults.append("no turn is of 'gpt', so there is no answer to learn")
    return faults + _faults_of_images(content, turns, row.file.parent if image_folder is None else image_folder)


def _faults_of_turn(turn: Any, number: int) -> list[str]:
    if not isinstance(turn, dict):
        return [f"turn {number} must be an object with `from` and `value`, got {turn!r:.40}"]
    role, text = turn.get("from"), turn.get("value")
    faults = []
    if role not in ROLES:
        faults.append(f"turn {number} has the unknown role {role!r}. {did_you_mean(str(role), ROLES)}".rstrip("."))
    if not isinstance(text, str):
        return [*faults, f"turn {number} has no text as `value`, got {text!r:.40}"]
    if not is_unicode(text):
        faults.append(f"turn {number} has half of a surrogate pair, which is no text")
    if role == GPT and not text.strip():
        faults.append(f"turn {number} is an empty answer")
    if role != HUMAN and IMAGE in text:
        faults.append(f"turn {number} has {IMAGE} outside a human turn")
    if VIDEO in text:
        faults.append(f"turn {number} has {VIDEO}, and videos are not read")
    return faults


def _faults_of_images(content: Mapping[str, Any], turns: list[Any], folder: Path) -> list[str]:
    if content.get("video") is not None:
        return ["`video` is not read; list frames of it as `image`"]
    images = content.get("image")
    if not (images is None or isinstance(images, str) or _is_texts(images)):
        return [f"`image` must be a path or a list of paths, got {images!r:.40}"]
    paths = image_paths(content, folder)
    faults = [f"image {path} does not exist" for path in paths if not _is_file(path)]
    texts = (turn.get("value") for turn in turns if isinstance(turn, dict))
    places = sum(text.count(IMAGE) for text in texts if isinstance(text, str))
    if places != len(paths):
        faults.append(f"{places} {IMAGE} in the text for {len(paths)} images")
    return faults


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _sampled(source: Source, seed: int) -> Iterator[LocatedRow]:
    if source.sampling == Sampling():
        yield from _read(source.file)
        return
    total = sum(1 for _ in _read(source.file))
    chosen = source.sampling.chosen(total, seed)
    yield from (row for position, row in enumerate(_read(source.file)) if position in chosen)


def _read(path: Path) -> Iterator[LocatedRow]:
    try:
        yield from _read_lines(path) if path.suffix == ".jsonl" else _read_list(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); convert it.") from error


def _read_lines(path: Path) -> Iterator[LocatedRow]:
    for line, row in read_json_lines(path):
        yield LocatedRow(path, line, row, line)


def _read_list(path: Path) -> Iterator[LocatedRow]:
    """Elements of a JSON list, decoded one after the other, so that each is known by its line."""
    text = path.read_text(encoding="utf-8-sig")
    start = _after_space(text, 0)
    if text[start : start + 1] != "[":
        raise DataError(f"{path} is no JSON list of rows; one row per line needs the ending .jsonl.")
    line, counted = 1, 0
    try:
        for number, (begin, row) in enumerate(_elements(text, start + 1), start=1):
            line, counted = line + text.count("\n", counted, begin), begin
            yield LocatedRow(path, number, row, line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: no JSON ({error.msg} at column {error.colno}).") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, or lists in lists
        raise DataError(f"{path}, behind line {line}: no JSON that can be read ({error}).") from error


def _elements(text: str, position: int) -> Iterator[tuple[int, Any]]:
    """Where each element of a list begins, and the element; ``position`` is behind the opening bracket."""
    decoder, position = json.JSONDecoder(), _after_space(text, position)
    if text[position : position + 1] == "]":
        return
    while True:
        element, end = decoder.raw_decode(text, position)
        yield position, element
        end = _after_space(text, end)
        if text[end : end + 1] == "]":
            return
        if text[end : end + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
        position = _after_space(text, end + 1)


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()
