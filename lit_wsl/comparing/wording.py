"""Numbers and lists as people write them."""

import math
from collections.abc import Sequence

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def listed(words: Sequence[str], most: int = 8) -> str:
    """``a, b and c``; behind ``most`` of them only their number."""
    if len(words) > most:
        return f"{', '.join(words[: most - 1])} and {len(words) - most + 1} more"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def counted(count: int, noun: str) -> str:
    """``1 tensor``, ``2 tensors``, ``2 matrices``."""
    return f"{count} {noun if count == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    if noun == "bias or norm":
        return "biases and norms"
    return noun.replace("matrix", "matrices") if noun.endswith("matrix") else f"{noun}s"


def share_of(count: int, of: int, noun: str) -> str:
    """``all 24 layers``, ``3 of 24 layers``, ``the only layer``."""
    if count == of:
        return f"the only {noun}" if of == 1 else f"all {counted(of, noun)}"
    return f"{count} of {counted(of, noun)}"


def figure(value: float) -> str:
    """Three significant digits; 0 only for zero itself."""
    if value == 0.0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.3g}" if 1e-4 <= abs(value) < 1e6 else f"{value:.2e}"


def percent(share: float) -> str:
    """A share in percent that is neither 0 % nor 100 % unless it is exactly that."""
    if 0.0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1.0:
        return "> 99.9 %"
    return f"{100 * share:.1f} %" if share not in (0.0, 1.0) else f"{100 * share:.0f} %"


def amount(count: float) -> str:
    """A large count such as ``22.7 M``."""
    unit = next(((size, letter) for size, letter in _UNITS if count >= size), None)
    return f"{count / unit[0]:.3g} {unit[1]}" if unit else f"{count:g}"


def span(numbers: Sequence[int]) -> str:
    """``8`` or ``4 to 16``."""
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
