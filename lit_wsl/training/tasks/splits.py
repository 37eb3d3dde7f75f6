"""Which split a text falls into: by a hash of its group, so that near-duplicates stay together."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from lit_wsl.training.tasks.task import SPLITS, Row, Split

SEED = 20260
SIZES: dict[Split, int] = {"train": 2400, "validation": 300, "test": 500}

# Test and validation get more than their size needs: the surplus balances the classes.
_TRAIN_UNTIL = 0.65
_VALIDATION_UNTIL = 0.77


def normalised(text: str) -> str:
    """Text reduced to its lower-case words; two texts equal here count as the same text."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def uniform_hash(key: str) -> float:
    """Number in [0, 1) that depends on ``key`` and the fixed seed alone."""
    digest = hashlib.sha256(f"{SEED}:{key}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def split_of(group: str) -> Split:
    """Split of a whole group: the same for every task that draws on the group."""
    position = uniform_hash(group)
    if position < _TRAIN_UNTIL:
        return "train"
    return "validation" if position < _VALIDATION_UNTIL else "test"


def split_ranks(count: int) -> list[Split]:
    """Splits of ``count`` ranked groups of one class, each split non-empty.

    Raises:
        ValueError: If ``count < 3``.
    """
    if count < len(SPLITS):
        raise ValueError(f"`count >= {len(SPLITS)}` must hold, got {count}.")
    test = max(1, round(count * (1 - _VALIDATION_UNTIL)))
    validation = max(1, round(count * (_VALIDATION_UNTIL - _TRAIN_UNTIL)))
    sizes: dict[Split, int] = {"train": count - test - validation, "validation": validation, "test": test}
    return [split for split, size in sizes.items() for _ in range(size)]


def link_near_duplicates(texts: Sequence[str], groups: Sequence[str], words: int) -> list[str]:
    """Join groups that share a text or a run of ``words`` words.

    Args:
        texts: One text per row.
        groups: Group of each row before joining.
        words: Length of the run; shorter texts are compared whole.

    Returns:
        Group of each row after joining: the least name among the joined groups.
    """
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    first_seen: dict[str, str] = {}
    for text, group in zip(texts, groups, strict=True):
        for run in _runs(normalised(text).split(), words):
            low, high = sorted((root(first_seen.setdefault(run, group)), root(group)))
            parent[high] = low
    return [root(group) for group in groups]


def _runs(tokens: list[str], words: int) -> list[str]:
    return [" ".join(tokens[start : start + words]) for start in range(max(1, len(tokens) - words + 1))]


def select_rows(rows: Iterable[Row]) -> dict[Split, list[Row]]:
    """Distinct, unambiguous rows, each split cut to its size with classes as even as the source allows."""
    chosen: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    for row in _distinct(rows):
        chosen[row.split].append(row)
    return {split: _balanced(chosen[split], SIZES[split]) for split in SPLITS}


def _distinct(rows: Iterable[Row]) -> list[Row]:
    """The first row of each text; texts seen under two labels are dropped."""
    first: dict[str, Row] = {}
    ambiguous: set[str] = set()
    for row in rows:
        text = normalised(row.text)
        if first.setdefault(text, row).label != row.label:
            ambiguous.add(text)
    return [row for text, row in first.items() if text and text not in ambiguous]


def _balanced(rows: list[Row], size: int) -> list[Row]:
    """The first ``size`` rows when classes take turns, each in hash order."""
    by_label: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: uniform_hash(row.text)):
        by_label[row.label].append(row)
    turns = [(turn, uniform_hash(row.text), row) for own in by_label.values() for turn, row in enumerate(own)]
    kept = sorted(turns, key=lambda entry: entry[:2])[:size]
    return [row for _, _, row in sorted(kept, key=lambda entry: entry[1])]
