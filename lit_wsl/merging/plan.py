"""Decide what will happen to every parameter, from headers alone, before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

import lit_wsl
from lit_wsl.errors import ConfigError, MergeError
from lit_wsl.merging.coverage import Coverage, cover
from lit_wsl.merging.memory import NOTHING, Held
from lit_wsl.merging.method import LinearMethod, MergeMethod, build_method, method_class
from lit_wsl.merging.opening import open_base, open_sources, open_stand_in
from lit_wsl.merging.partial import LeadingRows, NoUpdate
from lit_wsl.merging.rules import LocalMethods, follows_layers
from lit_wsl.merging.sources import TaskVector, TaskVectorSource
from lit_wsl.merging.spec import MergeSpec
from lit_wsl.merging.statistics import Statistics, open_statistics
from lit_wsl.merging.tokenizer_files import check_tokenizer
from lit_wsl.merging.transform import Stage, build_stages
from lit_wsl.state.fingerprint import fingerprint
from lit_wsl.state.locate import model_dir
from lit_wsl.state.quantised import packed_of
from lit_wsl.state.reader import StateReader, TensorInfo


@dataclass(frozen=True)
class MergePlan:
    """What to merge and what to copy; nothing in it is computed yet."""

    spec: MergeSpec
    methods: LocalMethods
    """The method, with the parameters that hold at each place."""
    sources: list[TaskVectorSource]
    base: StateReader | None
    """Base to add to; the first model stands in where the base cancels out."""
    subtract_base: bool
    """Whether task vectors of full models are taken against ``base``."""
    stages: list[Stage]
    """Transforms of the task vectors, in order."""
    statistics: Statistics | None
    """What was gathered on the data of each source, for a method that uses it."""
    coverage: Coverage
    """Which parameters are merged, and from which sources."""
    copied: dict[str, TensorInfo]
    """Parameters that a model output takes from the base unchanged."""

    @cached_property
    def method(self) -> MergeMethod:
        """The method as it is at the first merged parameter; its class says what holds everywhere."""
        return self.methods.at(next(iter(self.merged)))

    @property
    def merged(self) -> dict[str, TensorInfo]:
        """Parameters that the method merges, with the base's dtype (float32 without a base)."""
        return self.coverage.merged

    @property
    def skipped(self) -> dict[str, str]:
        """Parameters that some sources have and that are not merged, with the reason."""
        return self.coverage.skipped

    @property
    def nbytes(self) -> int:
        """Bytes of all merged and copied parameters."""
        return sum(info.nbytes for info in (*self.merged.values(), *self.copied.values()))

    def base_tensor(self, name: str) -> Tensor | None:
        """The base's tensor, or None without a base and for a weight that it has packed."""
        return None if self.base is None or name in packed_of(self.base) else self.base.read(name)

    def task_vectors(self, name: str, base: Tensor | None) -> list[TaskVector]:
        """The update of one parameter by each source.

        Args:
            name: A merged parameter.
            base: The base's tensor that full models are compared with, or None.
        """
        absent, rows = self.coverage.absent.get(name, ()), self.coverage.common_rows.get(name)
        vectors: list[TaskVector] = []
        for index, source in enumerate(self.sources):
            vector = NoUpdate() if index in absent else source.task_vector(name, base)
            info = self.merged[name]
            vectors.append(vector if rows is None else LeadingRows(vector, rows * info.numel // info.shape[0]))
        return vectors

    def files(self) -> list[Path]:
        """Every file that the merge reads."""
        of_base = self.base.files() if self.base is not None else []
        of_data = self.statistics.files() if self.statistics is not None else []
        return [file for source in self.sources for file in source.files()] + of_base + of_data

    def fingerprint(self) -> str:
        """Identifies the merge and its inputs by settings, and by path, size and time of every file."""
        spec = {k: v for k, v in self.spec.to_dict().items() if k not in ("output", "overwrite", "threads")}
        return fingerprint([lit_wsl.__version__, spec], self.files())


def make_plan(spec: MergeSpec, held: Held = NOTHING) -> MergePlan:
    """Check a spec against its sources and decide the fate of every parameter.

    Args:
        spec: The merge.
        held: What some of its names stand for in memory.

    Raises:
        ConfigError: If the method, its parameters or a pattern are wrong.
        CheckpointError: If a source or the tokenizer cannot be read.
        MergeError: If the sources do not fit together.
    """
    method, stages = method_class(spec.method), build_stages(spec.transforms)
    _check_spec(spec, method)
    if spec.tokenizer is not None and spec.format == "model":
        check_tokenizer(model_dir(spec.tokenizer))  # now, not after the work
    base = open_base(spec, held)
    sources = open_sources(spec, base, held)
    subtract_base = base is not None
    if base is None and (spec.models or spec.slices):
        base = open_stand_in(spec, held)
    infos = {name: base.info(name) for name in base.keys()} if base is not None else _infos_of(sources)
    infos |= {name: info for name, info in _infos_of(sources).items() if name in packed_of(base)}
    methods = LocalMethods(spec.method, spec.parameters, spec.rules, infos)
    coverage = cover(spec, sources, infos)
    if not coverage.merged:
        raise MergeError("The sources have no parameter in common; they are not of one architecture.")
    methods.check(coverage.merged, len(sources))
    statistics = open_statistics(spec.statistics, method.data, sources) if method.data != "none" else None
    copied = {n: i for n, i in infos.items() if n not in coverage.merged} if spec.format == "model" else {}
    plan = MergePlan(spec, methods, sources, base, subtract_base, stages, statistics, coverage, copied)
    _check_weights(plan)
    return plan


def _check_spec(spec: MergeSpec, method: type[MergeMethod]) -> None:
    """Refuse what cannot be merged whatever the sources hold."""
    if spec.statistics and method.data == "none":
        raise ConfigError(f"Method {method.name!r} uses no statistics; leave `--statistics` out.")
    if not spec.rules and not any(map(follows_layers, spec.parameters.values())):
        build_method(spec.method, spec.parameters).check_sources(len(spec.sources))
    if spec.base:
        return
    if method.space == "weight" and (spec.adapters or spec.deltas):
        raise MergeError(f"Method {method.name!r} combines weights, not updates: pass `--base DIR` for adapters.")
    takes_apart = method.needs_base or spec.adapters or spec.deltas or spec.transforms or spec.format == "delta"
    if (spec.models or spec.slices) and takes_apart:
        raise MergeError(f"Merging by {method.name!r} needs the base of the models: pass `--base DIR`.")


def _check_weights(plan: MergePlan) -> None:
    """Refuse a method of whole weights where the base has none to read."""
    method = plan.method
    packed = next((name for name in plan.merged if name in packed_of(plan.base)), None)
    if packed and method.space == "weight":
        raise MergeError(f"Method {method.name!r} combines weights, but the base has {packed!r} quantised.")
    scaled = (scales_base(plan.methods.at(name), len(plan.sources)) for name in plan.merged)
    if plan.base is None and any(scaled):
        raise MergeError(f"Method {method.name!r} scales whole weights here, the base's too: pass `--base DIR`.")


def scales_base(method: MergeMethod, sources: int) -> bool:
    """Whether a method multiplies whole weights, so that its update has a part of the base."""
    return isinstance(method, LinearMethod) and method.base_coefficient(sources) != 0.0


def _infos_of(sources: Sequence[TaskVectorSource]) -> dict[str, TensorInfo]:
    """Parameters without a base: those of the sources, each as the first that has it."""
    shapes = {name: shape for source in reversed(sources) for name, shape in source.shapes.items()}
    return {name: TensorInfo(shape, torch.float32) for name, shape in shapes.items()}
