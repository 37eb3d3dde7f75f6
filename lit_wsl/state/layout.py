"""Which file of a checkpoint holds which tensors, so that it can be written again in the same files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_wsl.errors import CheckpointError
from lit_wsl.state.formats import strip_wrappers
from lit_wsl.state.reader import INDEX_NAMES, TORCH_SUFFIXES, StateReader, open_state
from lit_wsl.state.safetensors import SafetensorsFile


@dataclass(frozen=True)
class Layout:
    """Where the tensors of an opened checkpoint lie."""

    reader: StateReader
    folder: Path
    shards: dict[Path, list[str]]
    """Tensor names by the file that holds them."""
    index: Path | None
    """The index of a sharded checkpoint."""
    is_directory: bool
    """Whether a model directory was opened, not one file of it."""

    @classmethod
    def of(cls, path: Path) -> "Layout":
        """Open a checkpoint by its headers.

        Raises:
            CheckpointError: If it cannot be read.
        """
        reader = open_state(path)
        index = index_of(path)
        folder = path if path.is_dir() else path.parent
        shards: dict[Path, list[str]] = {file: [] for file in reader.files()}
        homes = _torch_homes(index) if index else {}
        for name in reader.keys():
            shards[reader.info(name).file or homes.get(name, reader.files()[0])].append(name)
        return cls(reader, folder, shards, index, path.is_dir() or index is not None)

    @property
    def is_torch(self) -> bool:
        """Whether the files are pickles of torch, which are read but not written."""
        return any(file.suffix in TORCH_SUFFIXES for file in self.shards)

    @property
    def entry(self) -> Path:
        """The file that a reader opens first: the index, or the only file."""
        return self.index or next(iter(self.shards))

    def metadata(self, file: Path) -> dict[str, str]:
        """Metadata of a file's header."""
        return {} if file.suffix in TORCH_SUFFIXES else SafetensorsFile(file).metadata

    def placed(self, folder: Path) -> dict[Path, Path]:
        """Where each shard goes in another folder, as a safetensors file.

        Raises:
            CheckpointError: If two would be one file.
        """
        made = {file: folder / _safetensors_name(file.relative_to(self.folder)) for file in self.shards}
        if len(set(made.values())) < len(made):
            raise CheckpointError(f"{self.folder} has shards whose names differ only in their end; rename one.")
        return made

    def identities(self) -> list[tuple[int, int, int]]:
        """What changes when a file is replaced.

        Raises:
            CheckpointError: If a file is gone.
        """
        try:
            found = [file.stat() for file in self.shards]
        except OSError as error:
            raise CheckpointError(f"{error.filename} is gone ({error.strerror}); open the checkpoint again.") from error
        return [(status.st_ino, status.st_mtime_ns, status.st_size) for status in found]


def read_index(index: Path) -> dict[str, Any]:
    """Content of an index that was opened before."""
    content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
    return content


def named_files(index: Path) -> set[Path]:
    """The shards that an index names."""
    return {index.parent / file for file in read_index(index)["weight_map"].values()}


def index_of(path: Path) -> Path | None:
    """The index that a path is, or that its directory has."""
    if not path.is_dir():
        return path if path.name.endswith(".index.json") else None
    return next((path / name for name in INDEX_NAMES if (path / name).exists()), None)


def _torch_homes(index: Path) -> dict[str, Path]:
    return {strip_wrappers(name): index.parent / file for name, file in read_index(index)["weight_map"].items()}


def _safetensors_name(file: Path) -> Path:
    if file.suffix == ".safetensors":
        return file
    return file.with_name(f"{file.stem.replace('pytorch_model', 'model')}.safetensors")
