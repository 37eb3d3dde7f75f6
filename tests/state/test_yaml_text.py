"""YAML of anybody."""

import pytest
import yaml

from lit_wsl.state.yaml_text import bound_loader, read_yaml, read_yaml_documents

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
        ("a: 1\nb: 2\na: 1", "'a' stands twice, in lines 1 and 3"),
        ("a:\n  - {k: 1, 'k': 2}", "'k' stands twice, in lines 2 and 2"),
        ("{? {a: 1, a: 2} : 3}", "'a' stands twice"),
    ],
    ids=range(14),
)
def test_what_is_refused(text, words):
    with pytest.raises(yaml.YAMLError, match=words):
        read_yaml(text)


def test_what_is_read():
    assert read_yaml("") is None
    assert read_yaml("a: &a [1, 2]\nb: [*a, *a]") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    assert read_yaml("a: &a {k: 1, l: 2}\nb: {k: 3, <<: *a}\nc: {<<: *a, <<: {m: 4}}")["b"] == {"k": 3, "l": 2}
    assert read_yaml("{1: a, '1': b}") == {1: "a", "1": "b"}
    assert read_yaml("[" * 100 + "]" * 100)
    assert read_yaml_documents("a: 1\n---\nb: 2") == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("parent", [yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)])
def test_a_loader_of_another_is_bound(parent):
    class Loader(parent):
        pass

    bound_loader(Loader)
    for text in ("[" * 100_000, "[" * 101 + "]" * 101, "- " * 100_000 + "a", '{"a":' * 100_000):
        with pytest.raises(yaml.YAMLError, match="nested too deeply"):
            yaml.load(text, Loader)
    with pytest.raises(yaml.YAMLError, match="too many entries"):
        yaml.load(BOMB, Loader)
    assert yaml.load("[" * 100 + "]" * 100, Loader) == yaml.safe_load("[" * 100 + "]" * 100)
    assert yaml.load("a: &a [1, {b: 2}]\nc: *a", Loader) == {"a": [1, {"b": 2}], "c": [1, {"b": 2}]}
