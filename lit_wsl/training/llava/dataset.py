"""Rows of LLaVA's format as a data set: read and checked at once, tokenised and decoded one by one."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import LlavaOnevisionConfig

from lit_wsl.errors import DataError
from lit_wsl.tensors.objectives import IGNORED
from lit_wsl.training.llava.collate import Example
from lit_wsl.training.llava.conversation import Template, encode
from lit_wsl.training.llava.images import image_tokens, open_image
from lit_wsl.training.llava.rows import LocatedRow, faults_of, image_paths, iter_rows

logger = logging.getLogger(__name__)

OnBadRow = Literal["error", "skip"]
_REMEDY = "mend it, or set `on_bad_row: skip`"


def read_good_rows(
    path: str | Path, image_folder: Path | None, on_bad_row: OnBadRow, *, seed: int = 0
) -> list[LocatedRow]:
    """Rows without faults.

    Args:
        path: As :func:`iter_rows` takes it.
        image_folder: What paths of images are relative to; by default the folder of each row's file.
        on_bad_row: ``error`` refuses a row with faults, ``skip`` leaves it out with a warning.
        seed: Chooses the rows of a listing's ``random:N``.

    Raises:
        DataError: If a row has faults and is not to be skipped, or no row is left.
    """
    good: list[LocatedRow] = []
    first, bad = "", 0
    for row in iter_rows(path, seed=seed):
        faults = faults_of(row, image_folder)
        if not faults:
            good.append(row)
            continue
        told = f"{row.where}: {'; '.join(faults)}"
        if on_bad_row == "error":
            raise DataError(f"{told}; {_REMEDY}.")
        first, bad = first or told, bad + 1
    if bad:
        logger.warning("%s: %d of %d rows are left out, the first %s.", path, bad, bad + len(good), first)
    if not good:
        raise DataError(f"{path} has no rows." if not bad else f"{path} has no good row, the first bad one {first}.")
    return good


@dataclass(frozen=True)
class Encoder:
    """Makes an example of a row."""

    config: LlavaOnevisionConfig
    processor: Any
    tokenizer: Any
    template: Template
    system: str | None = None
    """System prompt; None for the template's."""
    image_folder: Path | None = None
    """By default the folder of the row's file."""
    max_length: int | None = None
    """Tokens after which a row is cut."""

    def __call__(self, row: LocatedRow) -> Example:
        """Open the images, tokenise the texts.

        Raises:
            DataError: If an image cannot be decoded, or the row is cut before its images end or an answer begins.
        """
        folder = row.file.parent if self.image_folder is None else self.image_folder
        images = [open_image(path) for path in image_paths(row.row, folder)]
        pixels = self.processor([images], return_tensors="pt") if images else {}
        image_id = self.config.image_token_id
        lengths = [image_tokens((i.height, i.width), self.config, alone=len(images) == 1) for i in images]
        ids, labels = encode(
            row.row["conversations"],
            self.tokenizer,
            self.template,
            system=self.system,
            image_id=image_id,
            images=lengths,
        )
        ids, labels = ids[: self.max_length], labels[: self.max_length]
        if ids.count(image_id) != sum(lengths):
            raise DataError(f"`max_length` {self.max_length} ends within its images")
        if all(label == IGNORED for label in labels[1:]):
            raise DataError(f"`max_length` {self.max_length} ends before an answer begins")
        return Example(ids, labels, pixels.get("pixel_values"), pixels.get("image_sizes"))


class ImageTextRows(torch.utils.data.Dataset[Example]):
    """Examples of rows, made when they are asked for.

    Args:
        rows: Without faults.
        encoder: Makes the examples.
        on_bad_row: What to do with a row whose image cannot be decoded, or that is too long: ``skip`` takes the next
            row that can be used in its place.
    """

    def __init__(self, rows: Sequence[LocatedRow], encoder: Encoder, on_bad_row: OnBadRow = "error") -> None:
        self.rows = rows
        self.encoder = encoder
        self.on_bad_row = on_bad_row

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        told = ""
        for distance in range(len(self.rows)):
            row = self.rows[(index + distance) % len(self.rows)]
            try:
                return self.encoder(row)
            except DataError as error:
                if self.on_bad_row == "error":
                    raise DataError(f"{row.where}: {error}; {_REMEDY}.") from error
                told = told or f"{row.where}: {error}"
                logger.warning("%s: %s; the next row takes its place.", row.where, error)
        raise DataError(f"No row can be used, the first: {told}.")
