"""What makes one sweep another: which study a configuration continues, and which earlier sweeps it may learn from."""

from collections.abc import Iterable, Mapping
from typing import Any

from lit_wsl.merging.config import MergeConfig
from lit_wsl.merging.parameters import spelled
from lit_wsl.runs.identity import content_hash
from lit_wsl.runs.strict import plain

_COMPARED = (
    "method",
    "adapters",
    "split",
    "merge_mode",
    "constraint_nonnegative",
    "eval_tasks",
    "eval_subset",
    "lambda_policy",
    "optimizer",
)
"""What an earlier sweep must have in common."""
_ALSO_COMPARED = ("method_params", "transforms", "rules", "include", "exclude", "models", "deltas", "base")
"""And this, where its file says it."""
_UNORDERED = ("adapters", "eval_tasks")
_OF_SEARCH = ("type", "space", "grid", "seed")
"""What a study cannot change on the way; budget, known points and the like it can."""
_NOT_OF_STUDY = (
    "output",
    "output_dir",
    "overwrite",
    "threads",
    "verify",
    "tally",
    "shard_size",
    "save_merged",
    "post_sweep_eval",
    "learned_from",
    "search",
)


def described(config: MergeConfig) -> dict[str, Any]:
    """What was merged and measured, as the JSON of a sweep records it."""
    given = plain(config.to_dict())
    return {name: given[name] for name in (*_COMPARED, *_ALSO_COMPARED)}


def study_name(config: MergeConfig, content: str) -> str:
    """The name of a configuration's study: the same for as long as the same is searched and measured.

    Args:
        config: The sweep.
        content: Hash of what its sources hold.
    """
    given = {key: value for key, value in config.to_dict().items() if key not in _NOT_OF_STUDY}
    search = {key: (config.search or {}).get(key) for key in _OF_SEARCH}
    return f"sweep-{content_hash([given, search, content])[:12]}"


def difference(older: Mapping[str, Any], wanted: Mapping[str, Any], searched: Iterable[str]) -> str | None:
    """The first field in which an earlier sweep is of something else; None if it may be learned from."""
    names = [*_COMPARED, *(name for name in _ALSO_COMPARED if name in older)]
    free = {spelled(name) for name in searched}
    for name in names:
        mine, theirs = _compared(name, wanted.get(name), free), _compared(name, older.get(name), free)
        if mine != theirs:
            return name
    return None


def _compared(name: str, value: Any, free: set[str]) -> Any:
    value = _without_none(plain(value))
    if name in _UNORDERED and isinstance(value, list):
        return sorted(map(str, value))
    if name == "method":
        return spelled(value or "").lower()
    if name == "constraint_nonnegative":
        return value is None or bool(value)
    if name == "method_params" and isinstance(value, dict):
        return {key: one for key, one in value.items() if spelled(key) not in free}
    if name == "optimizer":
        kind = value if isinstance(value, str) else (value or {}).get("type") or "none"
        return None if str(kind).lower() in ("none", "bayes") else value
    return value or None


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: kept for key, item in value.items() if (kept := _without_none(item)) is not None and kept != {}}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
