"""PEFT adapter directories: every update they hold, under one scale rule; see ``adapter_files`` for the way back."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

from lit_wsl.errors import CheckpointError
from lit_wsl.state.reader import StateReader, open_state
from lit_wsl.tensors.lora import LoraFactors, apply_dora

PREFIX = "base_model.model."
HEAD_FILE = "head.safetensors"
"""File beside the factors that holds a task head which the base has no place for."""

_REFUSED = (
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_qalora",
    "use_bdlora",
)
"""Settings under which the update is no longer ``scale * B @ A`` on the stored weight."""

_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base weights alone; the others move part of the base into the adapter."""


@dataclass(frozen=True)
class AdapterConfig:
    """What ``adapter_config.json`` says about the meaning of the factors."""

    r: int
    lora_alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    base_model_name_or_path: str | None = None
    task_type: str | None = None
    modules_to_save: list[str] | None = None
    target_parameters: list[str] | None = None
    """Parameters with factors of their own; see ``stacked_adapters``."""
    ensure_weight_tying: bool = False

    def scale(self, module: str) -> float:
        """The one scale rule: alpha / r of that module, alpha / sqrt(r) for rsLoRA.

        Args:
            module: Module path without the ``base_model.model.`` prefix.

        Reference:
            rsLoRA, https://arxiv.org/abs/2312.03732, section 3.
        """
        rank = by_pattern(self.rank_pattern, module, self.r)
        alpha = by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Value of the first pattern that matches the end of a module path at a component boundary."""
    for pattern, value in patterns.items():
        if _at_the_end(pattern).match(module):
            return value
    return default


@cache  # a pattern for each layer of a large model is more than ``re`` keeps
def _at_the_end(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def read_adapter_config(directory: Path) -> AdapterConfig:
    """Read and check ``adapter_config.json``.

    Raises:
        CheckpointError: If it is missing or damaged, is not of LoRA, or asks for something that cannot be
            folded; the message names it.
    """
    path = directory / "adapter_config.json"
    if not path.is_file():
        what = "is no adapter directory: adapter_config.json is missing" if directory.exists() else "does not exist"
        raise CheckpointError(f"{directory} {what}; check the path.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); save the adapter again.") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} is no JSON object; save the adapter again.")
    return adapter_config(raw, path)


def adapter_config(raw: Mapping[str, Any], path: Path) -> AdapterConfig:
    """Check the content of an ``adapter_config.json``.

    Args:
        raw: The content.
        path: Where it comes from, for messages.

    Raises:
        CheckpointError: If it is damaged or asks for something that cannot be folded; the message names it.
    """
    _refuse_unsupported(path, raw)
    known = {name: raw[name] for name in AdapterConfig.__dataclass_fields__ if raw.get(name) is not None}
    for name, kind in get_type_hints(AdapterConfig).items():
        if name in known and kind in (bool, str, str | None) and not isinstance(known[name], kind):
            raise CheckpointError(f"{path}: `{name}` cannot be {known[name]!r}; save the adapter again.")
        if name in known and kind == list[str] | None and not _are_texts(known[name]):
            raise CheckpointError(f"{path}: `{name}` must be a list of names, got {known[name]!r}; save it again.")
    config = AdapterConfig(**{"r": 0, "lora_alpha": 0.0, **known})
    _check_numbers(path, config)
    return config


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _refuse_unsupported(path: Path, raw: Mapping[str, Any]) -> None:
    if raw.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{path}: an adapter of type {raw['peft_type']!r}; only LORA can be folded.")
    asked = next((name for name in _REFUSED if raw.get(name)), None)
    if asked:
        raise CheckpointError(f"{path}: `{asked}` cannot be folded into a weight; merge it with PEFT first.")
    if raw.get("init_lora_weights", True) not in _PLAIN_INITS:
        raise CheckpointError(
            f"{path}: `init_lora_weights: {raw['init_lora_weights']}` changed the base weights; "
            "save the adapter with PEFT's `path_initial_model_for_weight_conversion` first."
        )


def _check_numbers(path: Path, config: AdapterConfig) -> None:
    numbers = [config.r, config.lora_alpha]
    for patterns in (config.rank_pattern, config.alpha_pattern):
        if not isinstance(patterns, Mapping):
            raise CheckpointError(f"{path}: rank_pattern and alpha_pattern must be mappings; save it again.")
        numbers += patterns.values()
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise CheckpointError(f"{path}: pattern {pattern!r} is no regular expression ({error}).") from error
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        raise CheckpointError(f"{path}: ranks and alphas must be finite numbers, got {numbers}; save it again.")
    if config.r <= 0 or any(rank <= 0 for rank in config.rank_pattern.values()):
        raise CheckpointError(f"{path}: `rank > 0` must hold, got r={config.r}, {dict(config.rank_pattern)}.")


@dataclass(frozen=True)
class AdapterSite:
    """Tensors of an adapter that together change one parameter.

    Low-rank factors ``A`` and ``B`` (with a DoRA ``magnitude`` or without), or a ``value`` that replaces the
    parameter, a ``shift`` that is added (the bias of ``lora_B``, times the scale), or both of these.
    """

    module: str
    A: str = ""
    B: str = ""
    magnitude: str = ""
    shift: str = ""
    value: str = ""
    embedding: bool = False


_SUFFIXES = (
    ("A", re.compile(r"^(.+)\.lora_A(?:\.default)?\.weight$")),
    ("B", re.compile(r"^(.+)\.lora_B(?:\.default)?\.weight$")),
    ("A", re.compile(r"^(.+)\.lora_embedding_A(?:\.default)?$")),
    ("B", re.compile(r"^(.+)\.lora_embedding_B(?:\.default)?$")),
    ("magnitude", re.compile(r"^(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?$")),
    ("shift", re.compile(r"^(.+)\.lora_B(?:\.default)?\.bias$")),
)
_VALUE = re.compile(r"^(?P<module>.+?)(?:\.base_layer|\.modules_to_save(?:\.default)?)?\.(?P<leaf>[^.]+)$")


class Adapter:
    """A PEFT adapter directory: its configuration and, per parameter, the tensors that change it.

    Opening reads headers only. ``sites`` maps the adapter's own parameter names (module path plus
    ``.weight`` or ``.bias``, without PEFT's prefix) to the tensors.

    Args:
        directory: The directory; of an adapter that has none, what to call it in messages.
        config: Its configuration, where ``directory`` has none.
        state: Its tensors by PEFT's names, where ``directory`` has none.
        stacked: Whether ``target_parameters`` may be among the sites, under the names of the modules that hold them.

    Raises:
        CheckpointError: If a pair is incomplete, a tensor is not understood, or the settings cannot be folded.
    """

    def __init__(
        self,
        directory: Path,
        config: AdapterConfig | None = None,
        state: StateReader | None = None,
        *,
        stacked: bool = False,
    ) -> None:
        self.directory = directory
        self.config = config if config is not None else read_adapter_config(directory)
        if self.config.target_parameters and not stacked:
            raise CheckpointError(
                f"{directory}: `target_parameters` ({self.config.target_parameters[0]!r}) are parameters of no layer; "
                "merge it into its base first."
            )
        self.state: StateReader = state if state is not None else open_state(directory)
        self.sites = self._collect()

    def _collect(self) -> dict[str, AdapterSite]:
        parts: dict[str, dict[str, Any]] = {}
        for key in self.state.keys():
            name = key.removeprefix(PREFIX)
            role, module, leaf = _classify(name)
            entry = parts.setdefault(f"{module}.{leaf}", {"module": module})
            if role in entry:
                raise CheckpointError(f"{self.directory}: {entry[role]!r} and {key!r} are one tensor; remove one.")
            entry[role] = key
            entry["embedding"] = entry.get("embedding", False) or "lora_embedding_" in name
        for name, entry in parts.items():
            if ("A" in entry) != ("B" in entry) or ("magnitude" in entry and "A" not in entry):
                has = next(entry[role] for role in ("A", "B", "magnitude") if role in entry)
                raise CheckpointError(f"{self.directory}: {has!r} has no partner for {name!r}; save the adapter again.")
        sites = {name: AdapterSite(**entry) for name, entry in parts.items()}
        return self._once(sites) if self.config.ensure_weight_tying else sites

    def _once(self, sites: dict[str, AdapterSite]) -> dict[str, AdapterSite]:
        """The sites without those of layers that share the weight of an embedding, which repeat its update."""
        embeddings = [site for site in sites.values() if site.embedding and site.A]
        values = {name: site for name, site in sites.items() if site.value and name.endswith(".weight")}
        kept: dict[str, AdapterSite] = {}
        for name, site in sites.items():
            repeats = any(self._repeats(site, other) for other in embeddings)
            earlier = (kept[other] for other in values if other in kept) if name in values else ()
            if not repeats and not any(self._equal(site.value, other.value) for other in earlier):
                kept[name] = site
        return kept

    def _repeats(self, site: AdapterSite, embedding: AdapterSite) -> bool:
        if site.embedding or not site.A or self.state.info(site.A).shape != self.state.info(embedding.B).shape[::-1]:
            return False
        return self._equal(site.A, embedding.B, turned=True) and self._equal(site.B, embedding.A, turned=True)

    def _equal(self, one: str, other: str, *, turned: bool = False) -> bool:
        left, right = self.state.info(one).shape, self.state.info(other).shape
        if left != (right[::-1] if turned else right):
            return False
        tensor = self.state.read(other)
        return torch.equal(self.state.read(one), tensor.T if turned else tensor)

    @staticmethod
    def plain(key: str) -> str:
        """The key of a tensor in the file without PEFT's prefix."""
        return key.removeprefix(PREFIX)

    def factors(self, name: str, base_shape: tuple[int, ...] | None = None) -> LoraFactors:
        """Low-rank factors of a site, in the orientation of the base parameter.

        Raises:
            CheckpointError: If the factors do not fit each other, the configured rank, or the base.
        """
        site = self.sites[name]
        A, B = self.state.read(site.A), self.state.read(site.B)
        if B.ndim < 2 or A.ndim < 2 or B.shape[1] != A.shape[0] or math.prod(B.shape[2:]) != 1:
            raise CheckpointError(
                f"{self.directory}: factors of {name!r} do not fit: A {tuple(A.shape)}, B {tuple(B.shape)}; "
                "the ranks must agree. Save the adapter again."
            )
        if A.is_complex() or B.is_complex():
            raise CheckpointError(f"{self.directory}: factors of {name!r} are complex; save the adapter again.")
        rank = A.shape[0]
        configured = by_pattern(self.config.rank_pattern, site.module, self.config.r)
        if rank != configured:
            raise CheckpointError(
                f"{self.directory}: {name!r} has rank {rank} but adapter_config.json says {configured}, "
                "so its scale is unknown; mend the configuration."
            )
        natural = (B.shape[0], *A.shape[1:])
        turned = (*A.shape[1:], B.shape[0])
        transposed = site.embedding or (A.ndim == 2 and self._is_turned(natural, base_shape))
        shape = turned if transposed else natural
        if base_shape is not None and shape != tuple(base_shape):
            raise CheckpointError(
                f"Shape mismatch at {name!r}: base {tuple(base_shape)}, {self.directory} {shape}; "
                "the adapter belongs to another base."
            )
        flat_A, flat_B = A.reshape(rank, -1), B.reshape(-1, rank)
        return LoraFactors(flat_A, flat_B, self.config.scale(site.module), shape, transposed)

    def _is_turned(self, natural: tuple[int, ...], base_shape: tuple[int, ...] | None) -> bool:
        """Whether the base stores this parameter as ``(d_in, d_out)``; the shape decides, else the flag."""
        if base_shape is None or natural[0] == natural[1]:
            return self.config.fan_in_fan_out
        return tuple(base_shape) == natural[::-1]

    def shift(self, name: str) -> Tensor:
        """Update of a bias that ``lora_bias`` trained: the scale times the bias of ``lora_B``."""
        site = self.sites[name]
        return self.state.read(site.shift).float() * self.config.scale(site.module)

    def dora_update(self, name: str, base: Tensor) -> Tensor:
        """Dense update of a DoRA site, float32, in the base parameter's shape."""
        factors = self.factors(name, tuple(base.shape))
        magnitude = self.state.read(self.sites[name].magnitude).float().flatten()
        left, right = factors.stored_factors()
        weight, update = base.float().reshape(left.shape[0], -1), left @ right
        if factors.transposed:
            return apply_dora(weight.T, update.T, magnitude).T.sub(weight).reshape(base.shape)
        return apply_dora(weight, update, magnitude).sub_(weight).reshape(base.shape)


def _classify(name: str) -> tuple[str, str, str]:
    """Role, module and parameter leaf of an adapter tensor."""
    for role, pattern in _SUFFIXES:
        if match := pattern.match(name):
            return role, match.group(1), "bias" if role == "shift" else "weight"
    match = _VALUE.match(name)
    if match is None or "lora_" in name:
        raise CheckpointError(f"Adapter tensor {name!r} is not understood; it cannot be folded.")
    return "value", match["module"], match["leaf"]
