"""Sizes in bytes, as people write them."""

import re

from lit_wsl.errors import ConfigError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def read_size(text: str) -> int:
    """Number of bytes that ``5GB`` or ``500MB`` names.

    Raises:
        ConfigError: If it is no such size, or below one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]B)?\s*", text, re.IGNORECASE)
    size = float(match[1]) * _UNITS[(match[2] or "").upper()] if match else 0
    if size < 1:
        raise ConfigError(f"Size {text!r} is not understood; write for instance 5GB or 500MB.")
    return int(size)


def told_size(nbytes: int) -> str:
    """``1.5 GB``, ``20.0 MB``, ``7 bytes``."""
    for unit, factor in sorted(_UNITS.items(), key=lambda pair: -pair[1]):
        if unit and nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes} bytes"
