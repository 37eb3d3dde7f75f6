import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lit_wsl.training.configuration import make_plain


class Word(str):
    """A text of a library's own."""

    __slots__ = ()


@dataclass
class Rates:
    decay: np.float64


def test_what_numpy_counts_is_loaded_without_running_code():
    """A `float64` of NumPy is a `float` too, and a checkpoint that holds one is refused by the safe loader."""
    values = {
        "lr": np.float64(0.5),
        "steps": np.int64(3),
        "is_on": np.bool_(True),
        "name": Word("x"),
        "path": Path("a"),
        "by": {np.int64(1): [np.float64(2)], (1, np.int64(2)): (), "rates": Rates(np.float64(0.1))},
    }
    buffer = io.BytesIO()
    torch.save(make_plain(values, "hyper_parameters"), buffer)
    buffer.seek(0)
    by = {1: [2.0], (1, 2): [], "rates": {"decay": 0.1}}
    expected = {"lr": 0.5, "steps": 3, "is_on": True, "name": "x", "path": "a", "by": by}
    assert torch.load(buffer, weights_only=True) == expected
