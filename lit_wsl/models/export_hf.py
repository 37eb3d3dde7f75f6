"""The transformers directory of one backbone, and the plain state dict."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from lit_wsl.errors import CheckpointError
from lit_wsl.models.architecture import (
    as_stored,
    check_fit,
    generation_config,
    make_architecture,
    parameter_shapes,
    stored_config,
)
from lit_wsl.models.checkpoint import Backbone, Checkpoint, choose_backbone
from lit_wsl.models.export_plan import Plan, Request, is_head, keep, recast, with_head
from lit_wsl.models.language import read_model_config
from lit_wsl.models.universal.api import fold_foreign
from lit_wsl.state.locate import model_dir, model_path
from lit_wsl.state.reader import open_state

logger = logging.getLogger(__name__)


def plan_safetensors(source: Checkpoint, request: Request) -> Plan:
    """The plain state dict as it is, tied duplicates included, so that it loads strictly."""
    tensors = {name: keep(tensor) for name, tensor in _plain_state(source).items()}
    return Plan(recast(tensors, request.dtype), left_out=source.others())


def plan_hf(source: Checkpoint, request: Request) -> Plan:
    """One backbone with its configuration and tokenizer.

    Raises:
        CheckpointError: If no class and configuration is known, or the weights do not fit it.
    """
    state, where = _plain_state(source), str(source.path)
    if source.backbones() or request.base is None:
        backbone = choose_backbone(source, request.backbone)
        model = make_architecture(backbone, where)
        prefix = backbone.prefix
    else:
        model = make_architecture(read_backbone(request.base), where)
        prefix = _prefix(state, parameter_shapes(model), request.backbone)
    inner = {name: t for name, t in state.items() if name.startswith(prefix) and (prefix or not is_head(name))}
    stored = as_stored({name.removeprefix(prefix): tensor for name, tensor in inner.items()}, model, where)
    tensors = recast({name: keep(tensor) for name, tensor in stored.items()}, request.dtype)
    generation = generation_config(model)
    carried = base_directory(source, request.base)
    plan = Plan(
        tensors,
        texts={"config.json": stored_config(model, {t.info.dtype for t in tensors.values()})},
        defaults={"generation_config.json": generation} if generation else {},
        carried=carried,
        read_from=[carried / "config.json"] if carried else [],
        check=check_loads,
    )
    return with_head(plan, source, {name: t for name, t in state.items() if name not in inner}, request.dtype)


def _plain_state(source: Checkpoint) -> dict[str, Tensor]:
    """Plain names and merged weights.

    Raises:
        CheckpointError: If the file has unmerged adapters, whose scale it does not say.
    """
    return source.state() if source.is_universal else fold_foreign(source.state())


def read_backbone(directory: str | Path) -> Backbone:
    """The backbone that the ``config.json`` of a model directory describes.

    Raises:
        CheckpointError: If there is none, or it names no class.
    """
    path = model_dir(directory) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{directory} has no config.json; give the directory of a transformers model.")
    config = read_model_config(path)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise CheckpointError(f"{path} names no class under `architectures`; add it.")
    return Backbone("", str(architectures[0]), config)


def _prefix(names: Iterable[str], wanted: Mapping[str, tuple[int, ...]], given: str | None) -> str:
    """What stands in front of the model's names in a foreign state dict: the prefix that most of them share."""
    if given is not None:
        return f"{given}." if given else ""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        endings = (".".join(parts[i:]) for i in range(len(parts)))
        counts.update(name.removesuffix(ending) for ending in endings if ending in wanted)
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def base_directory(source: Checkpoint, base: str | None) -> Path | None:
    """Directory of the base model, if the user names one or the run started from one that is still there."""
    if base is not None:
        path = model_path(base)
        return path if path.is_dir() else path.parent
    spec = source.hyper_parameters().get("model")
    if not isinstance(spec, str):
        return None
    if spec.startswith("package:") or Path(spec).expanduser().is_dir():
        return model_dir(spec)
    logger.warning("No tokenizer comes along: %s is no directory here; pass `--base DIR`.", spec)
    return None


def check_loads(directory: Path) -> None:
    """Compare names and shapes on disk with the class that ``config.json`` names.

    Raises:
        CheckpointError: If they differ.
    """
    weights = open_state(directory)
    shapes = {name: weights.info(name).shape for name in weights.keys()}
    check_fit(shapes, parameter_shapes(make_architecture(read_backbone(directory), str(directory))), str(directory))
