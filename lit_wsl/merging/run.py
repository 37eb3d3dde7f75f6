"""Run a merge from a spec: the entry point of the command line and of Python."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import as_completed
from contextlib import ExitStack
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_wsl.errors import ConfigError, MergeError
from lit_wsl.merging.engine import ParameterMerger
from lit_wsl.merging.heads import write_heads
from lit_wsl.merging.memory import set_aside
from lit_wsl.merging.model_scan import scan_model
from lit_wsl.merging.plan import MergePlan, make_plan
from lit_wsl.merging.ranks import Ranks, launched_ranks
from lit_wsl.merging.report import MergeReport, report_on, write_metadata
from lit_wsl.merging.spec import MergeSpec
from lit_wsl.merging.spreading import largest_first, worker_count, workers
from lit_wsl.merging.stacks import ModelStatistics
from lit_wsl.merging.tally import tally_model
from lit_wsl.merging.writers import WRITERS, Writer, check_rounded
from lit_wsl.state.publish import check_target, published_directory
from lit_wsl.state.reader import TensorInfo

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all, and the parameter at hand."""


def merge(
    spec: MergeSpec | None = None, *, progress: Progress | None = None, distributed: bool = False, **fields: Any
) -> MergeReport:
    """Merge adapters or full models and write the result.

    Args:
        spec: The merge; or give the fields of a :class:`MergeSpec` by keyword.
        progress: Told after each parameter.
        distributed: Share the work with the other processes of this launch (``torchrun``, Fabric), which must all call
            this with the same spec and see one file system.
        **fields: Fields of the spec, or changes to it.

    Returns:
        What was done; the output directory appears whole or not at all.

    Raises:
        LitWslError: If the merge cannot be done; an earlier output is then still in place.
    """
    fields, held = set_aside(fields)
    spec = _spec(spec, fields)
    if not spec.output:
        raise ConfigError("A merge needs somewhere to write: pass `--output DIR`.")
    target = Path(spec.output).expanduser()
    with launched_ranks(distributed=distributed) as ranks:
        with ranks.together():
            check_target(target, overwrite=spec.overwrite)
            plan = make_plan(spec, held)
            _check_apart(target, plan)
        report = _lead(plan, target, ranks, progress) if ranks.leads else _follow(plan, ranks)
    if ranks.leads:
        _tell_what_to_know(plan)
    return report


def _lead(plan: MergePlan, target: Path, ranks: Ranks, progress: Progress | None) -> MergeReport:
    """Make the output, merge a share of it, take in what the other processes did, and publish."""
    with ExitStack() as stack:
        with ranks.together():
            published = published_directory(target, overwrite=plan.spec.overwrite, fingerprint=plan.fingerprint())
            directory = stack.enter_context(published)
            writer = WRITERS[plan.spec.format](plan, directory)
            stack.callback(writer.abandon)
        ranks.told(directory)
        with ranks.together():
            pass  # while the others open it
        statistics = scan_model(plan, ranks)
        results = _shared_work(plan, writer, statistics, ranks, progress)
        with ranks.together():
            for name, result in results:
                writer.accept(name, result)
            writer.close()
            if plan.spec.verify:
                writer.verify()
            write_heads(plan, directory)
            report = report_on(plan, target, writer)
            counts = tally_model(plan, statistics) if plan.spec.tally else {}
            write_metadata(plan, report, directory, counts)
            stack.close()  # which publishes: a failure there is one of all processes
    return ranks.told(report)


def _follow(plan: MergePlan, ranks: Ranks) -> MergeReport:
    """Merge a share of the output that another process makes."""
    with ExitStack() as stack:
        with ranks.together():
            pass  # while the other makes it
        directory = ranks.told(Path())
        with ranks.together():
            writer = WRITERS[plan.spec.format](plan, directory, ranks.rank)
            stack.callback(writer.abandon)
        _shared_work(plan, writer, scan_model(plan, ranks), ranks, None)
        with ranks.together():
            pass  # while the other closes it
    return ranks.told(None)


def _shared_work(
    plan: MergePlan, writer: Writer, statistics: ModelStatistics, ranks: Ranks, progress: Progress | None
) -> list[tuple[str, Any]]:
    """Merge this process's share; returns what the other processes did."""
    share = ranks.share(writer.shards(), {**plan.copied, **plan.merged})
    with ranks.together():
        done = _fill(plan, writer, statistics, share, progress)
    others = [results for rank, results in enumerate(ranks.collected(done)) if rank != ranks.rank]
    return [pair for results in others for pair in results]


def merge_state_dict(spec: MergeSpec | None = None, **fields: Any) -> dict[str, Tensor]:
    """Merge into memory: the whole state dict of the merged model, in the base's dtypes.

    Args:
        spec: The merge, with a base; or give the fields of a :class:`MergeSpec` by keyword.
        **fields: Fields of the spec, or changes to it.

    Returns:
        Tensors by the names in the base's file. That may hold buffers which the model's class does not save, such as
        ``position_ids``: :func:`lit_wsl.load_universal` puts the rest in place, and refuses anything else that is odd.

    Raises:
        LitWslError: If the spec is wrong, or the sources do not fit the base.
    """
    fields, held = set_aside(fields)
    plan = make_plan(_spec(spec, {**fields, "output_format": "model"}), held)
    base = plan.base
    assert base is not None
    statistics = scan_model(plan)
    state = {name: _shared(plan, info) for name, info in plan.merged.items()}

    def merge_into(name: str) -> None:
        entries = state[name].view(-1)
        for start, block in ParameterMerger(plan, name, statistics).values():
            rounded = entries[start : start + block.numel()].copy_(block)
            check_rounded(name, rounded, "give the base in bfloat16 or float32")

    with workers(plan, merge_into) as pool:
        for job in as_completed([pool.submit(name) for name in largest_first(plan.merged, plan.merged)]):
            job.result()
    return {name: state[name] if name in state else base.read(name).clone() for name in base.keys()}


def _shared(plan: MergePlan, info: TensorInfo) -> Tensor:
    """An empty tensor that forked workers can fill."""
    if worker_count(plan) == 1 or not info.nbytes:
        return torch.empty(info.shape, dtype=info.dtype)
    return torch.frombuffer(mmap(-1, info.nbytes), dtype=info.dtype).view(info.shape)


def _spec(spec: MergeSpec | None, fields: Mapping[str, Any]) -> MergeSpec:
    values = {**(spec.to_merge_spec().to_dict() if spec else {}), **fields}
    for name, value in values.items():  # Python code may say Path where a file says text
        if isinstance(value, Path):
            values[name] = str(value)
        elif isinstance(value, list):
            values[name] = [str(entry) if isinstance(entry, Path) else entry for entry in value]
    try:
        return MergeSpec(**values)
    except TypeError as error:
        raise ConfigError(f"{error}; the fields are those of MergeSpec.") from error


def _fill(
    plan: MergePlan, writer: Writer, statistics: ModelStatistics, share: set[str], progress: Progress | None
) -> list[tuple[str, Any]]:
    """Merge or copy a share of the parameters, several at once; returns each with what the writer keeps of it."""
    infos = {name: info for name, info in {**plan.copied, **plan.merged}.items() if name in share}
    names = largest_first((name for name in infos if not writer.has(name)), infos)
    whole = sum(info.nbytes for info in infos.values())
    done, results = whole - sum(infos[name].nbytes for name in names), []
    with workers(plan, partial(_write_one, plan, writer, statistics)) as pool:
        jobs = {pool.submit(name): name for name in names}
        for job in as_completed(jobs):
            name, result = jobs[job], job.result()
            writer.accept(name, result)
            results.append((name, result))
            done += infos[name].nbytes
            if progress is not None:
                progress(done, whole, name)
    return results


def _write_one(plan: MergePlan, writer: Writer, statistics: ModelStatistics, name: str) -> Any:
    if name in plan.merged:
        return writer.merge(ParameterMerger(plan, name, statistics))
    assert plan.base is not None
    return writer.copy(name, plan.base.read(name))


def _check_apart(target: Path, plan: MergePlan) -> None:
    """Refuse an output that would replace one of its own sources."""
    output = target.resolve()
    for file in plan.files():
        if output in file.resolve().parents:
            raise MergeError(f"Output directory {target} holds the source {file}; choose another.")


_IDLE = {
    "adapter": ("dtype", "shard_size", "tokenizer"),
    "delta": ("rank", "energy", "tokenizer"),
    "model": ("rank", "energy"),
}
"""Fields of a spec that change nothing of an output."""


def _tell_what_to_know(plan: MergePlan) -> None:
    """Warn of parameters left out, of a method's peculiarity, and of settings that have no effect."""
    defaults = {one.name: one.default for one in dataclasses.fields(MergeSpec)}
    idle = [name for name in _IDLE[plan.spec.format] if getattr(plan.spec, name) != defaults[name]]
    if idle:
        named = " and ".join(f"`{name}`" for name in idle)
        logger.warning("%s changed nothing: the output is of format `%s`.", named, plan.spec.format)
    if plan.method.caution and len(plan.spec.adapters) > 1:
        logger.warning(plan.method.caution)
    lacking = plan.statistics.lacking(plan.merged) if plan.statistics is not None else []
    if lacking:
        logger.warning(
            "%d parameters have no statistics of some source and take the mean, first %s.", len(lacking), lacking[0]
        )
    if plan.skipped:
        name, reason = next(iter(plan.skipped.items()))
        logger.warning("%d parameters are not merged, first %s (%s).", len(plan.skipped), name, reason)
