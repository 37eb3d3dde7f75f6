"""Values of JSON against the types that a dataclass declares."""

from dataclasses import asdict
from typing import Literal

import pytest

from lit_wsl.comparing.architecture import Architecture
from lit_wsl.comparing.settings import CompareSettings
from lit_wsl.comparing.stored import check_types, stored_fields

GOOD = [
    (int, 3),
    (float, 3),
    (float, float("nan")),
    (int | None, None),
    (Literal["a", "b"], "b"),
    (list[int], []),
    (dict[str, list[int]], {"a": [1]}),
    (dict[str, dict[str, str]], {}),
    (bool, False),
]
BAD = [
    (int, 3.0),
    (int, True),
    (float, "3"),
    (float, 1 << 1024),
    (int | None, 0.5),
    (Literal["a", "b"], ["a"]),
    (list[int], (1,)),
    (list[int], [1, "a"]),
    (dict[str, list[int]], {"a": 1}),
    (bool, 0),
    (str, None),
]


@pytest.mark.parametrize(("declared", "value"), GOOD)
def test_a_value_of_its_type_passes(declared, value):
    check_types({"x": value}, {"x": declared})


@pytest.mark.parametrize(("declared", "value"), BAD)
def test_a_value_of_another_type_is_named(declared, value):
    with pytest.raises(TypeError, match="`x` is"):
        check_types({"x": value}, {"x": declared})


@pytest.mark.parametrize("one", [CompareSettings(rank="3"), Architecture(["a"], [], ["b"], [])])
def test_what_was_stored_comes_back_without_what_is_unknown(one):
    assert type(one)(**stored_fields(type(one), {**asdict(one), "newer": 1})) == one


@pytest.mark.parametrize("content", [None, [], "x", 3])
def test_what_is_no_mapping_is_refused(content):
    with pytest.raises(TypeError, match="CompareSettings"):
        stored_fields(CompareSettings, content)
