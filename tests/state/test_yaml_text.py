"""YAML of anybody."""

import pytest
import yaml

from lit_wsl.state.yaml_text import read_yaml, read_yaml_documents

BOMB = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)), "models: *a8"]
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "too many entries"),
        ("&a [*a]", "hold themselves"),
        ("a: &a {b: *a}", "hold themselves"),
        ("[" * 5000, "nested too deeply"),
        ("[" * 900 + "]" * 900, "nested too deeply"),
        ("a: &a " + "[" * 60 + "]" * 60 + "\nb: " + "[" * 60 + "*a" + "]" * 60, "nested too deeply"),
        ("2001-99-99", "month"),
        ("!!int 'x'", "invalid literal"),
        ("9" * 6000, "Exceeds the limit"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "2 documents"),
    ],
    ids=range(11),
)
def test_what_is_refused(text, words):
    with pytest.raises(yaml.YAMLError, match=words):
        read_yaml(text)


def test_what_is_read():
    assert read_yaml("") is None
    assert read_yaml("a: &a [1, 2]\nb: [*a, *a]") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    assert read_yaml("[" * 100 + "]" * 100)
    assert read_yaml_documents("a: 1\n---\nb: 2") == [{"a": 1}, {"b": 2}]
