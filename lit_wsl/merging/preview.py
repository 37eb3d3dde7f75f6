"""What a merge would do, from headers alone: nothing is read but names and shapes, nothing is written."""

from dataclasses import dataclass
from typing import Any

from lit_wsl.merging.method import MatrixMethod
from lit_wsl.merging.plan import MergePlan, make_plan
from lit_wsl.merging.spec import MergeSpec
from lit_wsl.merging.spreading import worker_count
from lit_wsl.merging.stacks import BLOCK_ENTRIES
from lit_wsl.state.dtypes import float_dtype, is_mergeable
from lit_wsl.state.sizes import told_size

_BUFFERS = 3
"""Blocks that a worker holds beside the stack of task vectors: base, result, scratch."""
_DECOMPOSED = 4
"""Matrices that a decomposition holds beside the stack."""
_SOLVED = 3
"""Gram matrices that a solution holds in float64 beside those of the sources."""


@dataclass(frozen=True)
class MergePreview:
    """A merge as it is planned; sizes in bytes."""

    method: str
    params: dict[str, Any]
    sources: list[str]
    output_format: str
    merged: int
    """Parameters that are merged."""
    merged_entries: int
    copied: int
    """Parameters that come from the base unchanged."""
    skipped: dict[str, str]
    """Parameters that are left out, with the reason."""
    excluded: int
    """Parameters that the spec leaves out."""
    heads: list[str]
    """Sources that bring a task head."""
    read: int
    """Bytes of all files that are read."""
    written: int | None
    """Bytes of the weights that are written; None for an adapter, whose ranks the merge finds."""
    memory: int
    """Estimate of the memory beyond imports: blocks (or whole matrices) of all workers."""

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for a table."""
        params = ", ".join(f"{name}={value}" for name, value in self.params.items() if value is not None)
        return [
            ("method", f"{self.method} ({params})" if params else self.method),
            ("sources", ", ".join(self.sources)),
            ("merged", f"{self.merged} parameters, {self.merged_entries:,} entries"),
            ("copied from the base", f"{self.copied} parameters"),
            *((f"left out: {name}", why) for name, why in list(self.skipped.items())[:8]),
            *([("left out", f"{len(self.skipped) - 8} more")] if len(self.skipped) > 8 else []),
            *([("excluded", f"{self.excluded} parameters")] if self.excluded else []),
            *([("task heads of", ", ".join(self.heads))] if self.heads else []),
            ("read", told_size(self.read)),
            (
                "written",
                f"{self.output_format}, {told_size(self.written) if self.written is not None else 'ranks open'}",
            ),
            ("memory, about", told_size(self.memory)),
        ]


def preview(spec: MergeSpec) -> MergePreview:
    """Plan a merge without doing it.

    Raises:
        LitWslError: Whatever the merge itself would refuse before it computes anything.
    """
    plan = make_plan(spec)
    return MergePreview(
        method=plan.method.name,
        params=plan.method.params(),
        sources=[source.name for source in plan.sources],
        output_format=spec.format,
        merged=len(plan.merged),
        merged_entries=sum(info.numel for info in plan.merged.values()),
        copied=len(plan.copied),
        skipped=dict(plan.skipped),
        excluded=len(plan.coverage.excluded),
        heads=[source.name for source in plan.sources if source.head_file or source.heads()],
        read=sum(file.stat().st_size for file in set(plan.files())),
        written=_written(plan),
        memory=_memory(plan),
    )


def _written(plan: MergePlan) -> int | None:
    spec = plan.spec
    if spec.format == "adapter":
        return None
    if spec.format == "delta":
        item = 4 if spec.dtype == "auto" else float_dtype(spec.dtype).itemsize
        return sum(info.numel * item for info in plan.merged.values())
    infos = [*plan.merged.values(), *plan.copied.values()]
    if spec.dtype == "auto":
        return sum(info.nbytes for info in infos)
    item = float_dtype(spec.dtype).itemsize
    return sum(info.numel * (item if is_mergeable(info.dtype) else info.dtype.itemsize) for info in infos)


def _memory(plan: MergePlan) -> int:
    """What the largest parameters at work at once take in the dtype that is computed in."""
    sources, method, item = len(plan.sources), plan.method, float_dtype(plan.spec.compute_dtype).itemsize
    needs = []
    for info in plan.merged.values():
        if isinstance(method, MatrixMethod) and method.takes(info.shape):
            grams = (sources * item + _SOLVED * 8) * info.shape[-1] ** 2 if method.data == "gram" else 0
            needs.append(info.numel * (sources + _DECOMPOSED) * item + grams)
        else:
            needs.append(min(info.numel, BLOCK_ENTRIES) * (sources + _BUFFERS) * item)
    return sum(sorted(needs, reverse=True)[: worker_count(plan)])
