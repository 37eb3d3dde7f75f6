"""What the singular values of a difference say, and the low-rank factors that give it back."""

import math
from collections.abc import Iterator
from dataclasses import replace

from lit_wsl.comparing.records import Extracted, Pattern
from lit_wsl.comparing.settings import CompareSettings
from lit_wsl.tensors.difference import Entries
from lit_wsl.tensors.lora import LoraFactors
from lit_wsl.tensors.spectrum import POWER_ITERATIONS, DeltaMatrix, Spectrum, leading_spectrum, residual_norm

OVERSAMPLING = 8
"""Values beyond those that are wanted, at least."""
FEW = 16
"""A larger rank that is asked for gets more values and iterations, so that its factors are as near to the best."""
MARGIN = 8
"""A rank this near to the number of known values asks for more of them."""
MOST_VALUES = 512
NEARLY_ALL = 0.9999
"""Share of the energy from which what is left out does not matter, wherever it comes from."""
_POTENTIAL_RANK, _POTENTIAL_SHARE = 64, 0.1


def matrices_of(name: str, base: Entries, tuned: Entries) -> Iterator[DeltaMatrix]:
    """A difference as matrices: one for each expert of a stack; a convolution is flattened behind its outputs."""
    shape = base.shape
    if is_stack(name, shape):
        rows, columns = shape[1], shape[2]
        for expert in range(shape[0]):
            yield DeltaMatrix(base, tuned, (rows, columns), expert * rows * columns)
    else:
        yield DeltaMatrix(base, tuned, (shape[0], math.prod(shape[1:])))


def is_stack(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor holds one matrix per expert, and is not the kernel of a convolution."""
    return len(shape) == 3 and ("expert" in name or not name.endswith("weight"))


def analyse(
    matrix: DeltaMatrix, settings: CompareSettings, rounding: float, tuned_norm: float, floor: float = 0.0
) -> tuple[Pattern, LoraFactors | None, Extracted | None]:
    """The pattern of a difference; with the factors that the settings ask for, and what these leave out.

    Args:
        matrix: The difference.
        settings: Which values and which rank.
        rounding: Frobenius norm that rounding alone may leave behind an update.
        tuned_norm: Norm of the fine-tuned weight, for the record.
        floor: Relative error that rounding leaves in an entry, on the average over many.
    """
    spectrum = _spectrum(matrix, settings)
    rank = spectrum.rank_above_noise
    if rank and float(spectrum.values[rank - 1]) < rounding:  # else rounding cannot be that loud
        spectrum = replace(spectrum, least_edge=matrix.rounding_edge(floor))
    pattern = _pattern(spectrum, rounding)
    rank = _rank(spectrum, pattern, settings)
    if not rank:
        return pattern, None, None
    factors = spectrum.factors(rank)
    error = residual_norm(matrix, factors)
    size = math.sqrt(spectrum.energy)
    record = Extracted(
        rank=rank,
        relative_error=error / size if size else 0.0,
        weight_error=error / tuned_norm if tuned_norm else 0.0,
        parameters=factors.A.numel() + factors.B.numel(),
    )
    return pattern, factors, record


def _spectrum(matrix: DeltaMatrix, settings: CompareSettings) -> Spectrum:
    """As many singular values as the rank needs; where none is given, more while the rank reaches the last of them."""
    rank = settings.fixed_rank or 0
    count = max(settings.known_values, rank + rank // 4) + OVERSAMPLING
    iterations = POWER_ITERATIONS if rank <= FEW else 2 * POWER_ITERATIONS
    while True:
        spectrum = leading_spectrum(matrix, count, is_exact=settings.is_exact, iterations=iterations)
        is_enough = bool(rank) or count >= MOST_VALUES or spectrum.rank_above_noise + MARGIN < count
        if spectrum.is_exact or is_enough:
            return spectrum
        count *= 2


def _pattern(spectrum: Spectrum, rounding: float) -> Pattern:
    """What a spectrum says, given the norm that rounding alone may leave."""
    rank = spectrum.rank_above_noise
    edge = spectrum.noise_edge(rank)
    values = spectrum.values.tolist()
    captured = spectrum.captured(rank)
    remainder = math.sqrt(max(0.0, 1.0 - captured) * spectrum.energy)
    rank_95, smallest = spectrum.rank_for(0.95), min(spectrum.shape)
    powers = [1 << power for power in range(10) if 1 << power <= len(values)]
    return Pattern(
        shape=list(spectrum.shape),
        effective_rank=rank,
        noise_edge=edge,
        rank_confidence=max(0.0, 1.0 - edge / values[rank - 1]) if rank else 0.0,
        rank_95_energy=rank_95,
        rank_99_energy=spectrum.rank_for(0.99),
        max_singular_value=values[0],
        min_singular_value=values[-1],
        singular_values=values,
        energy_captured=captured,
        energy_at={str(power): spectrum.captured(power) for power in powers},
        is_potential_lora=rank_95 is not None and rank_95 < _POTENTIAL_RANK and rank_95 < _POTENTIAL_SHARE * smallest,
        is_low_rank=0 < rank <= smallest // 2 and (captured >= NEARLY_ALL or remainder <= rounding),
        is_exact=spectrum.is_exact,
    )


def _rank(spectrum: Spectrum, pattern: Pattern, settings: CompareSettings) -> int:
    """Rank of the factors to take out; 0 for none."""
    known = len(spectrum.values)
    if settings.extraction == "never":
        return 0
    if spectrum.energy == 0.0:  # an expert that was not trained, beside others that were
        return min(settings.fixed_rank or 1, known)
    if settings.extraction == "found" and not pattern.is_low_rank:
        return 0
    if settings.fixed_rank is not None:
        return min(settings.fixed_rank, known)
    if settings.energy is not None:
        return min(spectrum.rank_for(settings.energy) or settings.max_rank, settings.max_rank, known)
    return pattern.effective_rank if pattern.is_low_rank else min(settings.max_rank, known)
