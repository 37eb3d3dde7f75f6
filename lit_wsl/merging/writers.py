"""The three outputs of a merge: a full model, a dense delta, a PEFT adapter; and what lies beside them."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from lit_wsl.errors import MergeError
from lit_wsl.merging.engine import ParameterMerger
from lit_wsl.merging.memory import STEM
from lit_wsl.merging.plan import MergePlan
from lit_wsl.merging.slices import SlicedState
from lit_wsl.merging.sources import AdapterSource
from lit_wsl.merging.stacked_config import restack_config
from lit_wsl.merging.tokenizer_files import carry_tokenizer
from lit_wsl.state.adapter_files import write_adapter
from lit_wsl.state.adapters import Adapter
from lit_wsl.state.dtypes import float_dtype, is_mergeable
from lit_wsl.state.formats import carry_files, read_object
from lit_wsl.state.locate import model_dir, model_path
from lit_wsl.state.reader import TensorInfo, open_state
from lit_wsl.state.writer import ShardedWriter, as_bytes
from lit_wsl.tensors.lora import LoraFactors, concatenate, is_finite
from lit_wsl.tensors.lowrank import compress, factorise

COPY_BYTES = 64 << 20


class Writer(ABC):
    """Receives merged parameters one after another and writes one kind of output.

    Args:
        plan: The merge.
        directory: Where to write.
        process: Number of this process where several share the merge; 0 closes the output.
    """

    def __init__(self, plan: MergePlan, directory: Path, process: int = 0) -> None:
        self.plan, self.directory, self.process = plan, directory, process
        self.retained_energy: dict[str, float] = {}

    def shards(self) -> list[list[str]]:
        """Names of all parameters by the file that they are written to."""
        return [[*self.plan.copied, *self.plan.merged]]

    def has(self, name: str) -> bool:
        """Whether an interrupted run already wrote this parameter."""
        return False

    @abstractmethod
    def merge(self, parameter: ParameterMerger) -> Any:
        """Merge one parameter, in a worker; returns what the writer needs to keep of it."""

    def copy(self, name: str, tensor: Tensor) -> Any:
        """Write a parameter that is not merged, in a worker; returns what the writer needs to keep of it."""
        raise NotImplementedError(f"{type(self).__name__} copies nothing, asked for {name!r}.")

    @abstractmethod
    def accept(self, name: str, result: Any) -> None:
        """File a parameter that a worker has finished."""

    @abstractmethod
    def close(self) -> None:
        """Finish the files and what belongs beside them."""

    @abstractmethod
    def verify(self) -> None:
        """Read everything back and compare it with what was computed.

        Raises:
            MergeError: If anything differs.
        """

    def abandon(self) -> None:  # noqa: B027  # nothing to do for a writer without open files
        """Leave the files as they are, for a later run to take up."""


class _StreamWriter(Writer):
    """Streams blocks into sharded safetensors."""

    stem: str

    def __init__(self, plan: MergePlan, directory: Path, process: int = 0) -> None:
        super().__init__(plan, directory, process)
        size = plan.spec.shard_bytes
        self._files = ShardedWriter(directory, self._infos(), stem=self.stem, shard_bytes=size, process=process)

    @abstractmethod
    def _infos(self) -> dict[str, TensorInfo]: ...

    def has(self, name: str) -> bool:
        """Whether the journal of an interrupted run lists this parameter."""
        return name in self._files.finished

    def shards(self) -> list[list[str]]:
        """Names of all parameters by shard."""
        return self._files.shards

    def _stream(self, parameter: ParameterMerger, blocks: Any) -> int | None:
        name, checksum = parameter.name, 0
        dtype = self._files.infos[name].dtype
        scratch = torch.empty(0, dtype=dtype)
        for start, block in blocks:
            if block.numel() > scratch.numel():  # the first block is the longest
                scratch = torch.empty(block.numel(), dtype=dtype)
            checksum = self._store(name, scratch[: block.numel()].copy_(block), start, checksum)
        return checksum if self.plan.spec.verify else None

    def _store(self, name: str, entries: Tensor, start: int, checksum: int) -> int:
        """Write entries; returns the checksum of all bytes up to here, if the output is to be verified."""
        check_rounded(name, entries, "pass `--dtype bfloat16` or float32")
        self._files.write(name, entries, start)
        return crc32(as_bytes(entries), checksum) if self.plan.spec.verify else 0

    def accept(self, name: str, result: int | None) -> None:
        """Note the parameter in the journal."""
        self._files.finish(name, result)

    def verify(self) -> None:
        """Read every tensor back and compare the checksum of its bytes with that of what was computed."""
        written = open_state(self.directory)
        for name, info in self._files.infos.items():
            found = written.info(name)
            is_planned = (found.shape, found.dtype) == (info.shape, info.dtype)
            if not is_planned or crc32(as_bytes(written.read(name))) != self._files.checksums[name]:
                raise MergeError(f"{name!r} was not read back as it was written; the disk may be failing. Merge again.")

    def close(self) -> None:
        """Write the index."""
        self._files.close()

    def abandon(self) -> None:
        """Close the files; the journal stays."""
        self._files.abandon()


class ModelWriter(_StreamWriter):
    """A full model in Hugging Face layout: base plus update, everything else of the base carried over."""

    stem = "model"

    def _infos(self) -> dict[str, TensorInfo]:
        plan, dtype = self.plan, self.plan.spec.dtype
        assert plan.base is not None
        infos = {name: plan.base.info(name) for name in plan.base.keys()}
        if dtype == "auto":
            return infos
        return {n: TensorInfo(i.shape, float_dtype(dtype)) if is_mergeable(i.dtype) else i for n, i in infos.items()}

    def merge(self, parameter: ParameterMerger) -> int | None:
        """Write base plus update."""
        return self._stream(parameter, parameter.values())

    def copy(self, name: str, tensor: Tensor) -> int | None:
        """Write the base's entries in pieces: its bytes, unless another dtype is asked for."""
        flat, dtype, checksum = tensor.reshape(-1), self._files.infos[name].dtype, 0
        step = COPY_BYTES // dtype.itemsize
        for start in range(0, flat.numel(), step):
            checksum = self._store(name, flat[start : start + step].to(dtype), start, checksum)
        return checksum if self.plan.spec.verify else None

    def close(self) -> None:
        """Write the index; carry configuration and tokenizer over."""
        super().close()
        base, spec = self.plan.base, self.plan.spec
        assert base is not None
        assert spec.origin is not None
        if base.files():  # a model in memory has none beside it
            origin = model_path(spec.origin)
            if origin.is_dir() or (origin.parent / "config.json").exists():  # else its neighbours may be anything
                carry_files(origin if origin.is_dir() else origin.parent, self.directory)
        if spec.tokenizer is not None:
            carry_tokenizer(model_dir(spec.tokenizer), self.directory)
        if isinstance(base, SlicedState):
            restack_config(self.directory / "config.json", base)
        if spec.dtype != "auto":
            _set_dtype(self.directory / "config.json", spec.dtype)


class DeltaWriter(_StreamWriter):
    """The dense update alone, under the base's parameter names."""

    stem = "delta"

    def _infos(self) -> dict[str, TensorInfo]:
        name = self.plan.spec.dtype
        dtype = torch.float32 if name == "auto" else float_dtype(name)
        return {key: TensorInfo(info.shape, dtype) for key, info in self.plan.merged.items()}

    def merge(self, parameter: ParameterMerger) -> int | None:
        """Write the update."""
        return self._stream(parameter, parameter.deltas())


class AdapterWriter(Writer):
    """A PEFT adapter: exact concatenation while the rank allows it, else the best factors of that rank.

    The factors of all parameters are held until the end; they are a few percent of the model.
    """

    def __init__(self, plan: MergePlan, directory: Path, process: int = 0) -> None:
        super().__init__(plan, directory, process)
        self._updates: dict[str, tuple[LoraFactors, bool]] = {}
        self._embeddings = frozenset[str]().union(*(source.embeddings for source in plan.sources))

    def merge(self, parameter: ParameterMerger) -> tuple[LoraFactors, float]:
        """The factors of one update, and the share of its squared norm that they hold.

        Raises:
            MergeError: If the update belongs to no matrix, such as a bias.
        """
        name, spec = parameter.name, self.plan.spec
        shape = self.plan.merged[name].shape
        if len(shape) < 2 or not name.endswith(".weight"):
            raise MergeError(
                f"An adapter cannot hold the dense update of {name!r} {shape}; "
                "write `--output_format delta` or `model`."
            )
        terms = parameter.low_rank_terms()
        _check_finite(parameter, terms or [])
        if terms is None:
            factors, energy = self._factorise(parameter, shape)
        elif spec.energy < 1.0 or sum(t.rank for t in terms) > min(spec.rank or 1 << 30, *_matrix_shape(terms[0])):
            factors, energy = compress(terms, spec.rank, spec.energy)
        else:
            factors, energy = concatenate(terms), 1.0
        _check_finite(parameter, [factors])
        return factors, energy

    def accept(self, name: str, result: tuple[LoraFactors, float]) -> None:
        """Keep the factors for the file."""
        factors, self.retained_energy[name] = result
        self._updates[name] = (factors, name in self._embeddings)

    def _factorise(self, parameter: ParameterMerger, shape: tuple[int, ...]) -> tuple[LoraFactors, float]:
        delta = parameter.collect(parameter.deltas(), torch.float32)
        factors = parameter.low_rank()
        rank = self.plan.spec.rank or sum(f.rank for f in factors) or None
        transposed = any(f.transposed for f in factors)
        return factorise(delta, rank, self.plan.spec.energy, transposed=transposed)

    def close(self) -> None:
        """Write the adapter directory."""
        adapters = [source for source in self.plan.sources if isinstance(source, AdapterSource)]
        given = self.plan.spec.base or ""
        base = adapters[0].base_name or ("" if given.startswith(STEM) else given)
        updates = {n.removesuffix(".weight"): self._updates[n] for n in self.plan.merged}  # workers finish in any order
        write_adapter(self.directory, updates, base_model=base, task_type=adapters[0].task_type)

    def verify(self) -> None:
        """Read the adapter back and compare its factors."""
        written = Adapter(self.directory)
        for name, (factors, _) in self._updates.items():
            found = written.factors(name)
            pairs = [(found.A, factors.A.float()), (found.B * found.scale, factors.B.float() * factors.scale)]
            if not all(torch.equal(one.reshape(-1), other.reshape(-1)) for one, other in pairs):
                raise MergeError(f"{name!r} was not read back as it was written; the disk may be failing. Merge again.")


def check_rounded(name: str, entries: Tensor, remedy: str) -> None:
    """Refuse finite results that became infinite in float16.

    Raises:
        MergeError: If some did.
    """
    if entries.dtype == torch.float16 and not torch.isfinite(entries).all():
        raise MergeError(f"Entries of {name!r} do not fit float16; {remedy}.")


def _check_finite(parameter: ParameterMerger, factors: list[LoraFactors]) -> None:
    if not all(is_finite(f.A) and is_finite(f.B) for f in factors):
        list(parameter.deltas())  # names the source
        raise MergeError(f"The factors of {parameter.name!r} are not finite; use smaller coefficients.")


def _matrix_shape(factors: LoraFactors) -> tuple[int, int]:
    return factors.B.shape[0], factors.A.shape[1]


def _set_dtype(config: Path, dtype: str) -> None:
    """Make a carried ``config.json`` name the dtype that was written."""
    if not config.exists():
        return
    content = read_object(config)
    content.pop("torch_dtype", None)
    config.write_text(json.dumps({**content, "dtype": dtype}, indent=2) + "\n", encoding="utf-8")


WRITERS: dict[str, type[Writer]] = {"model": ModelWriter, "delta": DeltaWriter, "adapter": AdapterWriter}
