"""Which parameters of the model can be merged from which sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lit_wsl.errors import MergeError
from lit_wsl.merging.sources import TaskVectorSource
from lit_wsl.merging.spec import MergeSpec
from lit_wsl.state.dtypes import is_mergeable
from lit_wsl.state.patterns import select
from lit_wsl.state.reader import TensorInfo

LACKING = ("missing in", "not in the base")
"""How reasons begin that are about a model without the parameter."""
ODD_SHAPE = ("shape", "no source has the base's shape")
"""How reasons begin that are about shapes."""
_TOLD = 10
"""Parameters that a refusal names."""


@dataclass(frozen=True)
class Coverage:
    """The fate of every parameter that some source updates."""

    merged: dict[str, TensorInfo] = field(default_factory=dict)
    """Parameters that are merged, as the base has them."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Parameters that are not merged, with the reason."""
    excluded: list[str] = field(default_factory=list)
    """Parameters that the spec leaves out."""
    absent: dict[str, frozenset[int]] = field(default_factory=dict)
    """Sources, by position, that have no update of a merged parameter."""
    common_rows: dict[str, int] = field(default_factory=dict)
    """Leading rows of a merged parameter that all sources have, where some lack the others."""


def cover(spec: MergeSpec, sources: Sequence[TaskVectorSource], infos: Mapping[str, TensorInfo]) -> Coverage:
    """Decide for every parameter whether it is merged, and from which sources.

    Args:
        spec: Its ``include``, ``exclude``, ``merge_mode`` and ``mismatch`` decide.
        sources: What is merged.
        infos: Parameters of the base.

    Raises:
        ConfigError: If a pattern matches nothing.
        MergeError: If shapes differ and the spec has no policy for it, or in strict mode anything is left out.
    """
    every = list(dict.fromkeys([*infos, *(name for source in sources for name in source.shapes)]))
    updated = [name for name in every if any(name in source.shapes for source in sources)]
    wanted = set(select(updated, spec.include, spec.exclude))
    coverage = Coverage(excluded=[name for name in updated if name not in wanted])
    for name in updated:
        if name in wanted:
            _place(coverage, spec, sources, name, infos.get(name))
    gaps = _gaps(coverage, sources)
    if spec.merge_mode == "strict":
        _refuse({**coverage.skipped, **gaps})
    if gaps and spec.base is None and (spec.models or spec.slices):
        name, reason = next(iter(gaps.items()))
        raise MergeError(f"Without a base {name!r} cannot be merged ({reason}): pass `--base DIR`.")
    return coverage


def _place(
    coverage: Coverage, spec: MergeSpec, sources: Sequence[TaskVectorSource], name: str, info: TensorInfo | None
) -> None:
    if info is None:
        coverage.skipped[name] = "not in the base"
        return
    if not is_mergeable(info.dtype):
        coverage.skipped[name] = f"dtype {info.dtype} of the base is not merged"
        return
    lacking = {i for i, source in enumerate(sources) if name not in source.shapes}
    if lacking and spec.merge_mode != "union":
        coverage.skipped[name] = f"missing in {', '.join(sources[i].name for i in sorted(lacking))}"
        return
    shapes = {i: source.shapes[name] for i, source in enumerate(sources) if i not in lacking}
    odd = {i for i, shape in shapes.items() if shape != info.shape}
    if odd and spec.mismatch == "copy_base":
        coverage.skipped[name] = f"shape {shapes[min(odd)]} in {sources[min(odd)].name}, {info.shape} in the base"
        return
    if odd and spec.mismatch == "common_rows":
        coverage.common_rows[name] = _common_rows(name, info.shape, sources, shapes)
    elif odd and spec.mismatch == "error":
        raise MergeError(_mismatch(name, info.shape, sources[min(odd)], "or choose a policy with `--mismatch`"))
    elif odd:
        lacking |= odd
    if len(lacking) == len(sources):
        coverage.skipped[name] = "no source has the base's shape"
        return
    coverage.merged[name] = info
    if lacking:
        coverage.absent[name] = frozenset(lacking)


def _common_rows(
    name: str, expected: tuple[int, ...], sources: Sequence[TaskVectorSource], shapes: Mapping[int, tuple[int, ...]]
) -> int:
    """Rows that the base and all sources have."""
    for index, shape in shapes.items():
        if len(shape) != len(expected) or not shape or shape[1:] != expected[1:]:
            raise MergeError(_mismatch(name, expected, sources[index], "`common_rows` is for numbers of rows"))
    return min(shape[0] for shape in (expected, *shapes.values()))


def _mismatch(name: str, expected: tuple[int, ...], source: TaskVectorSource, remedy: str) -> str:
    return (
        f"Shape mismatch at {name!r}: base {expected}, {source.where} {source.shapes[name]}. "
        f"Merging needs one architecture; check that all sources are tuned from this base, {remedy}."
    )


def _gaps(coverage: Coverage, sources: Sequence[TaskVectorSource]) -> dict[str, str]:
    """Merged parameters that some source has no part in, with the reason."""
    absent = {name: f"no update in {sources[min(ones)].name}" for name, ones in coverage.absent.items()}
    return {**absent, **{name: f"only {rows} rows in common" for name, rows in coverage.common_rows.items()}}


def _refuse(gaps: Mapping[str, str]) -> None:
    if gaps:
        told = "; ".join(f"{name!r} {reason}" for name, reason in list(gaps.items())[:_TOLD])
        more = f"; and {len(gaps) - _TOLD} more" if len(gaps) > _TOLD else ""
        raise MergeError(
            f"{len(gaps)} parameters cannot be merged from all sources: {told}{more}. "
            "`--merge_mode common` merges the others."
        )
