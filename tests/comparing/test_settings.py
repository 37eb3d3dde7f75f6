"""Settings out of range are refused, and ranks are understood."""

import pytest

from lit_wsl.comparing.settings import CompareSettings
from lit_wsl.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"threshold": -1e-9}, "`threshold >= 0` must hold, got -1e-09"),
        ({"threshold": float("nan")}, "`threshold >= 0` must hold, got nan"),
        ({"min_ratio": -0.1}, "`min_ratio >= 0`"),
        ({"min_relative": -0.1}, "`min_relative >= 0`"),
        ({"max_rank": 0}, "`max_rank >= 1` must hold, got 0"),
        ({"known_values": 0}, "`known_values >= 1`"),
        ({"rank": "0"}, "positive number, `auto` or `energy:0.99`, got '0'"),
        ({"rank": "-3"}, "got '-3'"),
        ({"rank": "many"}, "got 'many'"),
        ({"rank": "1.5"}, "got '1.5'"),
        ({"rank": ""}, "got ''"),
        ({"rank": "energy:"}, "got 'energy:'"),
        ({"rank": "energy:0"}, r"must lie in \(0, 1\], got 'energy:0'"),
        ({"rank": "energy:1.01"}, r"must lie in \(0, 1\]"),
        ({"rank": "energy:-0.5"}, "got 'energy:-0.5'"),
    ],
    ids=str,
)
def test_values_out_of_range(values, words):
    with pytest.raises(ConfigError, match=words):
        CompareSettings(**values)


@pytest.mark.parametrize(
    ("rank", "fixed", "energy"),
    [
        ("auto", None, None),
        ("16", 16, None),
        ("energy:0.99", None, 0.99),
        ("energy:1", None, 1.0),
        ("energy:.5", None, 0.5),
    ],
)
def test_ranks(rank, fixed, energy):
    settings = CompareSettings(rank=rank)
    assert (settings.fixed_rank, settings.energy) == (fixed, energy)


def test_they_survive_json():
    settings = CompareSettings(threshold=1e-5, rank="energy:0.9", is_exact=True)
    assert CompareSettings(**settings.to_json()) == settings
