"""Export a checkpoint: to the transformers layout, to a PEFT adapter, or to plain safetensors."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from lit_wsl.errors import CheckpointError, ConfigError, did_you_mean
from lit_wsl.models.checkpoint import Checkpoint, open_checkpoint
from lit_wsl.models.export_adapter import plan_adapter
from lit_wsl.models.export_hf import plan_hf, plan_safetensors
from lit_wsl.models.export_plan import Dtype, Format, Plan, Planned, Request
from lit_wsl.state.adapters import HEAD_FILE
from lit_wsl.state.fingerprint import fingerprint
from lit_wsl.state.formats import carry_files
from lit_wsl.state.publish import check_target, published_directory
from lit_wsl.state.reader import StateReader, open_state
from lit_wsl.state.writer import SHARD_BYTES, ShardedWriter

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all, and the tensor at hand."""
PLANS = {"hf": plan_hf, "adapter": plan_adapter, "safetensors": plan_safetensors}
_UNLIMITED = 1 << 62


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote."""

    output: Path
    format: Format
    tensors: int
    nbytes: int
    files: list[str]
    left_out: list[str]
    """Entries of the state dict that the format has no place for."""
    verified: bool


def export_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    format: Format = "hf",
    base: str | Path | None = None,
    backbone: str | None = None,
    dtype: Dtype = "auto",
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    verify: bool = True,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the weights of a checkpoint in a layout that other tools load.

    Tensors stream from the mapped file, so the largest of them bounds the memory. The directory appears whole or
    not at all.

    Args:
        checkpoint: Universal checkpoint; for ``safetensors`` and, with ``base``, for ``hf`` any file of weights.
        output: Directory to write.
        format: ``hf`` is a transformers directory of one backbone with adapters folded in, ``adapter`` a PEFT
            directory of its adapters, ``safetensors`` the plain state dict.
        base: The base model; by default the hyperparameter ``model``. For ``adapter`` it must be what the adapters
            were trained on; for ``hf`` its tokenizer comes along, and its ``config.json`` counts where the
            checkpoint has none.
        backbone: Path of the backbone in the module, where there are several.
        dtype: Stored dtype of floating-point tensors; ``auto`` keeps each as it is.
        shard_bytes: Largest file.
        overwrite: Replace an earlier output.
        verify: Open the output again and compare every tensor with its source.
        progress: Told after each tensor.

    Raises:
        LitWslError: If the export cannot be done; an earlier output is then still in place.
    """
    request = Request(format, None if base is None else str(base), backbone, dtype)
    _check_request(request, shard_bytes)
    target = Path(output).expanduser()
    check_target(target, overwrite=overwrite)
    source = open_checkpoint(checkpoint)
    plan = PLANS[format](source, request)
    _check_apart(target, [*source.weights.files(), *plan.read_from])
    with published_directory(target, overwrite=overwrite, fingerprint=_fingerprint(source, request)) as directory:
        _write(directory, plan, shard_bytes, progress)
        if verify:
            _verify(directory, plan)
        files = sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.name[0] != "." and p.is_file())
    if plan.left_out:
        count, first = len(plan.left_out), plan.left_out[0]
        logger.warning("%d entries have no place in this format and are left out, first %s.", count, first)
    size = sum(planned.info.nbytes for planned in plan.tensors.values())
    return ExportReport(target, format, len(plan.tensors), size, files, plan.left_out, verify)


def _check_request(request: Request, shard_bytes: int) -> None:
    choices: dict[str, tuple[str, Any]] = {"format": (request.format, Format), "dtype": (request.dtype, Dtype)}
    for name, (value, known) in choices.items():
        if value not in get_args(known):
            raise ConfigError(f"`{name}` cannot be {value!r}. {did_you_mean(str(value), get_args(known))}")
    if shard_bytes < 1:
        raise ConfigError(f"`shard_bytes >= 1` must hold, got {shard_bytes}.")


def _check_apart(target: Path, files: list[Path]) -> None:
    """Refuse an output that would replace one of its own sources."""
    output = target.resolve()
    for file in files:
        if output in file.resolve().parents:
            raise CheckpointError(f"Output directory {target} holds the source {file}; choose another.")


def _fingerprint(source: Checkpoint, request: Request) -> str:
    """Identifies the work, so that an interrupted export goes on only with the same source."""
    return fingerprint(repr(request), source.weights.files())


def _write(directory: Path, plan: Plan, shard_bytes: int, progress: Progress | None) -> None:
    if plan.carried is not None:
        carry_files(plan.carried, directory)
    for name, text in plan.texts.items():
        (directory / name).write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    for name, text in plan.defaults.items():
        if not (directory / name).exists():
            (directory / name).write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    _stream(directory, plan.stem, plan.tensors, shard_bytes if plan.sharded else _UNLIMITED, progress=progress)
    if plan.head:
        metadata = {"format": "pt", **plan.head_metadata}
        _stream(directory, Path(HEAD_FILE).stem, plan.head, _UNLIMITED, metadata)


def _stream(
    directory: Path,
    stem: str,
    tensors: Mapping[str, Planned],
    shard_bytes: int,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write one tensor after another, those aside that an interrupted run finished."""
    infos = {name: planned.info for name, planned in tensors.items()}
    total, done = sum(info.nbytes for info in infos.values()), 0
    with ShardedWriter(directory, infos, stem=stem, shard_bytes=shard_bytes, metadata=metadata) as writer:
        for name, planned in tensors.items():
            if name not in writer.finished:
                writer.write(name, planned.make())
                writer.finish(name)
            done += planned.info.nbytes
            if progress is not None:
                progress(done, total, name)


@torch.no_grad()
def _verify(directory: Path, plan: Plan) -> None:
    """Read everything back.

    Raises:
        CheckpointError: If a tensor on disk is not that of its source.
    """
    _compare(open_state(directory), plan.tensors)
    if plan.head:
        _compare(open_state(directory / HEAD_FILE), plan.head)
    plan.check(directory)


def _compare(written: StateReader, tensors: Mapping[str, Planned]) -> None:
    names = set(written.keys())
    differing = [n for n, p in tensors.items() if n not in names or not _same_bytes(written.read(n), p.make())]
    differing += sorted(names - set(tensors))
    if differing:
        raise CheckpointError(
            f"{written.where} is not what was written: {len(differing)} tensors differ, first {differing[0]!r}; "
            "check the disk and run the command again."
        )


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    """Equality bit by bit, which NaN passes too."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    first, second = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(first, second)
