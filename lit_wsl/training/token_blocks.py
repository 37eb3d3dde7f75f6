"""Text for language models: files joined into one stream of tokens, cut into blocks of one length."""

import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lit_wsl.errors import ConfigError, DataError
from lit_wsl.state.locate import model_dir
from lit_wsl.training.options import check_least
from lit_wsl.training.resumable import resumable_loader
from lit_wsl.training.tokenizer import read_tokenizer

BYTES = "bytes"
"""Tokenizer whose ids are the bytes of UTF-8."""

_BYTE_SEPARATOR = 0


class TokenBlockData(LightningDataModule):
    """Blocks of consecutive tokens; the last ones are for validation.

    Args:
        files: Text files in UTF-8, or patterns such as ``docs/*.md``; read in sorted order, each once.
        tokenizer: ``bytes``, or the model whose tokenizer is used: a directory, ``package:NAME/dir``, or a hub id.
        block_size: Tokens in a block, at least 2.
        batch_size: Blocks in a batch.
        validation_fraction: Fraction of the blocks for validation, in [0, 1); above 0 it is one block at least.
        num_workers: Processes that load batches.
    """

    def __init__(
        self,
        files: list[str],
        tokenizer: str = BYTES,
        block_size: int = 128,
        batch_size: int = 8,
        validation_fraction: float = 0.1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_least(2, block_size=block_size)
        check_least(1, batch_size=batch_size)
        check_least(0, num_workers=num_workers)
        if not 0 <= validation_fraction < 1:
            raise ConfigError(f"`0 <= validation_fraction < 1` must hold, got {validation_fraction}.")
        self.files = files
        self.tokenizer = tokenizer
        self.block_size = block_size
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.num_workers = num_workers
        self._blocks: Tensor | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read, tokenise and cut the text, once.

        Raises:
            ConfigError: If no file is named, or the tokenizer cannot be used.
            DataError: If a file is missing or is no text, or there is too little of it.
        """
        if self._blocks is None:
            self._blocks = self._cut(self._stream(find_files(self.files)))

    @property
    def blocks(self) -> Tensor:
        """All blocks, int32, shape ``(n, block_size)``; those for validation come last."""
        self.setup()
        assert self._blocks is not None
        return self._blocks

    @property
    def largest_id(self) -> int:
        """Largest token id in the data."""
        return int(self.blocks.max())

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of ``input_ids`` and ``labels``."""
        return self._loader(self.blocks[: len(self.blocks) - self._held_out()], shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches in the order of the text."""
        return self._loader(self.blocks[len(self.blocks) - self._held_out() :], shuffle=False)

    def _held_out(self) -> int:
        """Number of validation blocks: one at least, and one at least is left for training."""
        if not self.validation_fraction:
            return 0
        return min(max(1, round(len(self.blocks) * self.validation_fraction)), len(self.blocks) - 1)

    def _loader(self, blocks: Tensor, *, shuffle: bool) -> DataLoader[Any]:
        rows: Any = blocks  # rows of a tensor are a data set
        loader = resumable_loader if shuffle else DataLoader
        return loader(
            rows, batch_size=self.batch_size, shuffle=shuffle, collate_fn=_collate, num_workers=self.num_workers
        )

    def _stream(self, paths: list[Path]) -> Tensor:
        """All documents as one row of ids, a separator between each two."""
        texts = [_read(path) for path in paths]
        documents, separator = _bytes(texts) if self.tokenizer == BYTES else _tokenise(texts, self.tokenizer)
        between = torch.tensor([separator], dtype=torch.int32)
        return torch.cat([part for document in documents for part in (between, document)][1:])

    def _cut(self, ids: Tensor) -> Tensor:
        """Whole blocks of the stream; what is left at the end is dropped."""
        count, needed = len(ids) // self.block_size, 2 if self.validation_fraction else 1
        if count < needed:
            raise DataError(
                f"{len(ids)} tokens make {count} blocks of {self.block_size}, and {needed} are needed; "
                "give more `files`, or a smaller `block_size`."
            )
        return ids[: count * self.block_size].reshape(count, self.block_size)


def find_files(patterns: list[str]) -> list[Path]:
    """Files that the paths and patterns name, sorted, each once.

    Raises:
        ConfigError: If no pattern is given.
        DataError: If one matches no file.
    """
    if not patterns:
        raise ConfigError("`files` must name at least one file, got none.")
    found: set[Path] = set()
    for pattern in patterns:
        paths = [Path(name) for name in glob.glob(str(Path(pattern).expanduser()), recursive=True)]  # noqa: PTH207
        files = [path for path in (*paths, Path(pattern)) if path.is_file()]
        if not files:
            raise DataError(f"`files`: {pattern!r} matches no file; check the path, relative to {Path.cwd()}.")
        found.update(files)
    return sorted(found)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # line ends as they are
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({error}); leave it out of `files`.") from error


def _bytes(texts: list[str]) -> tuple[list[Tensor], int]:
    """Bytes of every text, and the one between texts."""
    bytes_of = (np.frombuffer(text.encode(), dtype=np.uint8) for text in texts)
    return [torch.from_numpy(document.astype(np.int32)) for document in bytes_of], _BYTE_SEPARATOR


def _tokenise(texts: list[str], model: str) -> tuple[list[Tensor], int]:
    """Ids of every text, and the id between texts."""
    directory = model_dir(model)
    tokenizer = read_tokenizer(directory)
    separator = tokenizer.eos_token_id
    if separator is None:
        raise ConfigError(f"The tokenizer of {directory} has no end-of-text token to put between documents.")
    ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return [torch.tensor(document, dtype=torch.int32) for document in ids], separator


def _collate(rows: list[Tensor]) -> dict[str, Tensor]:
    ids = torch.stack(rows).long()
    return {"input_ids": ids, "labels": ids.clone()}
