"""YAML of anybody: plain values only, no bombs, no key twice, and one kind of error."""

from typing import Any

import yaml

MOST_ENTRIES = 1_000_000
"""Entries that a text may stand for, with each alias written out."""
MOST_LEVELS = 100
"""Levels of nesting; what is deeper could be read, but hardly be walked through, written or shown."""

_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Builds no object and runs nothing; sees keys and what the aliases amount to before it builds a value."""

    def compose_document(self) -> Any:
        """The document as nodes, in which an alias is the node that it names."""
        node = super().compose_document()
        _count(node, {})
        _check_keys(node)
        return node


def read_yaml(text: str) -> Any:
    """The value of a text of one document.

    Raises:
        yaml.YAMLError: If it is no YAML, asks for an object, is nested too deeply, has a key twice in one mapping, or
            its aliases amount to too much.
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


def bound_loader(loader: type[Any]) -> None:
    """Let a class of PyYAML, also one in C, refuse what is nested too deeply, and aliases that amount to too much.

    The C library calls itself for every level, up to the end of the process. It asks the resolver, which is Python,
    at each of them.
    """
    if hasattr(loader, "levels"):  # it is bound already
        return
    descend, ascend, single = loader.descend_resolver, loader.ascend_resolver, loader.get_single_node

    def descend_resolver(self: Any, parent: Any, index: Any) -> None:
        self.levels += 1
        if self.levels > MOST_LEVELS + 1:  # a value stands one level below the list that holds it
            raise yaml.YAMLError("it is nested too deeply")
        descend(self, parent, index)

    def ascend_resolver(self: Any) -> None:
        self.levels -= 1
        ascend(self)

    def get_single_node(self: Any) -> Any:
        node = single(self)
        _count(node, {})
        return node

    loader.levels = 0
    for method in (descend_resolver, ascend_resolver, get_single_node):
        setattr(loader, method.__name__, method)


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


def _check_keys(root: Any) -> None:
    """Refuse a key that stands twice in one mapping, of which the first value would be lost; ``<<`` may."""
    seen, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            waiting += node.value
            continue
        first: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            waiting += [key, value]
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in first:
                raise yaml.YAMLError(f"{key.value!r} stands twice, in lines {first[name]} and {line}; leave one out")
            first[name] = line
