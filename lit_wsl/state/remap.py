"""Weight maps: which tensors of one model make which tensors of another, through which operations.

A map is a list of entries ``sources → operations → targets``. It is executable (in memory, or file to file in a
stream), invertible, and plain JSON.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_wsl.errors import CheckpointError, ConfigError, did_you_mean
from lit_wsl.state.operation import Operation, Shape, listed
from lit_wsl.state.operations import Reshape, operation_from_json, operation_to_json
from lit_wsl.state.publish import published_file, scratch_beside
from lit_wsl.state.reader import StateReader
from lit_wsl.state.safetensors import TensorInfo
from lit_wsl.state.writer import ShardedWriter

VERSION = 1
PIECE_BYTES = 1 << 19
"""Bytes that are copied at once from file to file; more than that leaves the cache of a core."""


@dataclass(frozen=True)
class Entry:
    """Tensors of the source, what is done with them, and the tensors of the target that this makes."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operations: tuple[Operation, ...] = ()
    """Steps in order; none is a copy."""

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """The target tensors from the source tensors."""
        return reduce(lambda made, operation: operation.apply(made), self.operations, tensors)

    def pieces(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        """The target tensors, each as pieces of any shape whose entries follow each other."""
        steps = list(self.operations)
        while steps and isinstance(steps[-1], Reshape):  # which leaves the entries in their order
            steps.pop()
        if not steps:
            return [[tensor] for tensor in tensors]
        *first, last = steps
        return last.pieces(reduce(lambda made, operation: operation.apply(made), first, tensors))

    def planned(self, infos: Sequence[TensorInfo]) -> list[TensorInfo]:
        """Shapes and dtypes of the target tensors from those of the sources; tensors of several dtypes join as one."""
        shapes, dtypes = [info.shape for info in infos], [info.dtype for info in infos]
        for operation in self.operations:
            shapes = operation.shapes(shapes)
            if len(shapes) != len(dtypes):
                dtypes = [reduce(torch.promote_types, dtypes)] * len(shapes)
        return [TensorInfo(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]

    def inverse(self) -> "Entry":
        """The entry from the targets back to the sources."""
        return Entry(self.targets, self.sources, tuple(op.inverse() for op in reversed(self.operations)))


@dataclass(frozen=True)
class WeightMap:
    """How the tensors of one model become those of another.

    Raises:
        ConfigError: If a target is made twice.
    """

    entries: tuple[Entry, ...]
    """What makes which tensors; no two make the same."""

    def __post_init__(self) -> None:
        """Refuse a target that two entries make."""
        seen: set[str] = set()
        for name in self.targets():
            if name in seen:
                raise ConfigError(f"Two entries of the weight map make {name!r}; remove one.")
            seen.add(name)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def sources(self) -> list[str]:
        """Names that the map reads, in its order."""
        return [name for entry in self.entries for name in entry.sources]

    def targets(self) -> list[str]:
        """Names that the map makes, in its order."""
        return [name for entry in self.entries for name in entry.targets]

    def inverse(self) -> "WeightMap":
        """The map back; applying both gives every mapped tensor again, bit by bit.

        Of several entries that read the same sources (tied weights) the way back keeps the first.

        Raises:
            ConfigError: If entries share some of their sources only, so that the way back would make one twice.
        """
        kept: list[Entry] = []
        made: set[str] = set()
        for entry in self.entries:
            if made.issuperset(entry.sources):
                continue
            if shared := made.intersection(entry.sources):
                raise ConfigError(f"The weight map reads {min(shared)!r} in two ways, so it has no inverse.")
            made.update(entry.sources)
            kept.append(entry.inverse())
        return WeightMap(tuple(kept))

    def apply(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The target state dict from a source state dict; copies share memory with the source.

        Raises:
            CheckpointError: If a source is missing, or has another shape than the map was made for.
        """
        made: dict[str, Tensor] = {}
        for entry in self.entries:
            made.update(_made(entry, [_find(state, name) for name in entry.sources]))
        return made

    def planned(self, source: StateReader) -> dict[str, TensorInfo]:
        """Shapes and dtypes of the targets, from the headers of a source alone.

        Raises:
            CheckpointError: If a source is missing, or has another shape than the map was made for.
        """
        return {name: info for entry in self.entries for name, info in _planned(entry, source).items()}

    def write(
        self,
        source: StateReader,
        path: Path,
        *,
        metadata: Mapping[str, str] | None = None,
        progress: Callable[[int, str], None] | None = None,
    ) -> None:
        """Apply the map from file to file; memory holds the tensors of one entry at most, mostly a piece of one.

        Args:
            source: Opened checkpoint.
            path: Safetensors file to write; an earlier one is replaced when the new one is whole.
            metadata: Header metadata, text to text.
            progress: Called with the bytes and the name of each tensor that is written.

        Raises:
            CheckpointError: If a source does not fit, or the file cannot be written.
        """
        infos = self.planned(source)
        with published_file(path) as partial, scratch_beside(partial) as scratch:
            with ShardedWriter(scratch, infos, shard_bytes=1 << 62, metadata=metadata) as writer:
                self.write_into(writer, source, progress)
                [file] = writer.file_names()
            (scratch / file).replace(partial)

    def write_into(
        self, writer: ShardedWriter, source: StateReader, progress: Callable[[int, str], None] | None = None
    ) -> None:
        """Apply the map to an opened writer; entries that it has finished already are left out."""
        for entry in self.entries:
            if writer.finished.issuperset(entry.targets):
                continue
            for name in _written(writer, entry, source):
                if progress is not None:
                    progress(writer.infos[name].nbytes, name)

    def save(self, path: str | Path) -> None:
        """Write the map as JSON.

        Raises:
            CheckpointError: If the file cannot be written.
        """
        with published_file(Path(path)) as partial:
            partial.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "WeightMap":
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: If the file is missing, or no weight map.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the path.") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is no weight map ({error}); make it with `lit-wsl map --save`.") from error

    def to_json(self) -> dict[str, Any]:
        """Plain values that describe the map."""
        return {
            "version": VERSION,
            "entries": [
                {
                    "sources": list(entry.sources),
                    "operations": [operation_to_json(op) for op in entry.operations],
                    "targets": list(entry.targets),
                }
                for entry in self.entries
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "WeightMap":
        """The map that :meth:`to_json` described.

        Raises:
            ConfigError: If an operation or version is not known.
        """
        if content["version"] != VERSION:
            raise ConfigError(f"version {content['version']} is not known, only {VERSION}")
        return cls(
            tuple(
                Entry(
                    _names(e["sources"]), _names(e["targets"]), tuple(operation_from_json(op) for op in e["operations"])
                )
                for e in content["entries"]
            )
        )


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{value!r:.60} is no list of names")
    return tuple(value)


def copies(pairs: Iterable[tuple[str, str]]) -> WeightMap:
    """A map that only renames, from pairs of old and new name."""
    return WeightMap(tuple(Entry((old,), (new,)) for old, new in pairs))


def _find(state: Mapping[str, Tensor], name: str) -> Tensor:
    return state[_known(state, name)]


def _known(source: Mapping[str, Tensor] | StateReader, name: str) -> str:
    if name not in source:
        near = did_you_mean(name, source.keys())
        raise CheckpointError(f"The weight map needs {name!r}, which the source lacks. {near}")
    return name


def _made(entry: Entry, tensors: list[Tensor]) -> dict[str, Tensor]:
    """The targets of an entry by name."""
    with _explained(entry, [tuple(tensor.shape) for tensor in tensors]):
        return dict(zip(entry.targets, entry.apply(tensors), strict=True))


def _planned(entry: Entry, source: StateReader) -> dict[str, TensorInfo]:
    """Shapes and dtypes of an entry's targets, from headers alone."""
    infos = [source.info(_known(source, name)) for name in entry.sources]
    with _explained(entry, [info.shape for info in infos]):
        return dict(zip(entry.targets, entry.planned(infos), strict=True))


@contextmanager
def _explained(entry: Entry, shapes: Sequence[Shape]) -> Iterator[None]:
    """Say of what does not fit which entry it is.

    Raises:
        CheckpointError: If the shapes of the sources do not fit the operations, or these the targets.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        sources = listed(f"{name} {shape}" for name, shape in zip(entry.sources, shapes, strict=True))
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"The weight map cannot make {listed(entry.targets)} from {sources} ({reason}); map this source anew."
        ) from error


def _written(writer: ShardedWriter, entry: Entry, source: StateReader) -> Iterator[str]:
    """Write the targets of an entry piece by piece; yields the name of each that is finished."""
    made = entry.pieces([source.read(name) for name in entry.sources])
    for name, pieces in zip(entry.targets, made, strict=True):
        start = 0
        for rows in (rows for piece in pieces for rows in _cut(piece)):
            writer.write(name, rows.to(writer.infos[name].dtype), start)
            start += rows.numel()
        writer.finish(name)
        yield name


def _cut(tensor: Tensor) -> Iterator[Tensor]:
    """Rows of a tensor, as many at once as ``PIECE_BYTES`` hold."""
    if tensor.nbytes <= PIECE_BYTES or not tensor.dim():
        yield tensor
    elif rows := PIECE_BYTES * len(tensor) // tensor.nbytes:
        yield from map(_whole_turn, tensor.split(rows))
    else:
        for part in tensor:
            yield from _cut(part)


def _whole_turn(rows: Tensor) -> Tensor:
    """Rows of a transposed matrix as a transpose of their own, which torch lays out by blocks, mostly far faster."""
    return rows.T.contiguous().T if rows.dim() == 2 and rows.stride(0) == 1 else rows
