"""The sentence that a verdict is told in."""

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from lit_wsl.comparing.records import Finding
from lit_wsl.comparing.run import Comparison
from lit_wsl.comparing.sorting import Sorted, added_rows, coarsest, layers_of, other_shapes
from lit_wsl.comparing.summary import kind_of, layer_of, short_kinds, total
from lit_wsl.comparing.wording import counted, listed, percent, share_of, span

Kind = Literal[
    "identical", "rounding", "lora", "partly_low_rank", "dense", "vectors", "resized", "other_tensors", "incomplete"
]
"""``vectors``: biases and norms alone; ``resized``: rows were added or removed, all else is equal; ``other_tensors``:
what both models have is equal, but not all is common; ``incomplete``: not every tensor was compared."""
FEW_KINDS = 3
"""A dense change of so many kinds of modules names them."""


def headline_of(kind: Kind, comparison: Comparison, groups: Sorted) -> str:
    """One sentence without a full stop, for a kind of change as far as tensors were compared."""
    if not any(finding.change for finding in comparison.findings):
        return _caveat(comparison) or "No tensor was compared"
    clauses = [_main_clause(kind, comparison, groups), *_further_clauses(kind, comparison, groups)]
    told = "; ".join(filter(None, clauses))
    caveat = _caveat(comparison)
    if caveat:
        return f"{caveat}; {'the rest' if comparison.is_complete else 'so far'}: {_lower(told)}"
    return told[:1].upper() + told[1:]


def _lower(sentence: str) -> str:
    """A sentence behind a colon; ``LoRA`` keeps its capital."""
    return sentence if sentence.startswith("LoRA") else sentence[:1].lower() + sentence[1:]


def _caveat(comparison: Comparison) -> str:
    """What is missing from the comparison; empty where nothing is."""
    known, failed = comparison.architecture, len(comparison.failed())
    among = len({*known.comparable(), *known.failed})
    if not comparison.is_complete:
        done = sum(finding.change is not None for finding in comparison.findings)
        return f"Incomplete: only {share_of(done, max(among, done + 1), 'tensor')} compared"
    return f"{share_of(failed, max(among, failed), 'tensor').capitalize()} could not be compared" if failed else ""


def _main_clause(kind: Kind, comparison: Comparison, groups: Sorted) -> str:
    compared = sum(finding.change is not None for finding in comparison.findings)
    if kind == "identical":
        whole = "bit for bit" if all(one.change.is_equal for one in groups.same if one.change) else "in value"
        return f"Identical in {share_of(compared, compared, 'tensor')}, {whole}"
    if kind == "rounding":
        rounded = share_of(len(groups.rounded), compared, "tensor")
        return f"Only rounding to {coarsest(groups.rounded)}, in {rounded}"
    if kind in ("lora", "partly_low_rank"):
        dense = f", and a dense change of {_modules(groups.dense, comparison)}" if groups.dense else ""
        return f"LoRA of {_rank(groups)} on {_modules(groups.low_rank, comparison)}{dense}"
    if kind == "dense":
        return _dense(comparison, groups, compared)
    if kind == "vectors":
        return f"Only biases and norms changed, {share_of(len(groups.vectors), compared, 'tensor')}"
    return f"{counted(compared, 'common tensor')} identical" if kind == "other_tensors" else ""


def _rank(groups: Sorted) -> str:
    ranks = Counter(one.pattern.effective_rank for one in groups.low_rank if one.pattern)
    most = ranks.most_common(1)[0][0]
    return f"rank {most}" if most == max(ranks) else f"ranks {span(list(ranks))}"


def _dense(comparison: Comparison, groups: Sorted, compared: int) -> str:
    changed = groups.changed()
    size = percent(total(comparison.findings).relative_diff)
    if len({kind_of(one.name) for one in groups.dense}) <= FEW_KINDS and len(changed) + len(groups.rounded) < compared:
        return f"Dense change of {_modules(changed, comparison)}, by {size} of the whole model's norm"
    return f"Dense fine-tune of {share_of(len(changed), compared, 'tensor')}, by {size} of the weights' norm"


def _modules(findings: list[Finding], comparison: Comparison) -> str:
    """Kinds of modules, with the number of layers that they stand in."""
    short = short_kinds(map(kind_of, comparison.architecture.common_keys))
    inside, outside = (
        list(dict.fromkeys(short[kind_of(one.name)] for one in findings if bool(layer_of(one.name)) == is_inside))
        for is_inside in (True, False)
    )
    layers = len(layers_of(one.name for one in findings))
    among = share_of(layers, len(layers_of(comparison.architecture.common_keys)), "layer")
    parts = [f"{listed(inside)} in {among}"] if inside else []
    return " and ".join([*parts, listed(outside)] if outside else parts)


def _further_clauses(kind: Kind, comparison: Comparison, groups: Sorted) -> list[str]:
    """What else differs; that nothing does, where the kind leaves it open."""
    clauses = list(_others(kind, comparison, groups))
    if kind in ("identical", "rounding", "other_tensors"):
        return clauses
    if kind == "resized":
        return [*clauses, *(["all else is identical"] if clauses == list(_resized(comparison)) else [])]
    if clauses or (kind == "dense" and not groups.same):
        return clauses
    return ["nothing else changed"]


def _others(kind: Kind, comparison: Comparison, groups: Sorted) -> Iterator[str]:
    known = comparison.architecture
    if groups.vectors and kind in ("lora", "partly_low_rank"):
        yield f"{counted(len(groups.vectors), 'bias or norm')} changed too"
    if groups.unclear:
        yield f"{counted(len(groups.unclear), 'matrix')} with a change too near to rounding for a rank"
    if groups.rounded and kind != "rounding":
        yield f"{counted(len(groups.rounded), 'tensor')} only rounded to {coarsest(groups.rounded)}"
    yield from _resized(comparison)
    if others := other_shapes(comparison):
        yield f"{counted(len(others), 'tensor')} of another shape"
    if known.only_in_base:
        yield f"{counted(len(known.only_in_base), 'tensor')} only in the base"
    if known.only_in_finetuned:
        yield f"{counted(len(known.only_in_finetuned), 'tensor')} only in the fine-tuned model"


def _resized(comparison: Comparison) -> Iterator[str]:
    """Rows added and removed, with the modules that they were added to or removed from."""
    short = short_kinds(map(kind_of, comparison.architecture.common_keys))
    names: dict[int, list[str]] = {}
    for name, rows in added_rows(comparison).items():
        names.setdefault(rows, []).append(short[kind_of(name)])
    for rows, modules in names.items():
        yield f"{counted(abs(rows), 'row')} {'added to' if rows > 0 else 'removed from'} {listed(modules)}"
