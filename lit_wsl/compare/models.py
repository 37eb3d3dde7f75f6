"""The two sides of a comparison: any checkpoint, under the base's names, as entries that are made block by block."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from lit_wsl.compare.entries import Folded, Scaled
from lit_wsl.errors import CheckpointError, did_you_mean
from lit_wsl.state.adapters import Adapter
from lit_wsl.state.damaged import open_readable
from lit_wsl.state.locate import model_path
from lit_wsl.state.names import NameResolver
from lit_wsl.state.reader import StateReader
from lit_wsl.state.remap import WeightMap
from lit_wsl.state.safetensors import TensorInfo
from lit_wsl.tensors.difference import Entries, Stored

_SCALES = ("_scale_inv", "_scale")
"""Endings of the scales beside an 8-bit weight."""


class ComparedModel(ABC):
    """A model whose tensors are read one at a time."""

    where: str
    """Path, for messages."""
    path: Path
    failed: dict[str, str]
    """Tensors that cannot be read, with the reason."""

    @abstractmethod
    def infos(self) -> dict[str, TensorInfo]:
        """Shapes and dtypes of all readable tensors by the name they have in the comparison."""

    @abstractmethod
    def entries(self, name: str) -> Entries:
        """The entries of a tensor.

        Raises:
            CheckpointError: If it is damaged.
        """

    def files(self) -> list[Path]:
        """Files that hold the tensors."""
        return []


class StoredModel(ComparedModel):
    """A checkpoint as it is stored, under other names where ``names`` says so; 8-bit weights are scaled."""

    def __init__(self, reader: StateReader, path: Path, failed: dict[str, str], names: dict[str, str]) -> None:
        self.where, self.path, self.failed = str(path), path, failed
        self._reader = reader
        stored = reader.keys()
        known = frozenset(stored)
        self._scales = {
            name: scale
            for name in stored
            for ending in _SCALES
            if (scale := name + ending) in known and reader.info(name).dtype.itemsize == 1
        }
        hidden = frozenset(self._scales.values())
        self._stored = {names.get(name, name): name for name in stored if name not in hidden}

    def infos(self) -> dict[str, TensorInfo]:
        """Shapes and dtypes by name."""
        return {name: self._reader.info(stored) for name, stored in self._stored.items()}

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        return self._reader.read(self._stored[name])

    def entries(self, name: str) -> Entries:
        """The entries of a tensor, scaled where it is stored in 8 bits."""
        scale = self._scales.get(self._stored[name])
        return Stored(self.tensor(name)) if scale is None else Scaled(self.tensor(name), self._reader.read(scale))

    def files(self) -> list[Path]:
        """Files that hold the tensors."""
        return self._reader.files()


class MappedModel(ComparedModel):
    """A model behind a weight map: each tensor is made from others when it is asked for."""

    def __init__(self, model: StoredModel, weight_map: WeightMap) -> None:
        self.where, self.path, self.failed = model.where, model.path, model.failed
        self._model = model
        known = model.infos()
        missing = [name for name in weight_map.sources() if name not in known]
        if missing:
            raise CheckpointError(f"{self.where} has no {missing[0]!r}, which the weight map reads; map it anew.")
        self._entry = {name: (entry, at) for entry in weight_map for at, name in enumerate(entry.targets)}
        planned = ((entry, entry.planned([known[name] for name in entry.sources])) for entry in weight_map)
        self._infos = {n: info for entry, infos in planned for n, info in zip(entry.targets, infos, strict=True)}

    def infos(self) -> dict[str, TensorInfo]:
        """Shapes and dtypes of the mapped tensors."""
        return self._infos

    def entries(self, name: str) -> Entries:
        """The entries of a tensor that the map makes."""
        entry, at = self._entry[name]
        return Stored(entry.apply([self._model.tensor(source) for source in entry.sources])[at])

    def files(self) -> list[Path]:
        """Files that hold the tensors."""
        return self._model.files()


class AdaptedModel(ComparedModel):
    """A base under a PEFT adapter: its tensors are the base's but where the adapter changes them."""

    def __init__(self, base: StoredModel, adapter: Adapter) -> None:
        self.where, self.path, self.failed = str(adapter.directory), adapter.directory, {}
        self._base, self._adapter = base, adapter
        resolved = NameResolver(list(base.infos())).resolve(adapter.sites)
        self._sites = {known: name for name, known in resolved.items()}
        lost = [name for name in adapter.sites if name not in resolved]
        if lost:
            raise CheckpointError(f"{self.where} changes {lost[0]!r}, which {base.where} lacks. {_near(lost[0], base)}")

    def infos(self) -> dict[str, TensorInfo]:
        """Shapes and dtypes of the base."""
        return self._base.infos()

    def entries(self, name: str) -> Entries:
        """The entries of the base, with the adapter's change."""
        base = self._base.entries(name)
        key = self._sites.get(name)
        if key is None:
            return base
        site, tensor = self._adapter.sites[key], self._base.tensor(name)
        if site.value:
            tensor = self._adapter.state.read(site.value)
        if site.shift:
            tensor = tensor.float() + self._adapter.shift(key)
        if site.magnitude:
            tensor = tensor.float() + self._adapter.dora_update(key, tensor)
        elif site.A:
            return Folded(tensor, self._adapter.factors(key, tuple(tensor.shape)))
        return Stored(tensor)

    def files(self) -> list[Path]:
        """Files of the base and of the adapter."""
        return [*self._base.files(), *self._adapter.state.files()]


def _near(name: str, base: ComparedModel) -> str:
    return did_you_mean(name, list(base.infos())[:50])


def open_base(spec: str | Path, weight_map: WeightMap | None = None) -> ComparedModel:
    """The base model, under the names that a weight map gives its tensors.

    Raises:
        CheckpointError: If nothing can be read there, or the map does not fit.
    """
    path = model_path(spec)
    model = StoredModel(*_opened(path), {})
    return MappedModel(model, weight_map) if weight_map is not None else model


def open_tuned(spec: str | Path, base: ComparedModel) -> ComparedModel:
    """The fine-tuned model under the base's names: a checkpoint, or an adapter on that base.

    Raises:
        CheckpointError: If nothing can be read there, or an adapter belongs to another base.
    """
    path = model_path(spec)
    if path.is_dir() and (path / "adapter_config.json").is_file():
        if not isinstance(base, StoredModel):
            raise CheckpointError(f"{path} is an adapter; it is compared on its own base, without a weight map.")
        return AdaptedModel(base, Adapter(path))
    reader, opened, failed = _opened(path)
    return StoredModel(reader, opened, failed, _names(reader.keys(), base))


def _opened(path: Path) -> tuple[StateReader, Path, dict[str, str]]:
    reader, failed = open_readable(path)
    return reader, path, failed


def _names(stored: Iterable[str], base: ComparedModel) -> dict[str, str]:
    """The base's name of each tensor that a training tool wrote under a prefix of its own."""
    known = base.infos()
    resolved = NameResolver(list(known)).resolve(name for name in stored if name not in known)
    taken = set(stored)
    return {name: other for name, other in resolved.items() if other not in taken}
