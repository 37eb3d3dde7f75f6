"""Deterministic parts of a split, for evaluations that must be fast: the same rows on every call and machine."""

import hashlib
import json
import math
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lit_wsl.errors import ConfigError, did_you_mean
from lit_wsl.evaluation.content import digest_of
from lit_wsl.state.publish import published_file
from lit_wsl.training.tasks import Split
from lit_wsl.training.text import TextClassificationData

Classes = Callable[[], Sequence[Hashable]]
"""Gives the class of every row; called only where it is needed."""


@dataclass(frozen=True)
class SubsetSpec:
    """Which rows of a split are evaluated.

    Raises:
        ConfigError: If a number is out of range or a field is unknown.
    """

    enabled: bool = True
    """Whether to use a subset at all."""
    max_samples: int | None = None
    """Rows to use; null takes all, and so does a number that is not below the size of the split."""
    shuffle: bool = False
    """Draw the rows at random instead of taking the first."""
    seed: int = 0
    """Seed of the draw."""
    stratified: bool = False
    """Keep the shares of the classes: each gets its proportional number, by largest remainder, drawn at random."""
    label_column: str | None = None
    """Where a row has its class, for data that are no texts with labels."""
    per_task: dict[str, Any] = field(default_factory=dict)
    """Task name to a number of rows, or to a mapping of these fields."""

    def __post_init__(self) -> None:
        _check_count(self.max_samples, "max_samples")
        if not isinstance(self.per_task, Mapping):
            raise ConfigError(f"`eval_subset.per_task` must be a mapping of task names, got {self.per_task!r}.")
        for task, own in self.per_task.items():
            self._own(task, own)

    @classmethod
    def read(cls, given: "Subset | None", seed: int = 0) -> "SubsetSpec | None":
        """The subset that is described; None without one, or with ``enabled: false``.

        Args:
            given: Fields by name, or a number of rows.
            seed: Seed where it says none.

        Raises:
            ConfigError: If a number is out of range or a field is unknown.
        """
        if given is None or isinstance(given, SubsetSpec):
            return given if given is None or given.enabled else None
        given = _mapping(given, "eval_subset")
        _check_names(given, "eval_subset")
        spec = cls(**{"seed": seed, **given})
        return spec if spec.enabled else None

    @property
    def tag(self) -> str:
        """``subset_`` and a hash of all fields: what keeps results of a subset apart from those of a whole split."""
        content = json.dumps(asdict(self), sort_keys=True)
        return "subset_" + hashlib.md5(content.encode(), usedforsecurity=False).hexdigest()[:10]

    def of_task(self, task: str) -> "SubsetSpec":
        """The fields that hold for one task."""
        return self._own(task, self.per_task.get(task, {}))

    def _own(self, task: str, own: Any) -> "SubsetSpec":
        own = _mapping(own, f"eval_subset.per_task.{task}")
        _check_names(own, f"eval_subset.per_task.{task}")
        return replace(self, per_task={}, **{name: value for name, value in own.items() if name != "per_task"})

    def choose(self, task: str, size: int, classes: Classes) -> list[int]:
        """Sorted indices of the rows of one task.

        Args:
            task: Its name.
            size: Rows of the split.
            classes: Gives the class of every row.
        """
        own = self.of_task(task)
        if not own.enabled or own.max_samples is None or own.max_samples >= size:
            return list(range(size))
        if own.stratified:
            return stratified_rows(classes(), own.max_samples, own.seed)
        if own.shuffle:
            return sorted(random.Random(own.seed).sample(range(size), own.max_samples))
        return list(range(own.max_samples))


Subset = SubsetSpec | Mapping[str, Any] | int
"""A subset as a user may give it: also its fields by name, or a number of rows."""


def stratified_rows(classes: Sequence[Hashable], count: int, seed: int) -> list[int]:
    """Sorted indices of ``count`` rows with the classes in proportion, by the method of the largest remainder.

    Args:
        classes: The class of every row.
        count: How many rows, fewer than there are.
        seed: Seed of the draw within each class.
    """
    members: dict[Hashable, list[int]] = {}
    for row, label in enumerate(classes):
        members.setdefault(label, []).append(row)
    order = sorted(members, key=str)
    shares = [count * len(members[label]) / len(classes) for label in order]
    quotas = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(order)), key=lambda i: (quotas[i] - shares[i], i))
    for i in by_remainder[: count - sum(quotas)]:
        quotas[i] += 1
    draw = random.Random(seed)
    return sorted(row for label, quota in zip(order, quotas, strict=True) for row in draw.sample(members[label], quota))


class SubsetCache:
    """Remembers the rows of subsets on disk, so that every evaluation and machine uses the same.

    Args:
        directory: Where the files are.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, spec: SubsetSpec, task: str, split: str) -> Path:
        """File of one subset."""
        return self.directory / f"eval_subset_{task}_{split}_{spec.tag}.json"

    def rows(
        self, spec: SubsetSpec, task: str, split: str, size: int, classes: Classes, fingerprint: str | None = None
    ) -> list[int]:
        """Indices of the rows, as remembered if the data are still the same, else chosen and remembered.

        Args:
            spec: The subset.
            task: Name of the task.
            split: Name of the split.
            size: Rows of the split.
            classes: Gives the class of every row.
            fingerprint: Tells data of one size apart; None compares sizes only.
        """
        path = self.path(spec, task, split)
        known = _read(path, size, fingerprint)
        if known is not None:
            return known
        rows = spec.choose(task, size, classes)
        metadata = {"task": task, "split": split, "dataset_size": size, "fingerprint": fingerprint, "tag": spec.tag}
        content = {"indices": rows, "metadata": {**metadata, "eval_subset": asdict(spec)}}
        with published_file(path) as partial:
            partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
        return rows


def text_rows(
    cache: SubsetCache, task: str, data: TextClassificationData, split: Split, subset: SubsetSpec | None
) -> list[int] | None:
    """Rows of a subset of labelled texts, told apart by their tokens and classes; None for the whole split."""
    if subset is None:
        return None
    examples = data.examples(split)
    return cache.rows(
        subset, task, split, len(examples), lambda: [label for _, label in examples], digest_of(list(examples))
    )


def _read(path: Path, size: int, fingerprint: str | None) -> list[int] | None:
    """Remembered rows, or None where there are none or they are of other data."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows, metadata = [int(row) for row in content["indices"]], content["metadata"]
        same = metadata["dataset_size"] == size
        earlier = metadata.get("fingerprint")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # a damaged file only costs a new choice, which gives the same rows
    inside = all(0 <= row < size for row in rows)
    return rows if same and inside and (None in (earlier, fingerprint) or earlier == fingerprint) else None


def _check_count(value: Any, name: str) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value <= 0):
        raise ConfigError(f"`eval_subset.{name}` must be a whole number above 0, got {value!r}.")


def _mapping(given: Any, where: str) -> Mapping[str, Any]:
    if isinstance(given, int) and not isinstance(given, bool):
        return {"max_samples": given}
    if not isinstance(given, Mapping):
        raise ConfigError(f"`{where}` must be a number or a mapping, got {given!r}.")
    return given


def _check_names(given: Mapping[str, Any], where: str) -> None:
    known = [f.name for f in fields(SubsetSpec)]
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise ConfigError(f"`{where}` has no field {unknown!r}. {did_you_mean(str(unknown), known)}")
