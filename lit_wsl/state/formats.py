"""Containers around a state dict, and the files that belong to a model beside its weights."""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_wsl.errors import CheckpointError

CONTAINER_KEYS = ("state_dict", "model", "model_state_dict", "module")
"""Where training tools put the state dict: Lightning and timm, nanoGPT and litgpt, plain loops, DeepSpeed."""

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Path components that torch.compile, FSDP and activation checkpointing insert into names."""

ADAPTER_CONFIG = "adapter_config.json"
"""File of an adapter directory that says what its factors mean."""
_CARRIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken", "[0-9]_*/*.json", "LICENSE*")
_LEFT = (
    "*.index.json",
    ADAPTER_CONFIG,
    "trainer_state.json",
    "merge_metadata.json",
    "delta_config.json",
)


def unwrap(content: Any, where: str) -> dict[str, Tensor]:
    """The flat state dict inside the object that a torch file holds.

    Raises:
        CheckpointError: If there is none.
    """
    inner = content
    for key in CONTAINER_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            inner = content[key]
            break
    named = inner.items() if isinstance(inner, Mapping) else ()
    tensors = {k: v for k, v in named if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f"{where} holds no state dict; save `model.state_dict()`.")
    stripped: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = strip_wrappers(name)
        if plain in stripped:
            raise CheckpointError(f"{where} holds {plain!r} twice, with a wrapper's name and without; remove one.")
        stripped[plain] = tensor
    return stripped


def strip_wrappers(name: str) -> str:
    """A parameter name without the components that wrappers of a module insert."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file beside the weights.

    Raises:
        CheckpointError: If it holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is no JSON ({error}); download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} is no JSON object; download it again.")
    return content


def carry_files(source: Path, target: Path, *, keep: Collection[str] = ()) -> list[str]:
    """Copy configuration and tokenizer files of a model directory; returns the copied names.

    Args:
        source: The model directory.
        target: Where to.
        keep: Files that are copied too, although they usually tell of other weights than those in ``target``.
    """
    copied = []
    for path in sorted({p for pattern in _CARRIED for p in source.glob(pattern)}):
        relative = path.relative_to(source)
        is_left = path.name not in keep and any(path.match(pattern) for pattern in _LEFT)
        if is_left or not path.is_file():
            continue
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / relative)
        copied.append(str(relative))
    return copied
