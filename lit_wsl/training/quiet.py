"""Keeps Lightning and transformers from telling what nobody asked for."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

NOT_OF_USE = (
    ".*does not have many workers.*",
    ".*number of training batches .* smaller than the logging interval.*",
    ".*GPU available but not used.*",
    r".*LeafSpec.*is deprecated.*",
    ".*`self.trainer` reference is not registered.*",
    ".*Checkpoint directory .* exists and is not empty.*",
)
"""Warnings that a user cannot act on, or has answered by the configuration, as patterns of their beginnings."""
_LIGHTNING = logging.getLogger("lightning.pytorch.utilities.rank_zero")


def quiet() -> None:
    """Keep Lightning's and transformers' advice, banners and loading bars off the screen, as in a notebook.

    It holds until the process ends. Errors, warnings of other kinds, and what this package has to say are still told.
    """
    from transformers.utils import logging as transformers_logging

    _ignore()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@contextmanager
def quiet_trainer() -> Iterator[None]:
    """The same of Lightning alone, for a Trainer inside a larger job."""
    level = _LIGHTNING.level
    try:
        with warnings.catch_warnings():
            _ignore()
            yield
    finally:
        _LIGHTNING.setLevel(level)


def _ignore() -> None:
    _LIGHTNING.setLevel(logging.WARNING)
    for message in NOT_OF_USE:
        warnings.filterwarnings("ignore", message=message)
