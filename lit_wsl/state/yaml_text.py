"""YAML of anybody: plain values only, no bombs, and one kind of error."""

from typing import Any

import yaml

MOST_ENTRIES = 1_000_000
"""Entries that a text may stand for, with each alias written out."""
MOST_LEVELS = 100
"""Levels of nesting; what is deeper could be read, but hardly be walked through, written or shown."""


class _Loader(yaml.SafeLoader):
    """Builds no object and runs nothing; sees what the aliases amount to before it builds a value."""

    def compose_document(self) -> Any:
        """The document as nodes, in which an alias is the node that it names."""
        node = super().compose_document()
        _count(node, {})
        return node


def read_yaml(text: str) -> Any:
    """The value of a text of one document.

    Raises:
        yaml.YAMLError: If it is no YAML, asks for an object, is nested too deeply, or its aliases amount to too much.
    """
    documents = read_yaml_documents(text)
    if len(documents) > 1:
        raise yaml.YAMLError(f"{len(documents)} documents in one file")
    return documents[0] if documents else None


def read_yaml_documents(text: str) -> list[Any]:
    """The values of all documents of a text.

    Raises:
        yaml.YAMLError: As :func:`read_yaml` does.
    """
    try:
        return list(yaml.load_all(text, Loader=_Loader))
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (ValueError, OverflowError) as error:  # dates and numbers that are none
        raise yaml.YAMLError(str(error)) from error


def check_yaml_size(text: str) -> None:
    """Refuse a text that another reader of YAML, such as one in C, might not survive.

    Raises:
        yaml.YAMLError: If it is no YAML, is nested too deeply, or its aliases amount to too much.
    """
    if len(text) <= MOST_LEVELS:  # as many signs as levels at least, and no alias amounts to much
        return
    try:
        for _ in yaml.compose_all(text, Loader=_Loader):
            pass
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error


def _count(node: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Entries below a node, each alias counted as often as it stands, and levels of nesting."""
    if not isinstance(node, yaml.CollectionNode):
        return 1, 0
    if id(node) not in known:
        known[id(node)] = MOST_ENTRIES, 0  # what it counts for inside of itself
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(one,) for one in node.value]
        inside = [_count(one, known) for pair in pairs for one in pair]
        levels = 1 + max((levels for _, levels in inside), default=0)
        known[id(node)] = 1 + sum(entries for entries, _ in inside), levels
    entries, levels = known[id(node)]
    if entries >= MOST_ENTRIES:
        raise yaml.YAMLError("its aliases amount to too many entries, or hold themselves")
    if levels > MOST_LEVELS:
        raise yaml.YAMLError("it is nested too deeply")
    return entries, levels
