"""Labelled texts from CSV and JSONL files; every fault is named by file and line."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_wsl.errors import DataError
from lit_wsl.training.json_lines import Damaged, is_unicode, read_json_lines


def read_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, text and label of every row of a CSV or JSONL file with columns ``text`` and ``label``.

    Raises:
        DataError: If the file cannot be read or a row is bad; the message names the line.
    """
    if path.suffix not in (".csv", ".jsonl"):
        raise DataError(f"{path}: expected a .csv or .jsonl file.")
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path.")
    rows = _read_csv(path) if path.suffix == ".csv" else _read_jsonl(path)
    try:
        for line, row in rows:
            yield line, _field(row, "text", path, line), _field(row, "label", path, line)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}); convert it.") from error


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.reader.line_num}: no CSV ({error}).") from error


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, row in read_json_lines(path):
        if isinstance(row, Damaged):
            raise DataError(f"{path}, line {line}: {row.reason}.")
        if not isinstance(row, dict):
            raise DataError(f'{path}, line {line}: expected an object {{"text", "label"}}, got {row!r:.40}.')
        yield line, row


def _field(row: Mapping[str, Any], name: str, path: Path, line: int) -> str:
    value = row.get(name)
    if value is None:
        raise DataError(f"{path}, line {line}: no {name!r}; every row needs the columns text and label.")
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(f"{path}, line {line}: {name!r} must be a non-empty text, got {value!r:.40}.")
    if not is_unicode(str(value)):
        raise DataError(f"{path}, line {line}: {name!r} has half of a surrogate pair, which is no text; mend it.")
    return str(value)
