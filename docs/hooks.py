"""Fills the method table of the documentation from the registry, at every build."""

import inspect
from typing import Any

from lit_wsl.merging.method import all_methods

MARK = "<!-- methods -->"


def method_rows() -> str:
    """Markdown table of every registered method, and a section of formula and source for each."""
    names: dict[type, list[str]] = {}
    for name, cls in all_methods().items():
        names.setdefault(cls, []).append(name)
    table = ["| method | parameters | what it does |", "|---|---|---|"]
    sections = []
    for cls, known in sorted(names.items(), key=lambda item: item[1][0]):
        doc = inspect.getdoc(cls) or ""
        params = ", ".join(f"`{name}` = {value}" for name, value in cls().params().items()) or "none"
        title = ", ".join(f"`{name}`" for name in known)
        table.append(f"| {title} | {params} | {doc.splitlines()[0]} |")
        sections.append(f"## {title}\n\n```text\n{doc}\n```\n")
    return "\n".join(table) + "\n\n" + "\n".join(sections)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return markdown.replace(MARK, method_rows()) if MARK in markdown else markdown
