"""What `inspect data` finds and prints."""

import json
import sys
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich.table import Table

from lit_wsl.cli.console import table_console
from lit_wsl.errors import DataError, WrongUsage
from lit_wsl.training.json_lines import Damaged
from lit_wsl.training.llava.rows import LocatedRow, faults_of, iter_rows

_NAMED = 20
"""Rows with faults that are named; all are counted."""
_SHOWN = 400
"""Characters of the first row that the table shows."""


@dataclass
class Rows:
    """Counts of rows, and what is wrong with some."""

    path: str
    rows: int = 0
    with_image: int = 0
    files: list[str] = field(default_factory=list)
    first: Any = None
    """The first row as it is in its file."""
    faulty: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)
    """Place and faults of the first rows that have some."""

    def add(self, row: LocatedRow, faults: list[str]) -> None:
        """Count a row."""
        content = {"damaged": row.row.reason} if isinstance(row.row, Damaged) else row.row
        if not self.rows:
            self.first = content
        if str(row.file) not in self.files:
            self.files.append(str(row.file))
        self.rows += 1
        self.with_image += isinstance(content, dict) and bool(content.get("image"))
        self.faulty += bool(faults)
        if faults and len(self.faults) < _NAMED:
            self.faults.append({"where": row.where, "faults": faults})


def show_data(path: str, image_folder: str | None, limit: int | None, *, as_json: bool) -> int:
    """Print how many rows there are, the first one, and which have faults; no image is decoded.

    Raises:
        ConfigError: If the path is of another form.
        WrongUsage: If ``limit`` is below 1.
        DataError: If a file cannot be read, there are no rows, or some have faults.
    """
    if limit is not None and limit < 1:
        raise WrongUsage(f"`limit >= 1` must hold, got {limit}.")
    folder = None if image_folder is None else Path(image_folder).expanduser()
    if folder is not None and not folder.is_dir():
        raise DataError(f"--image_folder {image_folder} is no directory; check the path.")
    found = Rows(path)
    for row in islice(iter_rows(path), limit):
        found.add(row, faults_of(row, folder))
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=2, ensure_ascii=False) + "\n")
    else:
        _print(found, limit)
    if not found.rows:
        raise DataError(f"{path} has no rows.")
    if found.faulty:
        raise DataError(
            f"{path}: {found.faulty} of {found.rows} rows have faults; mend them, or train with `on_bad_row: skip`."
        )
    return 0


def _print(found: Rows, limit: int | None) -> None:
    table = Table(show_header=False, title=found.path)
    more = ", and perhaps more" if found.rows == limit else ""
    table.add_row("rows", f"{found.rows:,}{more}; {found.with_image:,} with images")
    if len(found.files) > 1:
        table.add_row("files", "\n".join(found.files))
    if found.rows:
        text = json.dumps(found.first, ensure_ascii=False)
        table.add_row("first row", text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …")
    table.add_row("with faults", f"{found.faulty:,}")
    for row in found.faults:
        table.add_row(row["where"], "; ".join(row["faults"]))
    if found.faulty > len(found.faults):
        table.add_row("", f"and {found.faulty - len(found.faults):,} more rows")
    table_console(markup=False).print(table)
