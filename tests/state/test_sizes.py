"""Sizes and dtypes as people write them."""

import pytest

from lit_wsl.errors import ConfigError
from lit_wsl.state.dtypes import FLOAT_DTYPES, float_dtype
from lit_wsl.state.sizes import read_size, told_size


@pytest.mark.parametrize("text", ["1", "20 MB", "1.5GB", "7kb"])
def test_a_told_size_is_read_as_the_same(text):
    assert read_size(told_size(read_size(text)).removesuffix(" bytes")) == read_size(text)


def test_sizes_are_told_in_the_largest_unit_that_fits():
    assert [told_size(n) for n in (0, 999, 1000, 999_999, 10**6, 1_540_000_000)] == [
        "0 bytes",
        "999 bytes",
        "1.0 KB",
        "1000.0 KB",
        "1.0 MB",
        "1.5 GB",
    ]


def test_a_dtype_is_found_by_its_name_or_the_nearest_is_offered():
    assert {name: float_dtype(name) for name in FLOAT_DTYPES} == FLOAT_DTYPES
    with pytest.raises(ConfigError, match=r"Unknown dtype 'bfloat'.*bfloat16"):
        float_dtype("bfloat")
