"""The two sides of a comparison: any checkpoint, under the base's names, as entries that are made block by block."""

from abc import ABC, abstractmethod
from pathlib import Path

from torch import Tensor

from lit_wsl.comparing.entries import Folded, Scaled, dense
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
        self.where, self.path, self.reader = str(path), path, reader
        stored = reader.keys()
        known = {*stored, *failed}
        self._scales = {
            name: scale
            for name in stored
            for ending in _SCALES
            if (scale := name + ending) in known and reader.info(name).dtype.itemsize == 1
        }
        unscaled = {name: failed[scale] for name, scale in self._scales.items() if scale in failed}
        self.failed = {names.get(name, name): reason for name, reason in (failed | unscaled).items()}
        hidden = {*self._scales.values(), *unscaled}
        self._stored = {names.get(name, name): name for name in stored if name not in hidden}

    def infos(self) -> dict[str, TensorInfo]:
        """Shapes and dtypes by name."""
        return {name: self.reader.info(stored) for name, stored in self._stored.items()}

    def tensor(self, name: str) -> Tensor:
        """A tensor, scaled where it is stored in 8 bits."""
        stored = self._stored[name]
        return dense(self.entries(name)) if stored in self._scales else self.reader.read(stored)

    def entries(self, name: str) -> Entries:
        """The entries of a tensor, scaled where it is stored in 8 bits."""
        stored = self._stored[name]
        tensor, scale = self.reader.read(stored), self._scales.get(stored)
        return Stored(tensor) if scale is None else Scaled(tensor, self.reader.read(scale))

    def files(self) -> list[Path]:
        """Files that hold the tensors."""
        return self.reader.files()


class MappedModel(ComparedModel):
    """A model behind a weight map: each tensor is made from others when it is asked for."""

    def __init__(self, model: StoredModel, weight_map: WeightMap) -> None:
        self.where, self.path, self.failed = model.where, model.path, _unmade(weight_map, model.failed)
        self._model = model
        kept = WeightMap(tuple(entry for entry in weight_map if self.failed.keys().isdisjoint(entry.targets)))
        known = model.infos()
        missing = next((name for name in kept.sources() if name not in known), None)
        if missing is not None:
            raise CheckpointError(f"{self.where} has no {missing!r}, which the weight map reads; map it anew.")
        self._entry = {name: (entry, at) for entry in kept for at, name in enumerate(entry.targets)}
        self._infos = kept.planned(model.reader)

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


def _unmade(weight_map: WeightMap, failed: dict[str, str]) -> dict[str, str]:
    """Tensors that a map would make from damaged ones, with the reason."""
    pairs = ((source, entry) for entry in weight_map for source in entry.sources if source in failed)
    return {name: failed[source] for source, entry in pairs for name in entry.targets}


class AdaptedModel(ComparedModel):
    """A base under a PEFT adapter: its tensors are the base's but where the adapter changes them.

    Raises:
        CheckpointError: If the adapter changes what the base lacks, or has in another shape.
    """

    def __init__(self, base: StoredModel, adapter: Adapter) -> None:
        self.where, self.path, self.failed = str(adapter.directory), adapter.directory, {}
        self._base, self._adapter = base, adapter
        known = base.infos()
        resolved = NameResolver([*known, *base.failed]).resolve(adapter.sites)
        for name, site in adapter.sites.items():
            if name not in resolved and not site.value:
                raise CheckpointError(f"{self.where} changes {name!r}, which {base.where} lacks. {_near(name, base)}")
            if site.A and resolved[name] in known:
                adapter.factors(name, known[resolved[name]].shape)
        self._sites = {resolved.get(name, name): name for name in adapter.sites}
        values = {name: adapter.sites[key].value for name, key in self._sites.items()}
        self._infos = known | {name: adapter.state.info(value) for name, value in values.items() if value}

    def infos(self) -> dict[str, TensorInfo]:
        """Shapes and dtypes of the base, and of what the adapter replaces or adds."""
        return self._infos

    def entries(self, name: str) -> Entries:
        """The entries of the base, with the adapter's change."""
        key = self._sites.get(name)
        if key is None:
            return self._base.entries(name)
        site = self._adapter.sites[key]
        if site.A and not site.magnitude:
            return Folded(self._base.entries(name), self._adapter.factors(key, self._infos[name].shape))
        tensor = self._adapter.state.read(site.value) if site.value else self._base.tensor(name)
        if site.shift:
            tensor = tensor.float() + self._adapter.shift(key)
        if site.magnitude:
            tensor = tensor.float() + self._adapter.dora_update(key, tensor)
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
    reader, failed = open_readable(path)
    model = StoredModel(reader, path, failed, {})
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
    reader, failed = open_readable(path)
    return StoredModel(reader, path, failed, _names([*reader.keys(), *failed], base))


def _names(stored: list[str], base: ComparedModel) -> dict[str, str]:
    """The base's name of each tensor that a training tool wrote under a prefix of its own."""
    known = dict.fromkeys([*base.infos(), *base.failed])
    resolved = NameResolver(list(known)).resolve(name for name in stored if name not in known)
    taken = frozenset(stored)
    return {name: other for name, other in resolved.items() if other not in taken}
