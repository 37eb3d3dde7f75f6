"""What transformers does with the tensors of a checkpoint while it loads a model, as recipes of ours."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from lit_wsl.state.operations import Fuse, Operation, Reshape, Split, Stack
from lit_wsl.state.remap import Entry
from lit_wsl.state.safetensors import TensorInfo

Members = list[tuple[str, str]]
"""Names in the files, each with the pattern of the rule that takes it."""


def loading_groups(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[Any, Members]]:
    """Which names in the files go where in the model: first name in the model to the converter and its members.

    The converter is None where a tensor is taken as it is. Experts come in the order of their numbers.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    inside = model.state_dict(), model.base_model_prefix
    groups: dict[str, tuple[Any, Members]] = {}
    for name in sorted(names, key=dot_natural_key):
        new, pattern = rename_source_key(name, renamings, converters, inside[1], inside[0])
        if new not in inside[0] and name in inside[0]:
            new, pattern = name, None
        converter = by_pattern[pattern] if pattern is not None else None
        groups.setdefault(new, (converter, []))[1].append((name, pattern or ""))
    return groups


def converted(target: str, converter: Any, members: Members, infos: Mapping[str, TensorInfo]) -> Entry | None:
    """The recipe for what a converter of transformers does; None where we have none for it."""
    steps = [type(operation).__name__ for operation in converter.operations]
    if any(getattr(operation, "num_shards_attribute", None) for operation in converter.operations):
        return None
    dims = [getattr(operation, "dim", 0) for operation in converter.operations]
    parts = [[name for name, pattern in members if pattern == wanted] for wanted in converter.source_patterns]
    parts = [names for names in parts if names]
    if steps == ["Chunk"] and len(members) == 1:
        return _chunked(target, converter.target_patterns, members[0][0], dims[0], infos)
    if len(converter.target_patterns) != 1:
        return None
    if steps == ["MergeModulelist"] and len(parts) == 1:
        return Entry(tuple(parts[0]), (target,), (Stack(len(parts[0]), dims[0]),))
    if steps == ["Concatenate"] and all(len(names) == 1 for names in parts):
        names = [name for [name] in parts]
        return Entry(tuple(names), (target,), (_fuse(names, dims[0], infos),))
    if steps == ["MergeModulelist", "Concatenate"] and dims == [0, 1] and len({len(names) for names in parts}) == 1:
        return _experts(target, parts, infos)
    return None


def _chunked(
    target: str, patterns: Sequence[str], name: str, dim: int, infos: Mapping[str, TensorInfo]
) -> Entry | None:
    """Equal parts of one tensor."""
    before, found, after = target.partition(patterns[0])
    size, rest = divmod(infos[name].shape[dim], len(patterns))
    if not found or rest:
        return None
    targets = tuple(f"{before}{pattern}{after}" for pattern in patterns)
    return Entry((name,), targets, (Split((size,) * len(patterns), dim),))


def _experts(target: str, parts: Sequence[Sequence[str]], infos: Mapping[str, TensorInfo]) -> Entry:
    """Parts of every expert joined by rows, and experts stacked: all rows in order, and a dimension for the experts."""
    names = [name for expert in zip(*parts, strict=True) for name in expert]
    joined = _fuse(names, 0, infos)
    rows, columns = sum(joined.sizes), tuple(infos[names[0]].shape[1:])
    count = len(parts[0])
    operations: tuple[Operation, ...] = (joined, Reshape((rows, *columns), (count, rows // count, *columns)))
    return Entry(tuple(names), (target,), operations)


def _fuse(names: Sequence[str], dim: int, infos: Mapping[str, TensorInfo]) -> Fuse:
    return Fuse(tuple(infos[name].shape[dim] for name in names), dim)
