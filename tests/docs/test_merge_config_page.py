"""The page on merge configurations: its tables follow the code."""

import re
from dataclasses import fields

from lit_wsl.merging.config import MergeConfig
from lit_wsl.merging.migration import FORMER_FORMS
from tests.docs.examples import DOCS
from tests.docs.test_pages import hooks

PAGE = "merge_config.md"


def page():
    return hooks().on_page_markdown((DOCS / PAGE).read_text())


def test_every_field_has_a_row_with_its_default_and_text():
    rows = {line.split("`")[1]: line for line in page().splitlines() if line.startswith("| `")}
    for one in fields(MergeConfig):
        cells = re.split(r"(?<!\\\\)\|", rows[one.name])
        assert len(cells) == 6, rows[one.name]
        assert len(cells[4]) > 20, one.name
    assert "| `constraint_nonnegative` | bool | `true` |" in page()
    assert "| `merge_mode` | `common`, `strict`, `union` | `common` |" in page()
    assert "| `adapters` | list of text |  |" in page()


def test_every_former_form_has_a_row():
    """A6.20-A6.31"""
    for old, new in FORMER_FORMS.items():
        assert f"| {old} | {new} |" in page()


def test_the_shipped_configurations_are_named():
    """A6.32"""
    shipped = {path.stem for path in (DOCS.parent / "configs/merge").glob("merge_*.yaml")}
    assert set(re.findall(r"^\| `(merge_(?:weighted|dare|ties)\w*)` \|", page(), re.MULTILINE)) == shipped
