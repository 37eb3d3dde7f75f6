"""Every error that a user can cause: one line that says what, where and the remedy."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

MOST_NAMES = 24
"""Known names that a message lists."""
LONGEST = 2000
"""Letters of a message."""


class LitWslError(ValueError):
    """The work cannot be done; the message is for the user."""

    exit_code: ClassVar[int] = 1
    """What the command that it ends returns."""


class ConfigError(LitWslError):
    """A parameter, option or configuration file is wrong."""


class WrongUsage(ConfigError):
    """Options of a command that are missing, contradict each other or cannot be as they are."""

    exit_code = 2


class VariantError(ConfigError):
    """A model is of another variant than the one asked for."""

    exit_code = 3


class CheckpointError(LitWslError):
    """A file of weights cannot be read, written or matched."""


class MergeError(LitWslError):
    """Sources do not fit together, or a merge gave an unusable result."""


class DataError(LitWslError):
    """A data set cannot be prepared or read."""


def one_line(text: str) -> str:
    """A message as one line of a terminal: no control characters of a file's names, and no end of such names."""
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Sentence that suggests the known name nearest to ``name``, or lists them when none is near."""
    options = sorted(known)
    near = get_close_matches(name, options, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    more = f" and {len(options) - MOST_NAMES} more" if len(options) > MOST_NAMES else ""
    return f"Known: {', '.join(options[:MOST_NAMES]) or 'none'}{more}."
