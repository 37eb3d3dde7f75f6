"""What a reader should know beside the verdict: one sentence for each thing."""

from collections import Counter
from collections.abc import Iterator

from lit_wsl.comparing.records import Finding
from lit_wsl.comparing.run import Comparison
from lit_wsl.comparing.sorting import (
    Sorted,
    added_rows,
    coarsest,
    is_as_small_as_rounding,
    is_mostly_dense,
    layers_of,
    other_shapes,
)
from lit_wsl.comparing.summary import kind_of, short_kinds, total
from lit_wsl.comparing.wording import amount, counted, figure, listed, percent, share_of, span

CLEAR = 0.5
"""Confidence of a rank from which the last singular value lies at twice the edge of the noise or above."""
_FEW = 3


def notes_of(comparison: Comparison, groups: Sorted) -> Iterator[str]:
    """Sentences on what was found, the most important first."""
    yield from _failures(comparison)
    whole = total(comparison.findings)
    if whole.changed:
        yield (
            f"Over {counted(whole.tensors, 'tensor')} with {amount(whole.entries)} entries the relative difference is "
            f"{figure(whole.relative_diff)}; {percent(whole.changed_ratio)} of the entries differ by more than "
            f"{comparison.settings.threshold:g}."
        )
    if groups.low_rank and not is_mostly_dense(groups):
        yield from _ranks(groups, comparison)
    if groups.dense:
        yield from _density(groups, comparison)
    if groups.vectors:
        yield f"{counted(len(groups.vectors), 'bias or norm')} changed, {_largest(groups.vectors)}."
    yield from _sizes(groups, comparison)
    yield from _shapes(comparison)


def _failures(comparison: Comparison) -> Iterator[str]:
    failed = comparison.failed()
    for name, reason in list(failed.items())[:_FEW]:
        yield f"Not compared: {name} ({reason})."
    if len(failed) > _FEW:
        yield f"Not compared: {counted(len(failed) - _FEW, 'more tensor')}."


def _ranks(groups: Sorted, comparison: Comparison) -> Iterator[str]:
    """How the ranks are spread, and how far they can be trusted."""
    patterns = [one.pattern for one in groups.low_rank if one.pattern is not None]
    ranks = Counter(pattern.effective_rank for pattern in patterns)
    if len(ranks) > 1:
        spread = listed([f"{rank} in {counted(count, 'matrix')}" for rank, count in sorted(ranks.items())], most=6)
        yield f"The rank is not the same everywhere: {spread}."
    short = short_kinds(map(kind_of, comparison.architecture.common_keys))
    layers = {
        short[kind]: len(layers_of(one.name for one in groups.low_rank if kind_of(one.name) == kind))
        for kind in dict.fromkeys(kind_of(one.name) for one in groups.low_rank)
    }
    if len({count for count in layers.values() if count}) > 1:
        spread = listed([f"{kind} in {count}" for kind, count in layers.items() if count])
        yield f"The layers that changed differ by module: {spread}."
    weakest = min(pattern.rank_confidence for pattern in patterns)
    factor = "more than 1000" if weakest > 0.999 else figure(1.0 / (1.0 - weakest))
    yield (
        f"Confidence of the ranks: the last singular value that counts lies {factor} times above the edge of the noise"
        f"{', in the least clear matrix' if len(patterns) > 1 else ''}."
    )
    doubtful = sum(pattern.rank_confidence < CLEAR for pattern in patterns)
    if doubtful:
        yield f"In {share_of(doubtful, len(patterns), 'matrix')} that is less than twice: the rank may be off by a few."
    hidden = sum(pattern.energy_captured < 0.9999 for pattern in patterns)
    if hidden:
        yield (
            f"In {share_of(hidden, len(patterns), 'matrix')} rounding to {coarsest(groups.low_rank)} hides what is "
            "smaller than the noise, so the true rank may be higher."
        )


def _density(groups: Sorted, comparison: Comparison) -> Iterator[str]:
    held = {rank: share for rank, share in total(groups.dense).energy_at.items() if int(rank) >= 16 and share < 1.0}
    if held:
        shares = listed([f"rank {rank} holds {percent(share)}" for rank, share in held.items()])
        yield (
            f"Of the squared norm of the dense changes ({counted(len(groups.dense), 'matrix')}) {shares}; "
            "an adapter of such a rank leaves the rest out."
        )
    if groups.low_rank and is_mostly_dense(groups):
        short = short_kinds(map(kind_of, comparison.architecture.common_keys))
        names = listed(list(dict.fromkeys(short[kind_of(one.name)] for one in groups.low_rank)))
        ranks = span([one.pattern.effective_rank for one in groups.low_rank if one.pattern])
        yield f"{counted(len(groups.low_rank), 'matrix')} changed by low rank ({ranks}): {names}."


def _sizes(groups: Sorted, comparison: Comparison) -> Iterator[str]:
    """Changes that are small, by the bars of the comparison and by the precision of the weights."""
    changed = groups.changed()
    below = [one for one in changed if one.change is not None and not one.change.modified]
    if below:
        settings = comparison.settings
        yield (
            f"Not beyond the bars of `modified` ({percent(settings.min_ratio)} of the entries, relative difference "
            f"{settings.min_relative:g}): {share_of(len(below), len(changed), 'changed tensor')}."
        )
    tiny = [one for one in changed if one.change is not None and is_as_small_as_rounding(one.change)]
    if tiny:
        yield (
            f"No larger than what a round trip through {coarsest(tiny)} gives: "
            f"{share_of(len(tiny), len(changed), 'changed tensor')}; size alone does not tell training from rounding."
        )


def _largest(findings: list[Finding]) -> str:
    most = max(findings, key=lambda one: one.change.relative_diff if one.change else 0.0)
    assert most.change is not None
    first = "most of all " if len(findings) > 1 else ""
    return f"{first}{most.name} by a relative difference of {figure(most.change.relative_diff)}"


def _shapes(comparison: Comparison) -> Iterator[str]:
    """What names, shapes and dtypes alone say."""
    known = comparison.architecture
    for name, rows in added_rows(comparison).items():
        shapes = known.shape_mismatch[name]
        kind = "more" if rows > 0 else "fewer"
        yield (
            f"{name} has {shapes['finetuned'][0]} rows instead of {shapes['base'][0]}, {abs(rows)} {kind}; "
            "only the common rows were compared."
        )
    for name in other_shapes(comparison)[:_FEW]:
        shapes = known.shape_mismatch[name]
        yield f"Not compared for its shape: {name}, {shapes['base']} in the base, {shapes['finetuned']} fine-tuned."
    for side, names in (("base", known.only_in_base), ("fine-tuned model", known.only_in_finetuned)):
        if names:
            shared = " (the other may share it with its input embedding)" if _is_head(names) else ""
            yield f"Only in the {side}: {listed(names, _FEW + 1)}{shared}."
    pairs = Counter((pair["base"], pair["finetuned"]) for pair in known.dtype_mismatch.values())
    for (base, tuned), count in pairs.items():
        yield f"{counted(count, 'tensor')} stored as {base} in the base and as {tuned} in the fine-tuned model."
    if known.lora_keys:
        yield (
            f"{counted(len(known.lora_keys), 'name')} of adapter factors that are not folded, first "
            f"{known.lora_keys[0]}; compare the merged model to see their effect."
        )


def _is_head(names: list[str]) -> bool:
    return len(names) == 1 and names[0].endswith("lm_head.weight")
