"""LoRA through PEFT: one specification, injected into any model, saved as a PEFT directory.

Reference:
    LoRA, https://arxiv.org/abs/2106.09685; rsLoRA, https://arxiv.org/abs/2312.03732;
    DoRA, https://arxiv.org/abs/2402.09353.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn

from lit_wsl.errors import CheckpointError, ConfigError, did_you_mean
from lit_wsl.state.adapters import HEAD_FILE, PREFIX, Adapter
from lit_wsl.state.publish import published_directory
from lit_wsl.state.writer import write_tensors

# Others, PiSSA and OLoRA among them, change the base weights: their adapters fit no unchanged base.
_INITIALISATIONS = ("gaussian", "orthogonal")


@dataclass(frozen=True)
class LoraSpec:
    """Which layers get a low-rank adapter, and its form."""

    rank: int = 8
    """Rank of every adapter, at least 1."""
    alpha: float = 16.0
    """Numerator of the scaling ``alpha / rank``, above 0."""
    target_modules: list[str] | str = field(default_factory=lambda: ["query", "key", "value", "dense"])
    """Names of the adapted layers, matched on the last path components; a string is a regular expression
    on the full path, or ``all-linear``."""
    exclude_modules: list[str] = field(default_factory=lambda: ["pooler.dense"])
    """Ends of the paths of layers left out although ``target_modules`` names them; those absent do not matter.
    Mean pooling never reads BERT's pooler, so an adapter there would get no gradient."""
    dropout: float = 0.0
    """Dropout on the adapter's input, in [0, 1)."""
    use_rslora: bool = False
    """Scale by ``alpha / sqrt(rank)`` instead of ``alpha / rank``."""
    use_dora: bool = False
    """Learn the magnitude of each output separately (DoRA)."""
    init_lora_weights: bool | str = True
    """True starts at the base model's function, so do ``gaussian`` and ``orthogonal``; False does not."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: If a field is out of range.
        """
        if self.rank < 1:
            raise ConfigError(f"`rank >= 1` must hold, got {self.rank}.")
        if not self.alpha > 0:
            raise ConfigError(f"`alpha > 0` must hold, got {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"`0 <= dropout < 1` must hold, got {self.dropout}.")
        if not self.target_modules:
            raise ConfigError("`target_modules` must name at least one layer, got none.")
        self._check_initialisation()

    def _check_initialisation(self) -> None:
        name = self.init_lora_weights
        if not isinstance(name, bool) and name not in _INITIALISATIONS:
            raise ConfigError(
                f"init_lora_weights must be true, false, or one of {', '.join(_INITIALISATIONS)}, got {name!r}; "
                "others change the base weights, so their adapters could not be merged."
            )

    @property
    def scaling(self) -> float:
        """Factor of the adapter's product ``B @ A``."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)


def inject_lora(model: nn.Module, spec: LoraSpec) -> None:
    """Freeze ``model`` and put trainable adapters into the layers that ``spec`` names, in place.

    Raises:
        ConfigError: If no layer matches ``target_modules``.
    """
    _check_targets(model, spec)
    model.requires_grad_(False)
    try:
        inject_adapter_in_model(_peft_config(spec, model), model)
    except (ValueError, re.error) as error:
        raise ConfigError(
            f"target_modules {spec.target_modules!r} do not fit {type(model).__name__}: {error}"
        ) from error


def load_adapter(model: nn.Module, spec: LoraSpec, directory: Path) -> None:
    """Put the trained factors of a PEFT directory into the adapters of ``model``, in place.

    Args:
        model: A model that went through ``inject_lora``.
        spec: What it was injected with.
        directory: What :func:`save_adapter` or PEFT wrote.

    Raises:
        CheckpointError: If the directory is no adapter, or of another form than ``spec``.
    """
    adapter = Adapter(Path(directory))
    config = adapter.config
    theirs = (config.r, config.lora_alpha, config.use_rslora, config.use_dora)
    if theirs != (spec.rank, spec.alpha, spec.use_rslora, spec.use_dora):
        raise CheckpointError(
            f"{directory} has rank {config.r}, alpha {config.lora_alpha:g}, rsLoRA {config.use_rslora}, "
            f"DoRA {config.use_dora}, the `lora` settings say otherwise; make them agree."
        )
    state = {key.removeprefix(PREFIX): adapter.state.read(key) for key in adapter.state.keys()}
    expected = get_peft_model_state_dict(model)
    differing = sorted(set(expected) ^ set(state)) or [k for k in state if state[k].shape != expected[k].shape]
    if differing:
        raise CheckpointError(f"{directory} does not fit the `lora` settings at {differing[0]!r}; make them agree.")
    set_peft_model_state_dict(model, state)


def save_adapter(
    model: nn.Module,
    spec: LoraSpec,
    directory: Path,
    base_model: str,
    head: Mapping[str, Tensor] | None = None,
    head_metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the adapters of ``model`` as a PEFT directory, published whole.

    Args:
        model: A model that went through ``inject_lora``.
        spec: What it was injected with.
        directory: Gets ``adapter_config.json`` and ``adapter_model.safetensors``; an earlier one is replaced.
        base_model: Where the base model is, written to ``base_model_name_or_path``.
        head: Tensors of a task head, written to ``head.safetensors`` beside the adapters: the base model has
            no place for them, so neither PEFT nor a merge of backbones must meet them among the adapters.
        head_metadata: Metadata of that file.

    Raises:
        CheckpointError: If the directory cannot be written, or holds something else.
    """
    factors = {f"{PREFIX}{name}": tensor for name, tensor in get_peft_model_state_dict(model).items()}
    with published_directory(Path(directory), overwrite=True) as scratch:
        write_tensors(scratch / "adapter_model.safetensors", factors)
        (scratch / "adapter_config.json").write_text(
            _config_json(_peft_config(spec, model), base_model), encoding="utf-8"
        )
        if head is not None:
            write_tensors(scratch / HEAD_FILE, head, head_metadata)


def _peft_config(spec: LoraSpec, model: nn.Module) -> LoraConfig:
    # PEFT warns of exclusions that exclude nothing.
    names = [f".{name}" for name, _ in model.named_modules()]
    excluded = [end for end in spec.exclude_modules if any(name.endswith(f".{end}") for name in names)]
    return LoraConfig(
        exclude_modules=excluded or None,
        r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=spec.target_modules,
        lora_dropout=spec.dropout,
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
        init_lora_weights=spec.init_lora_weights,
    )


def _config_json(config: LoraConfig, base_model: str) -> str:
    """The configuration as PEFT writes it, with sorted keys and sets so that equal runs give equal bytes."""
    config.base_model_name_or_path = base_model
    config.inference_mode = True
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=_jsonable) + "\n"


def _jsonable(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def _check_targets(model: nn.Module, spec: LoraSpec) -> None:
    if isinstance(spec.target_modules, str):
        return
    names = {name.rpartition(".")[2] for name, _ in model.named_modules() if name}
    for target in spec.target_modules:
        if target.rpartition(".")[2] not in names:
            layers = {
                name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)
            }
            raise ConfigError(
                f"target_modules: no layer {target!r} in {type(model).__name__}. {did_you_mean(target, layers)}"
            )
