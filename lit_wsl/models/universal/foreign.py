"""Names of a state dict that was saved from elsewhere: the prefix that makes them a model's names."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from torch import Tensor

from lit_wsl.errors import CheckpointError

_DEPTH = 4
"""Longest prefix that a container or a wrapping module puts in front, in components."""
_MANY = 64
"""An end that more names of the model share tells nothing."""
_TRIED = 32
"""So many exchanges are compared, the most frequent first."""
Exchange = tuple[str, str]
"""A prefix, and the one that takes its place."""


def align(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """``state`` under the names of a model, by one exchange of prefixes for all.

    A file of a bare transformer has ``layers.0…`` where the module that holds it has ``model.layers.0…``; another
    tool's has ``net.model.layers.0…``. The exchange that gives most names and shapes of the model is taken. Names
    that are the model's already stay, and so do those that it does not fit.

    Args:
        state: Plain state dict.
        wanted: Plain names of the model, and their shapes.

    Raises:
        CheckpointError: If two exchanges fit equally well, as in a model with two towers of one kind.
    """
    kept = {name for name in state if name in wanted}
    if len(kept) == len(state):
        return dict(state)
    found = [(e, _renamed(state, wanted, kept, e)) for e in _exchanges(state.keys() - kept, wanted)]
    found = [(e, names) for e, names in found if len(names) > len(kept) and 3 * len(names) >= len(state) - len(kept)]
    if not found:
        return dict(state)

    def fitting(names: dict[str, str]) -> tuple[int, int]:
        return sum(tuple(state[name].shape) == wanted[new] for name, new in names.items()), len(names)

    most = max(fitting(names) for _, names in found)
    best = [(exchange, names) for exchange, names in found if fitting(names) == most]
    _check_unique(best)
    return {best[0][1].get(name, name): tensor for name, tensor in state.items()}


def _exchanges(names: Iterable[str], wanted: Iterable[str]) -> list[Exchange]:
    """The exchanges that make most of the names those of the model, of each name with as much kept as can be."""
    ends: dict[str, list[str]] = defaultdict(list)
    for name in wanted:
        for prefix in _prefixes(name):
            ends[name.removeprefix(prefix)].append(prefix)
    counts: Counter[Exchange] = Counter()
    for name in sorted(names):
        old = next((prefix for prefix in _prefixes(name) if name.removeprefix(prefix) in ends), None)
        if old is not None and len(others := ends[name.removeprefix(old)]) <= _MANY:
            counts.update((old, new) for new in others)
    return [exchange for exchange, _ in counts.most_common(_TRIED)]


def _renamed(
    state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], kept: set[str], exchange: Exchange
) -> dict[str, str]:
    """Names that an exchange fits to the model; none if it would move names that fit as they are."""
    old, new = exchange
    if _renumbers(exchange) or (kept and old and new):
        return {}
    targets = {name: new + name.removeprefix(old) for name in state if name.startswith(old)}
    renamed = {name: target for name, target in targets.items() if target in wanted}
    return {} if kept & (renamed.keys() | set(renamed.values())) else renamed


def _renumbers(exchange: Exchange) -> bool:
    """Whether an exchange only puts another member of a list in the place of one."""
    old, new = (prefix.rstrip(".").rpartition(".")[2] for prefix in exchange)
    return old.isdigit() and new.isdigit() and old != new


def _check_unique(best: list[tuple[Exchange, dict[str, str]]]) -> None:
    for exchange, renamed in best[1:]:
        if renamed != best[0][1]:
            first, second = (f"{old + '*'!r} as {new + '*'!r}" for old, new in (best[0][0], exchange))
            raise CheckpointError(
                f"The names fit this model in two ways: {first}, and {second}. Name the part that is meant with "
                "`lit-wsl map`, or give it alone."
            )


def _prefixes(name: str) -> list[str]:
    """The prefixes of a name, from the empty one on."""
    parts = name.split(".")
    return ["".join(f"{part}." for part in parts[:depth]) for depth in range(min(_DEPTH + 1, len(parts)))]
