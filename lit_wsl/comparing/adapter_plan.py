"""The tensors of a PEFT adapter, planned before any factor is read.

Reference:
    https://huggingface.co/docs/peft/developer_guides/checkpoint; the layouts of tied embeddings, biases, stacked
    experts and whole tensors are those that PEFT 0.21 loads.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from lit_wsl.comparing.adapter_fate import Fates
from lit_wsl.comparing.adapter_stacks import StackPart, parameter_wraps, stacked
from lit_wsl.comparing.models import ComparedModel
from lit_wsl.comparing.records import Finding
from lit_wsl.comparing.run import FACTORS, factor_file
from lit_wsl.state.adapter_files import peft_factors
from lit_wsl.state.adapter_layers import ModelLayers
from lit_wsl.state.adapters import PREFIX
from lit_wsl.state.safetensors import SafetensorsFile, TensorInfo
from lit_wsl.tensors.difference import Entries
from lit_wsl.tensors.lora import LoraFactors

_BLOCK = 1 << 20
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Planned:
    """A tensor to write: what it will be, and what makes it piece by piece, with the flat place of each."""

    info: TensorInfo
    pieces: Callable[[], Iterator[tuple[int, Tensor]]]


class Factors:
    """The factors that a comparison left on disk, by the names in the base's files."""

    def __init__(self, directory: Path, comparable: list[str]) -> None:
        self._files = {name: directory / FACTORS / factor_file(at) for at, name in enumerate(comparable)}

    def has(self, names: Iterable[str]) -> bool:
        """Whether all factors of these tensors are there."""
        return all(self._files[name].is_file() for name in names)

    def read(self, name: str, expert: int = 0) -> tuple[Tensor, Tensor]:
        """``A`` of shape ``(r, columns)`` and ``B`` of shape ``(rows, r)``: the stored update is ``B @ A``."""
        file = SafetensorsFile(self._files[name])
        return file.read(f"A.{expert}"), file.read(f"B.{expert}")


@dataclass
class AdapterPlan:
    """Tensors and settings of an adapter."""

    tensors: dict[str, Planned] = field(default_factory=dict)
    modules: dict[str, int] = field(default_factory=dict)
    """Adapted modules with their ranks."""
    parameters: dict[str, int] = field(default_factory=dict)
    """Adapted stacks of matrices with their ranks."""
    copied: list[str] = field(default_factory=list)
    """Modules that PEFT keeps whole beside the base's."""
    ties: bool = False
    """Whether an embedding that the output shares is part of the adapter."""
    biases: bool = False
    """Whether biases are kept whole."""
    turned: bool = False
    """Whether adapted layers store their weights as ``(d_in, d_out)``."""

    def ranks(self) -> dict[str, int]:
        """All ranks."""
        return self.modules | self.parameters


class Planner:
    """Plans an adapter from what becomes of each tensor, and moves what PEFT cannot hold to what is left out."""

    def __init__(
        self, fates: Fates, layers: ModelLayers, base: ComparedModel, tuned: ComparedModel, factors: Factors
    ) -> None:
        self._fates, self._layers, self._base, self._tuned, self._factors = fates, layers, base, tuned, factors
        self._stored = {loaded: name for name, loaded in layers.names.items()}
        self._made = AdapterPlan()

    def plan(self) -> AdapterPlan:
        """The adapter."""
        for name, finding in list(self._fates.factors.items()):
            self._add_layer(name, finding)
        self._add_stacks()
        for name in self._fates.whole:
            self._add_whole(name)
        return self._made

    def _loaded(self, name: str) -> str:
        return self._layers.names.get(name, name)

    def _add_layer(self, name: str, finding: Finding) -> None:
        loaded = self._loaded(name)
        module, kind = loaded.removesuffix(_WEIGHT), self._layers.kind(loaded.removesuffix(_WEIGHT))
        ties = self._layers.ties.get(loaded, ())
        tied = [other.removesuffix(_WEIGHT) for other in ties]
        if tied and not (kind == "embedding" and all(self._layers.kind(other) == "linear" for other in tied)):
            del self._fates.factors[name]
            self._fates.whole[name] = f"the model uses it for {', '.join(ties)} too"
            return
        rank, is_embedding = finding.extracted[0].rank, kind == "embedding"
        self._add_factors(name, module, rank, transposed=kind in ("turned", "embedding"), is_embedding=is_embedding)
        for other in tied:
            self._add_factors(name, other, rank, transposed=False, is_embedding=False)
        self._made.ties |= bool(tied)
        self._made.turned |= kind == "turned"

    def _add_factors(self, name: str, module: str, rank: int, *, transposed: bool, is_embedding: bool) -> None:
        shape = self._base.infos()[name].shape

        def tensors(A: Tensor, B: Tensor) -> dict[str, Tensor]:
            A, B = (B.T, A.T) if transposed else (A, B)
            return peft_factors(module, LoraFactors(A, B, 1.0, shape, transposed), embedding=is_embedding)

        def made(key: str) -> Tensor:
            return tensors(*self._factors.read(name))[key]

        for key, planned in _without_entries(tensors, rank, (shape[0], prod(shape[1:]))).items():
            self._plan_made(key, tuple(planned.shape), partial(made, key))
        self._made.modules[module] = rank

    def _plan_made(self, key: str, shape: tuple[int, ...], make: Callable[[], Tensor]) -> None:
        self._made.tensors[key] = Planned(TensorInfo(shape, torch.float32), lambda: iter([(0, make())]))

    def _add_stacks(self) -> None:
        """Stacks that files hold, and those that transformers makes of matrices for single experts."""
        groups: dict[str, list[StackPart]] = {}
        for name, finding in self._fates.stacks.items():
            groups[self._loaded(name)] = [
                StackPart(name, expert, expert, 0, one.rank) for expert, one in enumerate(finding.extracted)
            ]
        for name, finding in self._fates.parts.items():
            place = self._layers.parts[name]
            made = StackPart(name, 0, place.expert, place.slot, finding.extracted[0].rank)
            groups.setdefault(place.parameter, []).append(made)
        wraps = parameter_wraps(list(groups), self._layers)
        for parameter, parts in groups.items():
            reason = self._refusal(parameter)
            if reason:
                for part in parts:
                    self._fates.leave_out(part.name, reason)
            else:
                self._add_stack(parameter, parts, wraps[parameter])

    def _refusal(self, parameter: str) -> str:
        """Why PEFT cannot hold a stack of this model; empty if it can."""
        if self._made.turned:
            return "PEFT has no adapter for stacked experts beside layers that store their weights the other way round"
        if parameter.rpartition(".")[0] not in self._layers.tensors or not self._layers.is_known:
            return "the base has no config.json that says how its experts are stored"
        return ""

    def _add_stack(self, parameter: str, parts: list[StackPart], wraps: int) -> None:
        module = parameter.rpartition(".")[0]
        layout = stacked(parts, self._layers, self._base.infos(), is_turned=module in self._layers.stacks_turned)
        inner = ".base_layer" * wraps
        names = (f"{PREFIX}{module}{inner}.lora_A.weight", f"{PREFIX}{module}{inner}.lora_B.weight")
        self._plan_made(names[0], layout.shape_A, lambda: layout.make_A(self._factors.read))
        self._plan_made(names[1], layout.shape_B, lambda: layout.make_B(self._factors.read))
        self._made.parameters[parameter] = layout.rank

    def _add_whole(self, name: str) -> None:
        loaded = self._loaded(name)
        module, _, leaf = loaded.rpartition(".")
        siblings = self._layers.tensors.get(module, (loaded,))
        is_layer = leaf == "weight" and module not in self._made.modules and self._layers.kind(module) != "other"
        is_norm = all(len(self._shape(one)) < 2 for one in siblings) and self._layers.kind(module) == "other"
        if (is_layer or is_norm) and self._is_copied(module, siblings):
            self._copy(module, siblings, loaded)
            return
        wraps = sum(one.rpartition(".")[0] == module for one in self._made.parameters) + (module in self._made.modules)
        path = f"{module}{'.base_layer' * wraps}." if module else ""
        self._made.tensors[f"{PREFIX}{path}{leaf}"] = whole(self._tuned.entries(name))
        self._made.biases |= leaf == "bias"

    def _is_copied(self, module: str, siblings: tuple[str, ...]) -> bool:
        """Whether PEFT can copy exactly this module; it takes every module whose path ends like this one."""
        others = (path for path in self._layers.kinds if path != module and path.endswith(module))
        is_direct = all(one.rpartition(".")[0] == module for one in siblings)
        return bool(module) and is_direct and not any(others) and all(self._holder(one) is not None for one in siblings)

    def _copy(self, module: str, siblings: tuple[str, ...], loaded: str) -> None:
        if module in self._made.copied:
            return
        self._made.copied.append(module)
        for one in siblings:
            self._made.tensors[PREFIX + one] = whole(self._source(one))
        for other in self._layers.ties.get(loaded, ()):
            self._made.tensors[PREFIX + other] = self._made.tensors[PREFIX + loaded]
            self._made.ties = True

    def _shape(self, loaded: str) -> tuple[int, ...]:
        model = self._holder(loaded)
        return model.infos()[self._stored.get(loaded, loaded)].shape if model is not None else ()

    def _holder(self, loaded: str) -> ComparedModel | None:
        """The fine-tuned model if it has a tensor of that name in the loaded model, or else the base."""
        name = self._stored.get(loaded, loaded)
        return next((model for model in (self._tuned, self._base) if name in model.infos()), None)

    def _source(self, loaded: str) -> Entries:
        model = self._holder(loaded)
        assert model is not None
        return model.entries(self._stored.get(loaded, loaded))


def _without_entries(
    tensors: Callable[[Tensor, Tensor], dict[str, Tensor]], rank: int, shape: tuple[int, int]
) -> dict[str, Tensor]:
    """What a layout makes of factors that have shapes only."""
    return tensors(torch.empty((rank, shape[1]), device="meta"), torch.empty((shape[0], rank), device="meta"))


def whole(entries: Entries) -> Planned:
    """A tensor as it is stored; one that is computed in float32."""
    stored = entries.stored()
    if stored is not None:
        return Planned(TensorInfo(entries.shape, stored.dtype), lambda: iter([(0, stored)]))
    return Planned(TensorInfo(entries.shape, torch.float32), lambda: _filled(entries))


def _filled(entries: Entries) -> Iterator[tuple[int, Tensor]]:
    columns = max(1, prod(entries.shape[1:]))
    step, total = max(1, _BLOCK // columns) * columns, prod(entries.shape)
    for start in range(0, total, step):
        block = torch.empty(min(step, total - start))
        entries.fill(block, start)
        yield start, block
