"""The page on merge configurations: its tables follow the code, its examples load and run."""

import re
from dataclasses import fields

import yaml

from lit_wsl.merging.config import MergeConfig, load_merge_config
from lit_wsl.merging.migration import FORMER_FORMS
from tests.docs.examples import DOCS, examples, run_example
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


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [example] = examples(PAGE)
    run_example(example, PAGE)
    assert capsys.readouterr().out == "['artifacts/demo/adapters/intent', 'artifacts/demo/adapters/sentiment']\n"


def test_the_configuration_of_the_page_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(DOCS.parent)
    [block] = re.findall(r"```yaml\n(.*?)```", page(), re.DOTALL)
    (tmp_path / "merge.yaml").write_text(block)
    config = load_merge_config(tmp_path / "merge.yaml")
    assert config.split == "validation"
    assert config.search == yaml.safe_load(block)["search"]
