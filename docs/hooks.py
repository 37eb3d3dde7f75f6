"""Fills pages from their one source at every build: the start page from README, the method table from the registry."""

import inspect
import re
from pathlib import Path
from typing import Any

from lit_wsl.merging.method import all_methods

METHODS_MARK = "<!-- methods -->"
README_MARK = "<!-- readme -->"
README = Path(__file__).parents[1] / "README.md"


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


def readme() -> str:
    """README with its links made relative to the documentation."""
    text = README.read_text(encoding="utf-8")
    return re.sub(r"\[([^]]+)\]\((?!docs/|https?:)[^)]+\)", r"`\1`", text).replace("(docs/", "(")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    if METHODS_MARK in markdown:
        return markdown.replace(METHODS_MARK, method_rows())
    return markdown.replace(README_MARK, readme()) if README_MARK in markdown else markdown
