"""Images and conversations in LLaVA's format, for image-text models."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, RandomSampler
from transformers import LlavaOnevisionConfig

from lit_wsl.errors import ConfigError, DataError
from lit_wsl.models.image_text import keep_source, read_image_text_config
from lit_wsl.state.locate import model_dir
from lit_wsl.training.llava.collate import collate
from lit_wsl.training.llava.conversation import TemplateName, find_template
from lit_wsl.training.llava.dataset import Encoder, ImageTextRows, OnBadRow, read_good_rows
from lit_wsl.training.llava.images import read_processor
from lit_wsl.training.options import check_least
from lit_wsl.training.resumable import resumable_loader
from lit_wsl.training.tokenizer import read_tokenizer

Split = Literal["train", "validation", "test"]
_WANTED: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("test",),
}


class ImageTextData(LightningDataModule):
    """Rows of images and conversations; answers are learned, nothing else is.

    A file of rows is a ``.json`` list, a ``.jsonl`` file, a brace list ``base{a,b}.json``, or a ``.yaml`` with
    ``datasets: [{json_path, sampling_strategy}]``. Rows are read and checked when the work begins; images are opened
    when their row's turn comes.

    Args:
        model: The model that the data is for, as its module takes it: says how images are cut into tokens, and has
            tokenizer and image processor. The command line takes it from the module.
        train_file: Rows to train on.
        validation_file: Rows to validate on.
        test_file: Rows to test on and to predict.
        image_folder: What paths of images are relative to; by default the folder of the file that names them.
        tokenizer: Model whose tokenizer is used: a directory, ``package:NAME/dir``, or a hub id; by default ``model``.
        template: What stands around the texts: ``chatml`` as in LLaVA-OneVision, ``plain`` ends every answer with the
            tokenizer's end-of-text token, ``auto`` is ``chatml`` if the tokenizer knows it.
        system: System prompt; by default that of the template.
        on_bad_row: ``error`` refuses a row with faults by file and line, ``skip`` leaves it out with a warning.
        max_length: Tokens after which a row is cut, with those of its images; a row is never cut by default.
        batch_size: Rows in a batch.
        num_workers: Processes that load batches.
        seed: Seed of the training order, and of the rows that a listing's ``random:N`` takes.
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        train_file: str | None = None,
        validation_file: str | None = None,
        test_file: str | None = None,
        image_folder: Path | None = None,
        tokenizer: str | None = None,
        template: TemplateName = "auto",
        system: str | None = None,
        on_bad_row: OnBadRow = "error",
        max_length: int | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        given = {"train": train_file, "validation": validation_file, "test": test_file}
        self.files = {split: str(path) for split, path in given.items() if path is not None}
        if not self.files:
            raise ConfigError("Give `train_file`, `validation_file` or `test_file`.")
        check_least(1, batch_size=batch_size, max_length=max_length)
        check_least(0, num_workers=num_workers)
        self.model = keep_source(model)
        self.image_folder = None if image_folder is None else Path(image_folder).expanduser()
        self.tokenizer = tokenizer
        self.template: TemplateName = template
        self.system = system
        self.on_bad_row = on_bad_row
        self.max_length = max_length
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._encoder: Encoder | None = None
        self._rows: dict[str, ImageTextRows] = {}

    @property
    def encoder(self) -> Encoder:
        """What makes an example of a row.

        Raises:
            ConfigError: If configuration, tokenizer or image processor cannot be read or do not belong together.
            DataError: If the tokenizer has more ids than the model's vocabulary.
        """
        if self._encoder is None:
            config = read_image_text_config(self.model)
            directory = model_dir(self.model) if isinstance(self.model, str) else None
            tokenizer = self._read_tokenizer(config)
            template = find_template(self.template, tokenizer)
            self._encoder = Encoder(
                config,
                read_processor(config, directory),
                tokenizer,
                template,
                self.system,
                self.image_folder,
                self.max_length,
            )
        return self._encoder

    def _read_tokenizer(self, config: LlavaOnevisionConfig) -> Any:
        if self.tokenizer is None and not isinstance(self.model, str):
            raise ConfigError("The model is a configuration, which has no tokenizer; give the data a `tokenizer`.")
        directory = model_dir(self.tokenizer or str(self.model))
        tokenizer = read_tokenizer(directory)
        largest, vocabulary = max(tokenizer.get_vocab().values()), config.get_text_config().vocab_size
        if largest >= vocabulary:
            raise DataError(
                f"The tokenizer of {directory} has token id {largest}, the model a vocabulary of {vocabulary}; "
                "give the data the tokenizer of the model."
            )
        return tokenizer

    def setup(self, stage: str | None = None) -> None:
        """Read and check the rows that the stage needs, once.

        Raises:
            DataError: If a file cannot be read, or a row has faults and is not to be skipped.
            ConfigError: If the model's configuration, tokenizer or image processor cannot be used.
        """
        for split in _WANTED.get(str(stage), ("train", "validation", "test")):
            if split in self.files:
                self.rows(split)

    def rows(self, split: Split) -> ImageTextRows:
        """Rows of a split as a data set.

        Raises:
            ConfigError: If no file was given for it.
        """
        if split not in self._rows:
            if split not in self.files:
                raise ConfigError(f"No {split} rows; give `{split}_file`.")
            encoder = self.encoder
            rows = read_good_rows(self.files[split], self.image_folder, self.on_bad_row, seed=self.seed)
            self._rows[split] = ImageTextRows(rows, encoder, self.on_bad_row)
        return self._rows[split]

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches; the order depends on the seed and the epoch."""
        rows = self.rows("train")
        sampler = RandomSampler(rows, generator=torch.Generator().manual_seed(self.seed))
        return resumable_loader(rows, sampler=sampler, **self._options())

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Validation batches in the order of the file; none without a file."""
        return self._ordered("validation") if "validation" in self.files else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Test batches in the order of the file."""
        return self._ordered("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Test batches in the order of the file."""
        return self._ordered("test")

    def _ordered(self, split: Split) -> DataLoader[Any]:
        return DataLoader(self.rows(split), **self._options())

    def _options(self) -> dict[str, Any]:
        padding = self.encoder.tokenizer.pad_token_id or 0
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "collate_fn": partial(collate, padding=padding),
        }
