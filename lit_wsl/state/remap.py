"""Weight maps: which tensors of one model make which tensors of another, through which operations.

A map is a list of entries ``sources → operations → targets``. It is executable (in memory, or file to file in a
stream), invertible, and plain JSON.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_wsl.errors import CheckpointError, ConfigError, did_you_mean
from lit_wsl.state.publish import published_file
from lit_wsl.state.reader import StateReader
from lit_wsl.state.safetensors import TensorInfo
from lit_wsl.state.writer import ShardedWriter

VERSION = 1


@dataclass(frozen=True)
class Operation:
    """A step from a list of tensors to a list of tensors that loses nothing."""

    name: ClassVar[str]

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """The new tensors; views where possible."""
        raise NotImplementedError

    def inverse(self) -> "Operation":
        """The step back."""
        raise NotImplementedError


@dataclass(frozen=True)
class Transpose(Operation):
    """Permutes the dimensions of every tensor: ``Conv1D`` to ``Linear`` is ``(1, 0)``."""

    name: ClassVar[str] = "transpose"
    dims: tuple[int, ...] = (1, 0)

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors with their dimensions in the order ``dims``."""
        return [tensor.permute(self.dims) for tensor in tensors]

    def inverse(self) -> "Transpose":
        """The permutation back."""
        return Transpose(tuple(sorted(range(len(self.dims)), key=self.dims.__getitem__)))


@dataclass(frozen=True)
class Reshape(Operation):
    """Gives one tensor another shape of as many entries: a 1x1 convolution becomes a matrix."""

    name: ClassVar[str] = "reshape"
    before: tuple[int, ...]
    after: tuple[int, ...]

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensor in the new shape."""
        return [tensor.reshape(self.after) for tensor in tensors]

    def inverse(self) -> "Reshape":
        """The old shape."""
        return Reshape(self.after, self.before)


@dataclass(frozen=True)
class Fuse(Operation):
    """Joins tensors along ``dim``; with ``groups`` the parts alternate: the first group of each, then the second.

    Query, key and value become one projection with ``groups=1``, litgpt's older interleaved one with a group per
    key-value head.
    """

    name: ClassVar[str] = "fuse"
    sizes: tuple[int, ...]
    dim: int = 0
    groups: int = 1

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """One tensor."""
        parts = [tensor.unflatten(self.dim, (self.groups, -1)) for tensor in tensors]
        return [torch.cat(parts, dim=self.dim + 1).flatten(self.dim, self.dim + 1)]

    def inverse(self) -> "Split":
        """The parts again."""
        return Split(self.sizes, self.dim, self.groups)


@dataclass(frozen=True)
class Split(Operation):
    """Cuts one tensor along ``dim`` into parts of ``sizes``; ``groups`` as in :class:`Fuse`."""

    name: ClassVar[str] = "split"
    sizes: tuple[int, ...]
    dim: int = 0
    groups: int = 1

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """As many tensors as ``sizes``."""
        [tensor] = tensors
        sizes = [size // self.groups for size in self.sizes]
        parts = tensor.unflatten(self.dim, (self.groups, -1)).split(sizes, dim=self.dim + 1)
        return [part.flatten(self.dim, self.dim + 1) for part in parts]

    def inverse(self) -> "Fuse":
        """The whole again."""
        return Fuse(self.sizes, self.dim, self.groups)


@dataclass(frozen=True)
class Stack(Operation):
    """Lays ``count`` tensors of one shape along a new dimension: experts into one tensor."""

    name: ClassVar[str] = "stack"
    count: int
    dim: int = 0

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """One tensor with a dimension more."""
        return [torch.stack(tensors, dim=self.dim)]

    def inverse(self) -> "Unstack":
        """The layers again."""
        return Unstack(self.count, self.dim)


@dataclass(frozen=True)
class Unstack(Operation):
    """Takes one tensor apart along ``dim``."""

    name: ClassVar[str] = "unstack"
    count: int
    dim: int = 0

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """``count`` tensors with a dimension less."""
        [tensor] = tensors
        return list(tensor.unbind(self.dim))

    def inverse(self) -> "Stack":
        """The stack again."""
        return Stack(self.count, self.dim)


@dataclass(frozen=True)
class PermuteHeads(Operation):
    """Reorders the rows of every head between two conventions of rotary embeddings.

    ``to_pairs`` turns rows ordered by halves (the first half of all rotary pairs, then the second; transformers) into
    rows ordered by pairs (the original Llama code).
    """

    name: ClassVar[str] = "permute_heads"
    heads: int
    to_pairs: bool = True

    def apply(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors with their rows reordered."""
        halves = (self.heads, 2, -1) if self.to_pairs else (self.heads, -1, 2)
        return [tensor.unflatten(0, halves).transpose(1, 2).flatten(0, 2) for tensor in tensors]

    def inverse(self) -> "PermuteHeads":
        """The other convention."""
        return PermuteHeads(self.heads, not self.to_pairs)


_OPERATIONS: dict[str, type[Operation]] = {
    cls.name: cls for cls in (Transpose, Reshape, Fuse, Split, Stack, Unstack, PermuteHeads)
}


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

        Raises:
            ConfigError: If a source is used twice, so that the way back would make it twice.
        """
        return WeightMap(tuple(entry.inverse() for entry in self.entries))

    def apply(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The target state dict from a source state dict; copies share memory with the source.

        Raises:
            CheckpointError: If a source is missing, or has another shape than the map was made for.
        """
        made: dict[str, Tensor] = {}
        for entry in self.entries:
            made.update(_made(entry, [_find(state, name) for name in entry.sources]))
        return made

    def write(self, source: StateReader, path: Path) -> None:
        """Apply the map from file to file; memory holds the tensors of one entry.

        Args:
            source: Opened checkpoint.
            path: Safetensors file to write; an earlier one is replaced when the new one is whole.

        Raises:
            CheckpointError: If a source does not fit, or the file cannot be written.
        """
        infos = {name: info for entry in self.entries for name, info in _planned(entry, source).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with published_file(path) as partial, TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            with ShardedWriter(Path(scratch), infos, shard_bytes=1 << 62) as writer:
                for entry in self.entries:
                    for name, tensor in _made(entry, [source.read(name) for name in entry.sources]).items():
                        writer.write(name, tensor)
                        writer.finish(name)
                [file] = writer.file_names()
            (Path(scratch) / file).replace(partial)

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
                    "operations": [{"name": op.name, **asdict(op)} for op in entry.operations],
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
                Entry(tuple(e["sources"]), tuple(e["targets"]), tuple(_operation(op) for op in e["operations"]))
                for e in content["entries"]
            )
        )


def copies(pairs: Iterable[tuple[str, str]]) -> WeightMap:
    """A map that only renames, from pairs of old and new name."""
    return WeightMap(tuple(Entry((old,), (new,)) for old, new in pairs))


def _operation(values: Mapping[str, Any]) -> Operation:
    name = values["name"]
    if name not in _OPERATIONS:
        raise ConfigError(f"no operation {name!r}. {did_you_mean(str(name), _OPERATIONS)}")
    cls = _OPERATIONS[name]
    known = {field.name for field in fields(cls)}
    if unknown := set(values) - known - {"name"}:
        raise ConfigError(f"operation {name!r} has no option {min(unknown)!r}. {did_you_mean(min(unknown), known)}")
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key != "name"})


def _find(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise CheckpointError(f"The weight map needs {name!r}, which the source lacks. {did_you_mean(name, state)}")
    return state[name]


def _made(entry: Entry, tensors: list[Tensor]) -> dict[str, Tensor]:
    """The targets of an entry by name.

    Raises:
        CheckpointError: If the shapes of the sources do not fit the operations.
    """
    try:
        made = entry.apply(tensors)
        return dict(zip(entry.targets, made, strict=True))
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in zip(entry.sources, tensors, strict=True))
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"The weight map cannot make {', '.join(entry.targets)} from {shapes} ({reason}); map this source anew."
        ) from error


def _planned(entry: Entry, source: StateReader) -> dict[str, TensorInfo]:
    """Shapes and dtypes of an entry's targets, from headers alone."""
    infos = [source.info(name) for name in entry.sources]
    empty = [torch.empty(info.shape, dtype=info.dtype, device="meta") for info in infos]
    return {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in _made(entry, empty).items()}
