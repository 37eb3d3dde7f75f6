"""Open any checkpoint and read one tensor at a time."""

import json
import pickle
import re
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_wsl.errors import CheckpointError, did_you_mean
from lit_wsl.state.beginnings import fault_of, known_fault
from lit_wsl.state.formats import strip_wrappers, unwrap
from lit_wsl.state.safetensors import SafetensorsFile
from lit_wsl.state.safetensors import TensorInfo as TensorInfo

TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
INDEX_NAMES = (
    "model.safetensors.index.json",
    "adapter_model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "adapter_model.bin.index.json",
)
_DAMAGED = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)
"""What torch and pickle raise on a file that is cut off or garbled."""
_ATTEMPTS = 20
_FOREIGN = re.compile(r"(?:GLOBAL|global|function|class|type):? `?(?!GLOBAL)([\w.]+)")
SINGLE_NAMES = (
    "model.safetensors",
    "adapter_model.safetensors",
    "delta.safetensors",
    "pytorch_model.bin",
    "adapter_model.bin",
)


class StateReader(ABC):
    """Names, shapes and tensors of one checkpoint; opening reads no tensor."""

    where: str
    """Path or description, for messages."""

    @abstractmethod
    def keys(self) -> list[str]:
        """Tensor names in file order."""

    @abstractmethod
    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a tensor, without reading it."""

    @abstractmethod
    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Tensor ``name``, or its rows ``[start, stop)``. Treat it as read-only: it may be a view of the file."""

    def files(self) -> list[Path]:
        """Files that hold the tensors; empty for a checkpoint in memory."""
        return []

    def __contains__(self, name: str) -> bool:
        return name in self.keys()


class SafetensorsReader(StateReader):
    """Tensors of one safetensors file, or of the shards that an index names."""

    def __init__(self, where: Path, shards: list[SafetensorsFile]) -> None:
        self.where = str(where)
        self._home: dict[str, SafetensorsFile] = {}
        self._shards = shards
        for shard in shards:
            for name in shard.infos:
                if name in self._home:
                    raise _in_two(where, name, self._home[name].path, shard.path)
                self._home[name] = shard

    def keys(self) -> list[str]:
        """Tensor names in file order."""
        return list(self._home)

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a tensor, without reading it."""
        return self._find(name).infos[name]

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Tensor ``name``, or its rows ``[start, stop)``, as a view of the mapped file."""
        tensor = self._find(name).read(name)
        return tensor if rows is None else tensor[rows[0] : rows[1]]

    def files(self) -> list[Path]:
        """The shard files."""
        return [shard.path for shard in self._shards]

    def __contains__(self, name: str) -> bool:
        return name in self._home

    def _find(self, name: str) -> SafetensorsFile:
        if name not in self._home:
            raise CheckpointError(f"{self.where} has no tensor {name!r}. {did_you_mean(name, self._home)}")
        return self._home[name]


class MemoryReader(StateReader):
    """Tensors of a state dict in memory (or of a memory-mapped torch file)."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str = "state dict", files: Sequence[Path] = ()) -> None:
        self.where = where
        self._tensors = tensors
        self._files = list(files)

    def keys(self) -> list[str]:
        """Tensor names in their order."""
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a tensor."""
        tensor = self._find(name)
        return TensorInfo(tuple(tensor.shape), tensor.dtype)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Tensor ``name``, or its rows ``[start, stop)``, detached."""
        tensor = self._find(name).detach()
        return tensor if rows is None else tensor[rows[0] : rows[1]]

    def files(self) -> list[Path]:
        """The torch files behind the tensors, if any."""
        return self._files

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def _find(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self.where} has no tensor {name!r}. {did_you_mean(name, self._tensors)}")
        return self._tensors[name]


def open_state(source: str | Path | Mapping[str, Tensor]) -> StateReader:
    """Open a checkpoint for reading, whatever its container.

    Args:
        source: A safetensors file, a torch file (``.bin .pt .pth .ckpt``), a directory with either (sharded or
            not), an index file, or a state dict in memory.

    Raises:
        CheckpointError: If nothing is there, the container is damaged or would run code.
    """
    if isinstance(source, Mapping):
        return MemoryReader(source)
    path = Path(source)
    if path.is_dir():
        return _open_directory(path)
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}; check the path.")
    if path.name.endswith(".index.json"):
        return _open_index(path)
    if path.suffix == ".safetensors":
        return SafetensorsReader(path, [_open_safetensors(path)])
    if path.suffix in TORCH_SUFFIXES:
        return MemoryReader(_load_torch(path), str(path), [path])
    raise CheckpointError(
        f"{path} is no checkpoint; expected .safetensors, {', '.join(TORCH_SUFFIXES)}, an index or a directory."
    )


def holds_weights(directory: Path) -> bool:
    """Whether a directory has a file of weights, which need not be readable."""
    if any((directory / name).exists() for name in (*INDEX_NAMES, *SINGLE_NAMES)):
        return True
    return any(path.suffix in (".safetensors", *TORCH_SUFFIXES) for path in directory.iterdir())


def _open_safetensors(path: Path) -> SafetensorsFile:
    """Open a safetensors file; of one that is something else, say what."""
    try:
        return SafetensorsFile(path)
    except CheckpointError as error:
        fault = None if isinstance(error.__cause__, OSError) else known_fault(path)
        if fault is None:
            raise
        raise CheckpointError(f"{path} cannot be read {fault}.") from error


def _open_directory(directory: Path) -> StateReader:
    for name in INDEX_NAMES:
        if (directory / name).exists():
            return _open_index(directory / name)
    for name in SINGLE_NAMES:
        if (directory / name).exists():
            return open_state(directory / name)
    found = sorted(p for p in directory.iterdir() if p.suffix in (".safetensors", *TORCH_SUFFIXES))
    if len(found) == 1:
        return open_state(found[0])
    what = f"{len(found)} weight files but no index" if found else "no weight file"
    raise CheckpointError(f"{directory} has {what}; name the file to read, or check the path.")


def _open_index(index: Path) -> StateReader:
    """Open every shard that an index names; the index must agree with the shards and stay inside its folder."""
    weight_map = _read_weight_map(index)
    files = list(dict.fromkeys(weight_map.values()))
    paths = [shard_path(index, file) for file in files]
    if paths and paths[0].suffix in TORCH_SUFFIXES:
        weight_map = {strip_wrappers(name): file for name, file in weight_map.items()}  # as in the tensors' own names
        return _checked_against(index, weight_map, MemoryReader(_load_shards(index, paths), str(index.parent), paths))
    return _checked_against(index, weight_map, SafetensorsReader(index.parent, list(map(_open_safetensors, paths))))


def _load_shards(index: Path, paths: Sequence[Path]) -> dict[str, Tensor]:
    """State dict of several torch files."""
    merged: dict[str, Tensor] = {}
    homes: dict[str, Path] = {}
    for path in paths:
        part = _load_torch(path)
        if common := merged.keys() & part.keys():
            raise _in_two(index.parent, min(common), homes[min(common)], path)
        merged |= part
        homes |= dict.fromkeys(part, path)
    return merged


def _in_two(where: Path, name: str, one: Path, other: Path) -> CheckpointError:
    return CheckpointError(
        f"{where}: tensor {name!r} is in {one.name} and in {other.name}; remove the shards of an older save."
    )


def _read_weight_map(index: Path) -> dict[str, str]:
    if not index.is_file():  # a pipe would be waited for
        raise CheckpointError(f"{index} is no regular file; download or write it again.")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = "it has no `weight_map`" if isinstance(error, (KeyError, TypeError)) else str(error)
        raise CheckpointError(f"{index} is no weight index ({reason}); download or write it again.") from error
    pairs = weight_map.items() if isinstance(weight_map, dict) else ()
    if not pairs or not all(isinstance(file, str) for _, file in pairs):
        raise CheckpointError(f"{index}: `weight_map` must map tensor names to files; write it again.")
    return weight_map


def shard_path(index: Path, file: str) -> Path:
    """Path of a shard, which must lie in the folder of its index.

    Raises:
        CheckpointError: If it lies elsewhere, or is missing.
    """
    relative = Path(file)
    if relative.is_absolute() or ".." in relative.parts or "\\" in file or "\0" in file:
        raise CheckpointError(f"{index} names {file!r}, a file outside its own directory; do not trust it.")
    path = index.parent / relative
    if not path.is_file():
        raise CheckpointError(f"{index.parent}: shard {file!r} of {index.name} is missing; download it again.")
    return path


def _checked_against(index: Path, weight_map: dict[str, str], reader: StateReader) -> StateReader:
    lost = [name for name in weight_map if name not in reader]
    if lost:
        raise CheckpointError(
            f"{index} names {len(lost)} tensors that its shards lack, first {lost[0]!r}; download it again."
        )
    return reader


def read_torch_file(path: Path) -> Any:
    """What a torch file holds: mapped, never executed.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds objects that would run code.
    """
    try:
        for _ in range(_ATTEMPTS):
            before = _identity(path)
            mapped = zipfile.is_zipfile(path)  # the old, unzipped format cannot be mapped
            content = torch.load(path, map_location="cpu", mmap=mapped or None, weights_only=True)
            if _identity(path) == before:  # torch opens a mapped file twice, and a new one may come in between
                return content
        raise CheckpointError(f"{path} is being replaced all the time; read it when its writer is done.")
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unpickling_message(path, str(error))) from error
    except _DAMAGED as error:
        raise CheckpointError(f"{path} cannot be read {fault_of(path)}.") from error


def _identity(path: Path) -> tuple[int, int, int]:
    """What changes when a file is replaced."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _load_torch(path: Path) -> dict[str, Tensor]:
    """State dict of a torch file."""
    return unwrap(read_torch_file(path), str(path))


def _unpickling_message(path: Path, text: str) -> str:
    """What the restricted unpickler refused; torch's own advice to load it unrestricted is not passed on."""
    reason = text.partition("WeightsUnpickler error:")[2].strip() or text
    if "Unsupported operand" in reason:
        return f"{path} cannot be read {fault_of(path)}."
    foreign = _FOREIGN.search(reason)
    what = f"`{foreign[1]}`" if foreign else reason.splitlines()[0]
    return f"{path} holds more than weights and would run code ({what}); save its state dict alone."
