"""Run a merge from a spec: the entry point of the command line and of Python."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lit_wsl
from lit_wsl.errors import ConfigError, MergeError
from lit_wsl.merging.engine import BLOCK_ENTRIES, ParameterMerger, scan_model
from lit_wsl.merging.method import MatrixMethod, MergeContext, Scan, build_method
from lit_wsl.merging.plan import MergePlan, make_plan
from lit_wsl.merging.spec import MergeSpec
from lit_wsl.merging.writers import WRITERS, Writer
from lit_wsl.state.publish import check_target, published_directory
from lit_wsl.state.writer import write_tensors
from lit_wsl.tensors.workers import parallel_parameters

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all, and the parameter at hand."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did."""

    output: Path
    method: str
    params: dict[str, Any]
    output_format: str
    merged: list[str]
    """Parameters that were merged."""
    copied: list[str]
    """Parameters that a model output took from the base unchanged."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Parameters that only some sources have, with the reason."""
    retained_energy: dict[str, float] = field(default_factory=dict)
    """Share of the squared norm that the factors of an adapter output hold, per parameter."""


def merge(spec: MergeSpec | None = None, *, progress: Progress | None = None, **fields: Any) -> MergeReport:
    """Merge adapters or full models and write the result.

    Args:
        spec: The merge; or give the fields of a :class:`MergeSpec` by keyword.
        progress: Told after each parameter.
        **fields: Fields of the spec, or changes to it.

    Returns:
        What was done; the output directory appears whole or not at all.

    Raises:
        LitWslError: If the merge cannot be done; an earlier output is then still in place.
    """
    spec = _spec(spec, fields)
    if not spec.output:
        raise ConfigError("A merge needs somewhere to write: pass `--output DIR`.")
    target = Path(spec.output).expanduser()
    check_target(target, overwrite=spec.overwrite)
    plan = make_plan(spec)
    _check_apart(target, plan)
    with published_directory(target, overwrite=spec.overwrite, fingerprint=plan.fingerprint()) as directory:
        writer = WRITERS[spec.format](plan, directory)
        try:
            _fill(plan, writer, progress)
            writer.close()
        finally:
            writer.abandon()
        if spec.heads == "per_task":
            _write_heads(plan, directory)
        report = _report(plan, target, writer)
        _write_metadata(plan, report, directory)
    _tell_what_to_know(plan)
    return report


def merge_state_dict(spec: MergeSpec | None = None, **fields: Any) -> dict[str, Tensor]:
    """Merge into memory: the whole state dict of the merged model, in the base's dtypes.

    Args:
        spec: The merge, with a base; or give the fields of a :class:`MergeSpec` by keyword.
        **fields: Fields of the spec, or changes to it.
    """
    plan = make_plan(_spec(spec, {**fields, "output_format": "model"}))
    base = plan.base
    assert base is not None
    with parallel_parameters(plan.spec.threads) as pool:
        statistics = scan_model(plan)
        merged = pool.map(lambda name: _merged_in_memory(plan, name, statistics), plan.merged)
        state = dict(zip(plan.merged, merged, strict=True))
    return {name: state[name] if name in state else base.read(name).clone() for name in base.keys()}


def _merged_in_memory(plan: MergePlan, name: str, statistics: Any) -> Tensor:
    parameter = ParameterMerger(plan, name, statistics)
    return parameter.collect(parameter.values(), plan.merged[name].dtype)


def merge_tensors(method: str, task_vectors: Tensor, base: Tensor | None = None, **params: Any) -> Tensor:
    """Merge the task vectors of a single parameter.

    Args:
        method: Name of a registered method.
        task_vectors: Shape ``(T, *P)``, floating point.
        base: The base parameter, shape ``(*P,)``, for methods that look at it.
        **params: Parameters of the method; ``lambda`` goes by ``lam`` or ``**{"lambda": ...}``.

    Returns:
        Merged update, shape ``(*P,)``, in the dtype of ``task_vectors``; computed in float32 or wider.

    Raises:
        ConfigError: If the method or a parameter is unknown or out of range, or the shapes do not fit.
    """
    if task_vectors.ndim < 1 or not task_vectors.shape[0] or not task_vectors.is_floating_point():
        raise ConfigError(f"Task vectors must be floating point of shape (T, *P), got {tuple(task_vectors.shape)}.")
    if base is not None and base.shape != task_vectors.shape[1:]:
        raise ConfigError(f"Base {tuple(base.shape)} does not fit task vectors {tuple(task_vectors.shape)}.")
    merger = build_method(method, {("lambda" if k == "lam" else k): v for k, v in params.items()})
    merger.check_sources(len(task_vectors))
    if merger.space == "weight" and base is None:
        raise ConfigError(f"Method {merger.name!r} combines weights, not updates; give the base.")
    shape = task_vectors.shape[1:]
    wide = torch.promote_types(task_vectors.dtype, torch.float32)
    stack = task_vectors.detach().to(wide).reshape(len(task_vectors), -1)
    flat_base = None if base is None else base.detach().to(wide).flatten()
    if merger.space == "weight" and flat_base is not None:
        stack = stack + flat_base
    scan = merger.scan_model(len(stack)) or merger.scan_tensor(len(stack))
    statistics = _scan_stack(scan, stack) if scan else None
    merged = torch.empty_like(stack[0])  # what a method returns may be a part of its input
    if isinstance(merger, MatrixMethod) and merger.takes(shape):
        matrix = None if base is None else base.detach().to(wide).reshape(shape[0], -1)
        context = MergeContext("", 0, statistics)
        merged.copy_(merger.merge_matrices(stack.view(len(stack), shape[0], -1), matrix, context).reshape(-1))
    else:
        for start in range(0, stack.shape[1], BLOCK_ENTRIES):
            block = slice(start, start + BLOCK_ENTRIES)
            context = MergeContext("", start, statistics)
            merged[block] = merger.merge(stack[:, block], None if flat_base is None else flat_base[block], context)
    if merger.space == "weight" and flat_base is not None:
        merged = merged - flat_base
    return merged.view(shape).to(task_vectors.dtype)


def _scan_stack(scan: Scan, stack: Tensor) -> Any:
    scan.update(stack)
    while not scan.end_pass():
        scan.update(stack)
    return scan.result()


def _spec(spec: MergeSpec | None, fields: Mapping[str, Any]) -> MergeSpec:
    values = {**(spec.to_dict() if spec else {}), **fields}
    for name, value in values.items():  # Python code may say Path where a file says text
        if isinstance(value, Path):
            values[name] = str(value)
        elif isinstance(value, list):
            values[name] = [str(entry) if isinstance(entry, Path) else entry for entry in value]
    try:
        return MergeSpec(**values)
    except TypeError as error:
        raise ConfigError(f"{error}; the fields are those of MergeSpec.") from error


def _fill(plan: MergePlan, writer: Writer, progress: Progress | None) -> None:
    """Merge or copy every parameter; several at once, one core each."""
    with parallel_parameters(plan.spec.threads) as pool:
        statistics = scan_model(plan)
        names = [name for name in (*plan.copied, *plan.merged) if not writer.has(name)]
        jobs = {pool.submit(_write_one, plan, writer, name, statistics): name for name in names}
        infos = {**plan.copied, **plan.merged}
        done = plan.nbytes - sum(infos[name].nbytes for name in names)
        for job in as_completed(jobs):
            job.result()
            done += infos[jobs[job]].nbytes
            if progress is not None:
                progress(done, plan.nbytes, jobs[job])


def _write_one(plan: MergePlan, writer: Writer, name: str, statistics: Any) -> None:
    if name in plan.merged:
        writer.merge(ParameterMerger(plan, name, statistics))
    else:
        assert plan.base is not None
        writer.copy(name, plan.base.read(name))


def _check_apart(target: Path, plan: MergePlan) -> None:
    """Refuse an output that would replace one of its own sources."""
    output = target.resolve()
    for file in plan.files():
        if output in file.resolve().parents:
            raise MergeError(f"Output directory {target} holds the source {file}; choose another.")


def _tell_what_to_know(plan: MergePlan) -> None:
    """Warn of parameters left out and of a method's peculiarity."""
    if plan.method.caution and len(plan.spec.adapters) > 1:
        logger.warning(plan.method.caution)
    if plan.skipped:
        name, reason = next(iter(plan.skipped.items()))
        logger.warning("%d parameters are not merged, first %s (%s).", len(plan.skipped), name, reason)


def _write_heads(plan: MergePlan, directory: Path) -> None:
    """Keep the task heads of each source in ``heads/``: a head file as it is, saved modules under their names."""
    heads = directory / "heads"
    for source in plan.sources:
        tensors = source.heads()
        if tensors or source.head_file:
            heads.mkdir(exist_ok=True)
        if source.head_file:
            shutil.copyfile(source.head_file, heads / f"{source.name}.head.safetensors")
        if tensors:
            write_tensors(heads / f"{source.name}.safetensors", tensors)


def _report(plan: MergePlan, target: Path, writer: Writer) -> MergeReport:
    return MergeReport(
        output=target,
        method=plan.method.name,
        params=plan.method.params(),
        output_format=plan.spec.format,
        merged=list(plan.merged),
        copied=list(plan.copied),
        skipped=plan.skipped,
        retained_energy={n: writer.retained_energy[n] for n in plan.merged if n in writer.retained_energy},
    )


def _write_metadata(plan: MergePlan, report: MergeReport, directory: Path) -> None:
    metadata = {
        "merge_method": report.method,
        "method_params": report.params,
        "merge_mode": plan.spec.merge_mode,
        "output_format": report.output_format,
        "base": plan.spec.base,
        "source_adapters": [{"name": s.name, "path": s.where} for s in plan.sources],
        "num_adapters": len(plan.sources),
        "num_parameters": len(report.merged),
        "skipped": report.skipped,
        "retained_energy": report.retained_energy,
        "timestamp": datetime.now(UTC).isoformat(),
        "lit_wsl": lit_wsl.__version__,
        "torch": torch.__version__,
    }
    (directory / "merge_metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    (directory / "README.md").write_text(_model_card(plan, report), encoding="utf-8")


def _model_card(plan: MergePlan, report: MergeReport) -> str:
    sources = "\n".join(f"- `{source.name}`" for source in plan.sources)
    params = ", ".join(f"{name} = {value}" for name, value in report.params.items()) or "none"
    return (
        f"---\ntags:\n- merge\n- lit-wsl\n---\n\n# Merged {report.output_format}\n\n"
        f"Method `{report.method}` (parameters: {params}).\n\nSources:\n\n{sources}\n\n"
        f"{len(report.merged)} parameters merged, {len(report.copied)} copied from the base, "
        f"{len(report.skipped)} left out. Details: `merge_metadata.json`.\n"
    )
