"""Examine one tensor: how it changed, what its difference looks like, and which factors give it back."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from lit_wsl.comparing.changes import change_of, repeat_with_numpy
from lit_wsl.comparing.entries import FirstRows
from lit_wsl.comparing.patterns import analyse, is_stack, matrices_of
from lit_wsl.comparing.records import Extracted, Finding, Pattern, TensorChange
from lit_wsl.comparing.settings import CompareSettings
from lit_wsl.errors import CheckpointError
from lit_wsl.state.publish import scratch_beside
from lit_wsl.state.writer import write_tensors
from lit_wsl.tensors.difference import Difference, Entries, difference
from lit_wsl.tensors.lora import LoraFactors

ROUNDED = 1.5
"""How many times the rounding floor what is left behind an update may be."""
LARGEST = 1e15
"""Norm of a difference above which its squares leave the range of float32 soon."""


@dataclass(frozen=True)
class Subject:
    """A tensor that both models have, and what is known of it."""

    name: str
    base: Entries
    tuned: Entries
    factors: Path
    """File for extracted factors."""


def examine(subject: Subject, settings: CompareSettings) -> Finding:
    """All that a comparison finds of one tensor; rows that only one side has are left out.

    Raises:
        CheckpointError: If it has entries that are no numbers.
    """
    began = time.perf_counter()
    subject = _common_rows(subject)
    base, tuned = subject.base, subject.tuned
    found = difference(base, tuned, settings.threshold)
    tensor_time = time.perf_counter() - began
    _check_finite(found)
    change = change_of(base, tuned, found, settings)
    numpy_time = repeat_with_numpy(base, tuned, found, settings.threshold) if settings.method == "both" else None
    pattern: Pattern | None = None
    extracted: list[Extracted] = []
    if found.norm > 0.0 and not change.is_rounding and _is_matrix(base) and _is_matrix(tuned):
        pattern, extracted = _analyse(subject, found, change, settings)
    total = time.perf_counter() - began
    change = replace(change, total_time=total, tensor_time=tensor_time, numpy_time=numpy_time)
    return Finding(subject.name, change, pattern, extracted)


def _is_matrix(entries: Entries) -> bool:
    """Whether low-rank factors may change a tensor: not a vector, nor integers that stand for themselves."""
    is_number = entries.dtype.is_floating_point or entries.stored() is None
    return is_number and len(entries.shape) > 1


def _common_rows(subject: Subject) -> Subject:
    one, two = subject.base, subject.tuned
    if one.shape == two.shape:
        return subject
    rows = min(one.shape[0], two.shape[0])
    return replace(subject, base=FirstRows(one, rows), tuned=FirstRows(two, rows))


def _check_finite(found: Difference) -> None:
    """Refuse NaN, infinite entries but in tensors of the same values (such as masks), and what no weight can be."""
    sides = (("base", found.base_nonfinite), ("fine-tuned model", found.tuned_nonfinite))
    bad = [f"{nan} NaN and {inf} infinite entries in the {side}" for side, (nan, inf) in sides if nan or inf]
    if bad and (found.unshared or found.norm > 0.0):
        raise CheckpointError("; ".join(bad))
    if found.norm > LARGEST:
        raise CheckpointError(
            f"entries differ by up to {found.max_abs:.1e}, which no training does: one side is damaged"
        )


def _analyse(
    subject: Subject, found: Difference, change: TensorChange, settings: CompareSettings
) -> tuple[Pattern, list[Extracted]]:
    """The pattern of the difference (of the most changed matrix in a stack), and what extracted factors leave out."""
    shape = subject.base.shape
    count = shape[0] if is_stack(subject.name, shape) else 1
    share = 1.0 / math.sqrt(count)
    rounding = share * ROUNDED * change.rounding_floor * found.base_norm
    matrices = matrices_of(subject.name, subject.base, subject.tuned)
    floor, norm = change.rounding_floor, share * found.tuned_norm
    results = [analyse(matrix, settings, rounding, norm, floor) for matrix in matrices]
    pattern = max((pattern for pattern, _, _ in results), key=lambda one: one.max_singular_value)
    factors = [one for _, one, _ in results if one is not None]
    records = [record for _, _, record in results if record is not None]
    if len(factors) < count:
        return pattern, []
    _write(subject.factors, factors)
    return pattern, records


def _write(path: Path, factors: list[LoraFactors]) -> None:
    """Keep factors until all tensors are done: ``A`` and ``B``, numbered for the experts of a stack."""
    tensors: dict[str, Tensor] = {}
    for at, one in enumerate(factors):
        tensors |= {f"A.{at}": one.A, f"B.{at}": one.B}
    path.parent.mkdir(exist_ok=True)
    with scratch_beside(path) as scratch:  # other threads write beside it
        write_tensors(scratch / path.name, tensors)
        (scratch / path.name).replace(path)
