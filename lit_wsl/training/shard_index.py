"""The index of a sharded checkpoint, which says where each tensor is: a pickle, read without running code."""

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta

from lit_wsl.errors import CheckpointError

_INDEX = ".metadata"
_RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},
}
"""Module to the names in it that an index is made of, beside dtypes and sizes."""
_DAMAGED = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, ImportError)
"""What pickle raises on a file that is cut off or garbled."""


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_value = module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype))
        if is_value or name in _RECORDS.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointError(f"would run code (`{module}.{name}`)")


class ShardReader(dcp.FileSystemReader):
    """Reads the tensors of a sharded checkpoint; its index runs no code."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The index of the directory."""
        metadata = read_index(Path(self.path))
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def read_index(path: Path) -> Metadata:
    """The index of a sharded checkpoint.

    Raises:
        CheckpointError: If it is missing, damaged, would run code, or names a file that is not in the directory.
    """
    try:
        with (path / _INDEX).open("rb") as file:
            metadata = _IndexUnpickler(file).load()
        names = {str(info.relative_path) for info in metadata.storage_data.values()}
    except CheckpointError as error:
        raise CheckpointError(f"{path / _INDEX} {error}; do not trust this checkpoint.") from None
    except OSError as error:
        raise CheckpointError(
            f"{path / _INDEX} cannot be read ({error.strerror}); use an earlier checkpoint."
        ) from error
    except _DAMAGED as error:
        raise CheckpointError(f"{path / _INDEX} is damaged ({error}); use an earlier checkpoint.") from error
    for name in sorted(names):
        if Path(name).name != name or not (path / name).is_file():
            raise CheckpointError(f"{path} has no file {name!r}, which its index names; copy the whole directory.")
    return metadata


def check_runs_no_code(path: Path) -> None:
    """Refuse a sharded checkpoint with values that torch would run as code while it restores an optimizer.

    Raises:
        CheckpointError: If there is one, or the index cannot be read.
    """
    metadata = read_index(path)
    for entry, info in metadata.storage_data.items():
        if not isinstance(metadata.state_dict_metadata.get(entry.fqn), BytesStorageMetadata):
            continue
        with (path / info.relative_path).open("rb") as file:
            file.seek(info.offset)
            value = file.read(info.length)
        try:
            torch.load(io.BytesIO(value), weights_only=True)
        except (*_DAMAGED, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: {entry.fqn!r} is damaged or would run code; use an earlier checkpoint."
            ) from error


@contextmanager
def told_as_damage(path: Path) -> Iterator[None]:
    """Tell what torch says of shards that it cannot read in one line.

    Raises:
        CheckpointError: If it cannot.
    """
    try:
        yield
    except CheckpointException as error:
        cause = next((cause for cause, _ in error.failures.values()), error)
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise CheckpointError(f"{path}: its shards cannot be read ({reason}); use an earlier checkpoint.") from error
