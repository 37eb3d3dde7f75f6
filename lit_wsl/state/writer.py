"""Write safetensors tensor by tensor, with every header planned before the first byte."""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from lit_wsl.errors import CheckpointError
from lit_wsl.state.safetensors import TensorInfo, plan_header

SHARD_BYTES = 5_000_000_000
JOURNAL = ".journal"


class ShardedWriter:
    """Writes a known list of tensors into one or more safetensors files of a directory.

    Tensors may come in any order and in pieces. A journal records each finished tensor; a writer that is
    opened on the same directory with the same plan reports them in ``finished`` and keeps their bytes.

    Args:
        directory: Existing directory; let :func:`published_directory` provide and publish it.
        infos: Every tensor that will be written.
        stem: File name without suffix.
        shard_bytes: Largest size of a shard; a larger tensor gets a shard of its own.
        metadata: Header metadata, text to text.
        process: Number of this process where several write one output: 0 makes the files and closes them; the others
            are opened behind it, and keep journals of their own until it has heard what they finished.

    Raises:
        CheckpointError: If the disk is too small for the files, or a dtype cannot be stored.
    """

    def __init__(
        self,
        directory: Path,
        infos: Mapping[str, TensorInfo],
        *,
        stem: str = "model",
        shard_bytes: int = SHARD_BYTES,
        metadata: Mapping[str, str] | None = None,
        process: int = 0,
    ) -> None:
        self.directory = directory
        self.infos = dict(infos)
        self._stem = stem
        self.shards: list[list[str]] = _split_into_shards(self.infos, shard_bytes)
        self._metadata = dict(metadata or {"format": "pt"})
        self._files: list[int] = []
        self._place: dict[str, tuple[int, int]] = {}
        headers = self._plan()
        self._journal_path = directory / (f"{JOURNAL}.{process}" if process else JOURNAL)
        self.checksums: dict[str, int] = {}
        """Checksums of finished tensors, as far as they were given."""
        self.finished = self._read_journals(headers)
        try:
            self._open_files(headers, create=not process)
        except OSError as error:
            self.abandon()
            raise CheckpointError(_disk_message(directory, error, sum(size for _, size in headers))) from error
        self._journal = self._journal_path.open("a", encoding="utf-8")

    def file_names(self) -> list[str]:
        """Names of the shards: one plain name, or numbered ones."""
        count = len(self.shards)
        if count == 1:
            return [f"{self._stem}.safetensors"]
        return [f"{self._stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]

    def write(self, name: str, tensor: Tensor, start: int = 0) -> None:
        """Write the entries of ``tensor`` at flat position ``start`` of tensor ``name``.

        Raises:
            CheckpointError: If the dtype is not the planned one, the piece does not fit, or the disk is full.
        """
        info = self.infos[name]
        if tensor.dtype != info.dtype or start + tensor.numel() > info.numel:
            raise CheckpointError(
                f"Tensor {name!r} was planned as {info.dtype} {info.shape}; "
                f"got {tensor.dtype} with {tensor.numel()} entries at {start}."
            )
        if not tensor.numel():
            return
        file, position = self._place[name]
        data = as_bytes(tensor)
        position += start * info.dtype.itemsize
        try:
            while data:
                written = os.pwrite(file, data, position)
                data, position = data[written:], position + written
        except OSError as error:
            raise CheckpointError(_disk_message(self.directory, error, info.nbytes)) from error

    def finish(self, name: str, checksum: int | None = None) -> None:
        """Record that every entry of ``name`` is written, and the checksum of its bytes if there is one."""
        self.finished.add(name)
        if checksum is not None:
            self.checksums[name] = checksum
        self._journal.write(json.dumps([name, checksum]) + "\n")
        self._journal.flush()

    def close(self) -> None:
        """Check that nothing is missing and write the index of a sharded output.

        Raises:
            CheckpointError: If a planned tensor was never finished.
        """
        missing = [name for name in self.infos if name not in self.finished]
        if missing:
            raise CheckpointError(f"{len(missing)} planned tensors were never written, first {missing[0]!r}.")
        if len(self.shards) > 1:
            weight_map = {n: file for file, shard in zip(self.file_names(), self.shards, strict=True) for n in shard}
            index = {"metadata": {"total_size": sum(i.nbytes for i in self.infos.values())}, "weight_map": weight_map}
            path = self.directory / f"{self._stem}.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        self.abandon()
        for journal in self.directory.glob(f"{JOURNAL}*"):
            journal.unlink()

    def abandon(self) -> None:
        """Close the files as they are; the journal lets a later writer go on."""
        for file in self._files:
            os.close(file)
        self._files = []
        if hasattr(self, "_journal"):
            self._journal.close()

    def __enter__(self) -> "ShardedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _plan(self) -> list[tuple[bytes, int]]:
        headers = []
        for number, shard in enumerate(self.shards):
            header, positions, size = plan_header({name: self.infos[name] for name in shard}, self._metadata)
            headers.append((header, size))
            self._place.update({name: (number, position) for name, position in positions.items()})
        return headers

    def _open_files(self, headers: list[tuple[bytes, int]], *, create: bool) -> None:
        for name, (header, size) in zip(self.file_names(), headers, strict=True):
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
            file = os.open(self.directory / name, flags, 0o666)
            self._files.append(file)
            if create:
                os.ftruncate(file, size)
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file, 0, size)  # a full disk shows now, not after an hour
                os.pwrite(file, header, 0)
        self._place = {n: (self._files[number], position) for n, (number, position) in self._place.items()}

    def _read_journals(self, headers: list[tuple[bytes, int]]) -> set[str]:
        """Tensors that interrupted writers with the same plan finished; a new journal with them."""
        plan = hashlib.sha256(b"".join(header for header, _ in headers)).hexdigest()
        found: dict[str, int | None] = {}
        journals = sorted(self.directory.glob(f"{JOURNAL}*"))
        for path in journals:
            first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            if first == plan:  # what follows the last newline was cut off in the middle
                found.update(record for line in lines[:-1] if (record := _record(line)) is not None)
        kept = self._in_whole_files([size for _, size in headers])
        found = {name: checksum for name, checksum in found.items() if name in kept}
        lines = [json.dumps([name, checksum]) for name, checksum in found.items()]
        self._journal_path.write_text("\n".join([plan, *lines, ""]), encoding="utf-8")
        if self._journal_path.name == JOURNAL:
            for path in journals:
                path.unlink() if path != self._journal_path else None
        self.checksums = {name: checksum for name, checksum in found.items() if checksum is not None}
        return set(found)

    def _in_whole_files(self, sizes: list[int]) -> set[str]:
        """Tensors of the files that are there as they were planned; those of a lost or cut file are written again."""
        paths = [self.directory / name for name in self.file_names()]
        whole = [path.is_file() and path.stat().st_size == size for path, size in zip(paths, sizes, strict=True)]
        return {name for shard, is_whole in zip(self.shards, whole, strict=True) if is_whole for name in shard}


def _record(line: str) -> tuple[str, int | None] | None:
    """Name and checksum of a finished tensor; None for a damaged line, whose tensor is written again."""
    try:
        name, checksum = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    return (name, checksum) if isinstance(name, str) and isinstance(checksum, int | None) else None


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor as they stand in a file."""
    whole = tensor.detach().contiguous()
    # Not reshape: a dimension of one entry may keep any stride, and then has no view as bytes.
    flat = whole.as_strided((whole.numel(),), (1,))
    return flat.view(torch.uint8).cpu().numpy().data


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors that are in memory, on any device, into one safetensors file.

    Args:
        path: File to write, ending in ``.safetensors``.
        tensors: Name to tensor.
        metadata: Header metadata beside ``format``.

    Raises:
        CheckpointError: If the disk is full or a dtype cannot be stored.
    """
    infos = {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    header = {"format": "pt", **(metadata or {})}
    with ShardedWriter(path.parent, infos, stem=path.stem, shard_bytes=1 << 62, metadata=header) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
            writer.finish(name)


def _split_into_shards(infos: Mapping[str, TensorInfo], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, info in infos.items():
        if shards[-1] and size + info.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += info.nbytes
    return shards


def _disk_message(directory: Path, error: OSError, needed: int) -> str:
    if error.errno == errno.ENOSPC:
        return f"The disk of {directory.parent} is full ({needed / 1e6:.1f} MB needed); free space or choose another."
    return f"{directory} cannot be written ({error.strerror}); choose another output."
