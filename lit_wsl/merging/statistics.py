"""Statistics that were gathered on the data of each source, one file per source, under the base's parameter names."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lit_wsl.errors import MergeError
from lit_wsl.merging.vectors import TaskVectorSource
from lit_wsl.state.names import NameResolver
from lit_wsl.state.safetensors import SafetensorsFile

Kind = Literal["fisher", "gram"]

_WHAT = {"fisher": "Fisher information", "gram": "Gram matrices of inputs"}


@dataclass(frozen=True)
class _OneFile:
    """The statistics of one source."""

    file: SafetensorsFile
    names: dict[str, str]
    """Parameter of the base to the tensor in the file."""
    inputs_first: frozenset[str]
    """Tensors in the file that belong to weights stored as ``(inputs, outputs)``."""
    size: float
    """Root mean square of all entries of Fisher information; 1 where it is not known."""

    def read(self, name: str) -> Tensor:
        return self.file.read(self.names[name])

    def has_inputs_first(self, name: str) -> bool:
        return self.names[name] in self.inputs_first


class Statistics:
    """What every source has for a parameter; nothing is read before it is asked for."""

    def __init__(self, kind: Kind, files: Sequence[_OneFile]) -> None:
        self.kind = kind
        self._files = list(files)
        self._common = set.intersection(*(set(one.names) for one in files))

    def has(self, name: str) -> bool:
        """Whether every source has statistics of the parameter."""
        return name in self._common

    def lacking(self, names: Iterable[str]) -> list[str]:
        """The parameters that have statistics of some sources only: these take the mean."""
        return [n for n in names if n not in self._common and any(n in one.names for one in self._files)]

    def files(self) -> list[Path]:
        """The files, for the fingerprint of a merge."""
        return [one.file.path for one in self._files]

    def block(self, name: str, start: int, stop: int) -> Tensor:
        """Fisher information of some entries of the flattened parameter, shape ``(T, n)``, float32.

        That of each source is divided by its root mean square over the whole model.

        Raises:
            MergeError: If an entry is negative or not finite.
        """
        rows = [one.read(name).reshape(-1)[start:stop].float() for one in self._files]
        for one, row in zip(self._files, rows, strict=True):
            _check_values(one, name, row, row)
        return torch.stack([row / one.size for one, row in zip(self._files, rows, strict=True)])

    def matrices(self, name: str) -> Tensor:
        """Gram matrices of the parameter's inputs, float32.

        Returns:
            Shape ``(T, columns, columns)``; ``(T, 1, rows, rows)`` for a weight that is stored with its inputs first.

        Raises:
            MergeError: If an entry is not finite, or one on a diagonal negative.
        """
        grams = [one.read(name).float() for one in self._files]
        for one, gram in zip(self._files, grams, strict=True):
            _check_values(one, name, gram, gram.diagonal())
        stack = torch.stack(grams)
        return stack.unsqueeze(1) if self._files[0].has_inputs_first(name) else stack


def open_statistics(paths: Sequence[str], kind: Kind, sources: Sequence[TaskVectorSource]) -> Statistics:
    """Open one file of statistics per source; headers are read, no tensor.

    Names are matched like those of a source, so statistics of ``bert.encoder…`` fit a base of ``encoder…``.

    Args:
        paths: Files, in the order of the sources.
        kind: What they must hold.
        sources: What is merged.

    Raises:
        CheckpointError: If a file cannot be read.
        MergeError: If there is not one for each source, one is of another kind, model or shape, or they do not agree
            on the side of a weight's inputs.
    """
    if len(paths) != len(sources):
        raise MergeError(
            f"This method needs one file of statistics per source, in their order: {len(sources)} sources, "
            f"{len(paths)} files. Gather them with `lit-wsl gather --kind {kind}` and name them by `--statistics`."
        )
    files = [SafetensorsFile(Path(path).expanduser()) for path in paths]
    opened = [_open(file, kind, source) for file, source in zip(files, sources, strict=True)]
    if kind == "gram":
        _check_orientations(opened)
    return Statistics(kind, opened)


def _check_orientations(files: Sequence[_OneFile]) -> None:
    """Refuse files that do not agree on which side of a weight its inputs are."""
    first = files[0]
    for other in files[1:]:
        for name in first.names.keys() & other.names.keys():
            if first.has_inputs_first(name) != other.has_inputs_first(name):
                here, there = (first, other) if first.has_inputs_first(name) else (other, first)
                raise MergeError(
                    f"{here.file.path} has the inputs of {name!r} in its rows, {there.file.path} in its columns; "
                    "gather the statistics again, all on one architecture."
                )


def _open(file: SafetensorsFile, kind: Kind, source: TaskVectorSource) -> _OneFile:
    """The statistics of one source; what its metadata says is checked."""
    found = file.metadata.get("kind")
    if found != kind:
        held = f"{_WHAT[found]} (`{found}`)" if found in _WHAT else "no statistics"
        raise MergeError(f"{file.path} holds {held}; gather `{kind}` with `lit-wsl gather --kind {kind}`.")
    try:
        inputs_first = frozenset(json.loads(file.metadata.get("inputs_first", "[]")))
        size = float(file.metadata.get("rms", 1.0))
        if not 0.0 <= size < math.inf:
            raise ValueError(f"rms {size}")
    except (ValueError, TypeError, RecursionError) as error:
        raise MergeError(f"{file.path} has damaged metadata ({error}); gather the statistics again.") from error
    return _OneFile(file, _fitted(file, inputs_first, kind, source), inputs_first, size or 1.0)


def _fitted(
    file: SafetensorsFile, inputs_first: frozenset[str], kind: Kind, source: TaskVectorSource
) -> dict[str, str]:
    """The tensors of a file by the names of a source's parameters, with their shapes checked."""
    names: dict[str, str] = {}
    for own, name in NameResolver(list(source.shapes)).resolve(file.infos).items():
        if name in names:
            raise MergeError(f"{file.path}: {own!r} and {names[name]!r} both stand for {name!r} of {source.where}.")
        names[name] = own
    if not names:
        raise MergeError(
            f"{file.path} has no statistics of any parameter of {source.where}, its first name is "
            f"{next(iter(file.infos), None)!r}; it belongs to another model."
        )
    for name, own in names.items():
        found, shape = file.infos[own].shape, source.shapes[name]
        side = shape[0] if own in inputs_first else shape[-1] if shape else 0
        expected = shape if kind == "fisher" else (side, side)
        if found != expected:
            raise MergeError(
                f"Shape mismatch at {name!r}: {file.path} {found}, needed {expected} for {source.where} {shape}; "
                "gather the statistics on this model."
            )
    return names


def _check_values(one: _OneFile, name: str, entries: Tensor, positive: Tensor) -> None:
    if torch.isfinite(entries).all() and not (positive < 0).any():
        return
    raise MergeError(f"{one.file.path} has NaN, infinite or negative entries in {name!r}; gather the statistics again.")
