"""Fills pages from their one source at every build: the start page from README, the method table from the registry."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from api_table import api_sections
from config_tables import FIELDS_MARK, class_table, command_sections, trainer_sections
from docstring_parser import parse_from_object

import lit_wsl
from lit_wsl.learning.params import PARAMS
from lit_wsl.merging.mergekit import import_table
from lit_wsl.merging.method import all_methods
from lit_wsl.merging.migration import FORMER_FORMS
from lit_wsl.merging.parameters import params_of
from lit_wsl.merging.transform import all_transforms

METHODS_MARK = "<!-- methods -->"
TRANSFORMS_MARK = "<!-- transforms -->"
STABLE_MARK, PROVISIONAL_MARK = "<!-- stable names -->", "<!-- provisional names -->"
CONFIG_MARK = "<!-- merge configuration -->"
TRAINER_MARK = "<!-- classes of trainings -->"
COMMANDS_MARK = "<!-- commands -->"
FORMER_MARK = "<!-- former forms -->"
MERGEKIT_MARK = "<!-- mergekit -->"
OPTIMIZER_MARK = "<!-- optimizer parameters -->"
README_MARK = "<!-- readme -->"
README = Path(__file__).parents[1] / "README.md"


def registry_rows(registry: Mapping[str, type[Any]], kind: str) -> str:
    """Markdown table of everything registered, and a section of formula and source for each."""
    names: dict[type, list[str]] = {}
    for name, cls in registry.items():
        names.setdefault(cls, []).append(name)
    table = [f"| {kind} | parameters | what it does |", "|---|---|---|"]
    sections = []
    for cls, known in sorted(names.items(), key=lambda item: item[1][0]):
        doc = inspect.getdoc(cls) or ""
        params = ", ".join(f"`{name}` = {value}" for name, value in params_of(cls()).items()) or "none"
        title = ", ".join(f"`{name}`" for name in known)
        table.append(f"| {title} | {params} | {doc.splitlines()[0]} |")
        sections.append(f"## {title}\n\n```text\n{doc}\n```\n")
    return "\n".join(table) + "\n\n" + "\n".join(sections)


def optimizer_rows() -> str:
    """Markdown table of the parameters of every optimizer that learns, with its defaults."""
    known = {name: {one.name: one for one in fields(cls)} for name, cls in PARAMS.items()}
    texts: dict[str, str] = {}
    for cls in dict.fromkeys(base for kind in PARAMS.values() for base in kind.__mro__[-2::-1]):
        for one in parse_from_object(cls).params:
            texts.setdefault(one.arg_name, " ".join((one.description or "").split()).replace("``", "`"))
    table = [f"| parameter | {' | '.join(known)} | what it is |", "|---" * (len(known) + 2) + "|"]
    for name in dict.fromkeys(name for one in known.values() for name in one):
        shown = [_default(one[name]) if name in one else "" for one in known.values()]
        table.append(f"| `{name}` | {' | '.join(shown)} | {texts[name]} |")
    return "\n".join(table)


def _default(one: Any) -> str:
    value = list(one.default) if isinstance(one.default, tuple) else one.default
    return "none" if value is None else f"`{yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}`"


def former_rows() -> str:
    """Markdown table of what had another form."""
    rows = [f"| {old} | {new} |" for old, new in FORMER_FORMS.items()]
    return "\n".join(["| before | now |", "|---|---|", *rows])


def readme() -> str:
    """README with its links made relative to the documentation."""
    text = README.read_text(encoding="utf-8")
    return re.sub(r"\[([^]]+)\]\((?!docs/|https?:)[^)]+\)", r"`\1`", text).replace("(docs/", "(")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    if METHODS_MARK in markdown:
        rows = registry_rows(all_methods(), "method")
        return markdown.replace(METHODS_MARK, rows)
    if TRANSFORMS_MARK in markdown:
        return markdown.replace(TRANSFORMS_MARK, registry_rows(all_transforms(), "transform"))
    markdown = FIELDS_MARK.sub(lambda mark: class_table(mark[1]), markdown)
    if STABLE_MARK in markdown:
        markdown = markdown.replace(STABLE_MARK, api_sections(lit_wsl._STABLE))
        return markdown.replace(PROVISIONAL_MARK, api_sections(lit_wsl._PROVISIONAL))
    if TRAINER_MARK in markdown:
        return markdown.replace(TRAINER_MARK, trainer_sections()).replace(COMMANDS_MARK, command_sections())
    if CONFIG_MARK in markdown:
        fields_of_merge = class_table("lit_wsl.merging.config.MergeConfig")
        return markdown.replace(CONFIG_MARK, fields_of_merge).replace(FORMER_MARK, former_rows())
    if OPTIMIZER_MARK in markdown:
        return markdown.replace(OPTIMIZER_MARK, optimizer_rows())
    if MERGEKIT_MARK in markdown:
        return markdown.replace(MERGEKIT_MARK, import_table())
    return markdown.replace(README_MARK, readme()) if README_MARK in markdown else markdown
