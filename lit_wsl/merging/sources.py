"""Where task vectors come from: LoRA adapters and full fine-tuned models, under the base's parameter names."""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from lit_wsl.errors import MergeError
from lit_wsl.state.adapters import HEAD_FILE, Adapter
from lit_wsl.state.dtypes import is_mergeable
from lit_wsl.state.names import NameResolver
from lit_wsl.state.reader import StateReader
from lit_wsl.tensors.lora import LoraFactors


class TaskVector(ABC):
    """The update of one parameter by one source, read in flat blocks."""

    granularity = 1
    """Blocks must start and stop at multiples of this many entries."""

    @abstractmethod
    def fill(self, out: Tensor, start: int, base: Tensor | None) -> None:
        """Write entries of the flattened update, from ``start`` on, into a float32 block.

        Args:
            out: Block to fill, shape ``(n,)``.
            start: Index of its first entry.
            base: The same entries of the base in float32, or None without a base.
        """


class LowRankVector(TaskVector):
    """An update kept as factors; a block is the product of some rows."""

    def __init__(self, factors: LoraFactors) -> None:
        self.factors = factors
        self._left, self._right = factors.stored_factors()
        self.granularity = self._right.shape[1]

    def fill(self, out: Tensor, start: int, base: Tensor | None) -> None:
        """Multiply out whole rows."""
        first = start // self.granularity
        rows = out.view(-1, self.granularity)
        torch.mm(self._left[first : first + len(rows)], self._right, out=rows)


class TunedVector(TaskVector):
    """A fine-tuned parameter minus the base's."""

    def __init__(self, tuned: Tensor, base: Tensor | None) -> None:
        self.tuned = tuned.reshape(-1)
        self._base = None if base is None else base.reshape(-1)

    def fill(self, out: Tensor, start: int, base: Tensor | None) -> None:
        """Subtract in float32, or in float64 where the tuned parameter has it."""
        tuned = self.tuned[start : start + len(out)]
        if self._base is None or base is None:
            out.copy_(tuned)
        elif tuned.dtype == torch.float64:
            out.copy_(tuned - self._base[start : start + len(out)])
        else:
            out.copy_(tuned).sub_(base)


class DenseVector(TaskVector):
    """An update that is already dense."""

    def __init__(self, delta: Tensor) -> None:
        self._delta = delta.reshape(-1)

    def fill(self, out: Tensor, start: int, base: Tensor | None) -> None:
        """Copy the entries."""
        out.copy_(self._delta[start : start + len(out)])


class TaskVectorSource(ABC):
    """One thing to merge; its updates go by the base model's parameter names."""

    name: str
    """Short name for reports and head files."""
    where: str
    """Path, for messages."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of every parameter that this source updates."""
    base_name: str | None = None
    """Base model that the source says it belongs to."""
    embeddings: frozenset[str] = frozenset()
    """Parameters that are embeddings, as far as the source knows."""

    @abstractmethod
    def task_vector(self, name: str, base: Tensor | None) -> TaskVector:
        """The update of parameter ``name``."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Files read, for the fingerprint of the merge."""

    head_file: Path | None = None
    """File of a task head, copied as it is."""

    def heads(self) -> dict[str, Tensor]:
        """Tensors of a task head that the base does not have."""
        return {}


class AdapterSource(TaskVectorSource):
    """A LoRA adapter directory; its factors stay factors until a method asks for a block.

    Raises:
        CheckpointError: If the adapter is damaged or cannot be folded.
        MergeError: If it changes parameters that the base lacks.
    """

    def __init__(self, directory: str, name: str, base: StateReader | None, resolver: NameResolver | None) -> None:
        self.name, self.where = name, directory
        self._adapter = Adapter(Path(directory))
        self.base_name = self._adapter.config.base_model_name_or_path
        self.task_type = self._adapter.config.task_type
        head = self._adapter.directory / HEAD_FILE
        self.head_file = head if head.is_file() else None
        self._sites: dict[str, str] = {}
        self._heads: list[str] = []
        resolved = resolver.resolve(self._adapter.sites) if resolver else self._own_names()
        for own in self._adapter.sites:
            self._place(own, resolved.get(own))
        if base is None:
            self._refuse_without_base()
        self.shapes = {name: self._shape(name, base) for name in self._sites}
        self.embeddings = frozenset(n for n, own in self._sites.items() if self._adapter.sites[own].embedding)

    def _own_names(self) -> dict[str, str]:
        """Names to go by without a base: the adapter's own; a whole module is then a task head."""
        return {own: own for own, site in self._adapter.sites.items() if not site.value}

    def _place(self, own: str, found: str | None) -> None:
        """File a site of the adapter under the base's parameter name, or as part of a head."""
        if found is None:
            if not self._adapter.sites[own].value:
                raise MergeError(
                    f"{self.where} updates {own!r}, which the base does not have (or not under one name); "
                    "it belongs to another base."
                )
            self._heads.append(own)
        elif found in self._sites:
            raise MergeError(f"{self.where}: {own!r} and {self._sites[found]!r} both update {found!r} of the base.")
        else:
            self._sites[found] = own

    def _refuse_without_base(self) -> None:
        if self._adapter.config.bias != "none":
            raise MergeError(
                f"{self.where} holds trained biases (`bias: {self._adapter.config.bias}`); "
                "their update is the difference to the base: pass `--base DIR`."
            )
        dora = next((n for n, own in self._sites.items() if self._adapter.sites[own].magnitude), None)
        if dora:
            raise MergeError(
                f"{self.where} is a DoRA adapter ({dora!r}); folding it needs the base: pass `--base DIR`."
            )

    def _shape(self, name: str, base: StateReader | None) -> tuple[int, ...]:
        site = self._adapter.sites[self._sites[name]]
        shape = tuple(base.info(name).shape) if base else None
        if site.A:
            return self._adapter.factors(self._sites[name], shape).shape
        own = tuple(self._adapter.state.info(site.shift or site.value).shape)
        if shape is not None and own != shape:
            raise MergeError(
                f"Shape mismatch at {name!r}: base {shape}, {self.where} {own}; the adapter belongs to another base."
            )
        return own

    def task_vector(self, name: str, base: Tensor | None) -> TaskVector:
        """Factors where they suffice; a dense update for DoRA, biases and replaced parameters."""
        own = self._sites[name]
        site = self._adapter.sites[own]
        if site.magnitude:
            assert base is not None
            return DenseVector(self._adapter.dora_update(own, base))
        if site.A:
            return LowRankVector(self._adapter.factors(own, tuple(base.shape) if base is not None else None))
        if not site.value:
            return DenseVector(self._adapter.shift(own))
        assert base is not None
        tuned = self._adapter.state.read(site.value)
        return TunedVector(tuned.float() + self._adapter.shift(own) if site.shift else tuned, base)

    def heads(self) -> dict[str, Tensor]:
        """Tensors of ``modules_to_save`` that the base does not have, by the adapter's parameter names."""
        return {own: self._adapter.state.read(self._adapter.sites[own].value) for own in self._heads}

    def files(self) -> list[Path]:
        """Weights and configuration."""
        return [*self._adapter.state.files(), self._adapter.directory / "adapter_config.json"]


class ModelSource(TaskVectorSource):
    """A full fine-tuned model; its task vector is the difference to the base.

    Names are matched like an adapter's, so a classifier saved as ``bert.encoder…`` finds a base of ``encoder…``.

    Raises:
        MergeError: If two of its parameters stand for one of the base's.
    """

    def __init__(self, reader: StateReader, name: str, resolver: NameResolver | None = None) -> None:
        self.name, self.where = name, reader.where
        self._reader = reader
        self._own: dict[str, str] = {}
        names = [name for name in reader.keys() if is_mergeable(reader.info(name).dtype)]
        resolved = resolver.resolve(names) if resolver else {}
        for own in names:
            self._place(own, resolved.get(own, own))
        self.shapes = {found: reader.info(own).shape for found, own in self._own.items()}

    def _place(self, own: str, found: str) -> None:
        if found in self._own:
            raise MergeError(f"{self.where}: {own!r} and {self._own[found]!r} both stand for {found!r} of the base.")
        self._own[found] = own

    def task_vector(self, name: str, base: Tensor | None) -> TaskVector:
        """Fine-tuned minus base, block by block (the parameter itself when there is no base)."""
        return TunedVector(self._reader.read(self._own[name]), base)

    def files(self) -> list[Path]:
        """The weight files."""
        return self._reader.files()
