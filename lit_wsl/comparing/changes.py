"""How a tensor changed: the record of its difference, a histogram, and the same figures in NumPy."""

import math
import time

import numpy as np
import torch

from lit_wsl.comparing.records import TensorChange
from lit_wsl.comparing.settings import CompareSettings
from lit_wsl.errors import CheckpointError
from lit_wsl.tensors.difference import Difference, Entries
from lit_wsl.tensors.rounding import is_rounding, rounding_floor

_SAMPLE_CHUNKS, _SAMPLE_ENTRIES = 16, 4096
BIN_EDGES = tuple(float(f"1e{power}") for power in range(-10, 3))
"""Sizes of differences between the bins of the histogram; the first bin holds what is smaller, and no difference."""
_EDGES = torch.tensor(BIN_EDGES)


def change_of(base: Entries, tuned: Entries, found: Difference, settings: CompareSettings) -> TensorChange:
    """The record of a difference."""
    is_number = base.dtype.is_floating_point and tuned.dtype.is_floating_point
    floor = rounding_floor(base, tuned) if is_number and not found.is_equal else 0.0
    rounded = is_number and not found.is_equal and found.norm > 0.0 and is_rounding(base, tuned)
    modified = found.changed_ratio > settings.min_ratio or found.relative > settings.min_relative
    nan, inf = found.base_nonfinite
    return TensorChange(
        shape=list(base.shape),
        base_dtype=_dtype_name(base.dtype),
        tuned_dtype=_dtype_name(tuned.dtype),
        numel=found.numel,
        mean_abs_diff=found.mean_abs,
        max_abs_diff=found.max_abs,
        relative_diff=found.relative,
        changed_ratio=found.changed_ratio,
        cosine=found.cosine,
        mean_diff=found.mean,
        std_diff=found.std,
        diff_norm=found.norm,
        base_norm=found.base_norm,
        is_equal=found.is_equal,
        is_rounding=rounded,
        rounding_floor=floor,
        modified=modified and not rounded and not found.is_equal,
        histogram=[] if found.norm == 0.0 else _histogram(base, tuned),
        nonfinite={"nan": nan, "inf": inf} if nan or inf else {},
    )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _histogram(base: Entries, tuned: Entries) -> list[float]:
    """Shares of a sample of entries by the size of their difference, in powers of ten."""
    entries = math.prod(base.shape)
    length = min(_SAMPLE_ENTRIES, entries)
    starts = {(entries - length) * at // max(1, _SAMPLE_CHUNKS - 1) for at in range(_SAMPLE_CHUNKS)}
    counts = torch.zeros(len(BIN_EDGES) + 1, dtype=torch.int64)
    one, two = torch.empty(2, length)
    for start in starts:
        base.fill(one, start)
        tuned.fill(two, start)
        counts += torch.bincount(torch.bucketize(two.sub_(one).abs_(), _EDGES), minlength=len(counts))
    return (counts.double() / counts.sum()).tolist()


def repeat_with_numpy(base: Entries, tuned: Entries, found: Difference, threshold: float) -> float:
    """Seconds that NumPy takes for the same figures on the whole tensor.

    Raises:
        CheckpointError: If the figures differ.
    """
    whole = torch.empty(2, found.numel)
    base.fill(whole[0], 0)
    tuned.fill(whole[1], 0)
    before, after = whole.numpy()
    began = time.perf_counter()
    delta = np.abs(after - before)
    mean, largest = float(delta.mean(dtype=np.float64)), float(delta.max())
    changed = int((delta > threshold).sum())
    norms = [float(np.sqrt(np.square(x, dtype=np.float64).sum())) for x in (delta, before)]
    seconds = time.perf_counter() - began
    pairs = [(mean, found.mean_abs), (largest, found.max_abs), (norms[0], found.norm), (norms[1], found.base_norm)]
    if changed != found.changed or any(abs(a - b) > 1e-4 * max(abs(a), abs(b)) for a, b in pairs):
        raise CheckpointError(f"NumPy finds other figures: {pairs}, {changed} and {found.changed} changed entries")
    return seconds
