"""The reference lists every setting that a user writes and every public name, none without a word."""

import dataclasses
import inspect
import re
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints

import pytest
from docstring_parser import parse_from_object

import lit_wsl
from lit_wsl.cli.commands import COMMANDS
from lit_wsl.learning.params import PARAMS
from lit_wsl.merging.config import MergeConfig
from lit_wsl.sweep import settings as sweep_settings
from tests.docs.examples import DOCS
from tests.docs.test_pages import hooks

PAGE = "config_reference.md"


@pytest.fixture(scope="module")
def page():
    return hooks().on_page_markdown((DOCS / PAGE).read_text())


@pytest.fixture(scope="module")
def tables():
    hooks()
    import config_tables

    return config_tables


def parts(kind):
    """The classes that an annotation names."""
    if get_origin(kind) in (Union, UnionType, list, dict) or get_args(kind):
        return [cls for one in get_args(kind) for cls in parts(one)]
    return [kind] if inspect.isclass(kind) else []


def settings_below(cls):
    """The dataclasses among the arguments of a class, and among theirs."""
    below = set()
    for owner in cls.__mro__ if not dataclasses.is_dataclass(cls) else [cls]:
        made = owner if dataclasses.is_dataclass(owner) else owner.__dict__.get("__init__")
        for kind in get_type_hints(made).values() if made is not None else ():
            below |= {one for one in parts(kind) if dataclasses.is_dataclass(one) and "lit_wsl" in one.__module__}
    return below | {one for direct in below - {cls} for one in settings_below(direct)}


def test_every_mark_is_filled(page):
    assert "<!--" not in page


def test_every_class_of_a_training_has_a_section_and_its_arguments(page, tables):
    listed = [cls for classes in tables.trainer_classes().values() for cls in classes]
    assert {"BackboneInit", "ThroughputLogger", "SuperMerge", "TokenBlockData"} < {cls.__name__ for cls in listed}
    for cls in listed:
        section = page.split(f"#### {cls.__name__}\n")[1].split("\n####")[0]
        for name in inspect.signature(cls).parameters:
            assert name in ("args", "options", "kwargs") or f"| `{name}` |" in section, (cls, name)


def test_every_dataclass_that_a_user_writes_has_a_table(page, tables):
    roots = [MergeConfig, *PARAMS.values(), *(cls for found in tables.trainer_classes().values() for cls in found)]
    reached = {one for root in roots for one in settings_below(root)} - {MergeConfig}
    made_in_python = {"Baselines", "RunLayout"}  # arguments of `HeldOutSelection` that no file can give
    names = {one.__name__ for one in reached} - made_in_python
    assert {"LoraSpec", "ParameterRule", "SliceSource", "CoefficientSettings", "WeightSettings"} <= names
    assert names <= {path.rpartition(".")[2] for path in tables.LISTED}


def test_every_mapping_that_is_read_into_a_dataclass_has_a_table(tables):
    """Fields of a plain mapping name no class, so the code that reads them does."""
    read = set()
    for file in (DOCS.parent / "lit_wsl").rglob("*.py"):
        text = file.read_text()
        read |= set(re.findall(r"read_part\(([A-Z]\w+)", text)) | set(re.findall(r"\b([A-Z]\w+)\.read\(", text))
    assert {"OptimizerSpec", "HeldOutSettings", "SubsetSpec", "TaskSpec"} <= read
    assert read <= {path.rpartition(".")[2] for path in tables.LISTED}


def test_every_key_of_a_search_is_on_its_page():
    text = (DOCS / "sweeps.md").read_text()
    assert all(f"`{key}`" in text for key in sweep_settings._KEYS)


def test_every_command_has_a_section_with_its_options(page, tables):
    for name in COMMANDS:
        section = page.split(f"### lit-wsl {name}\n")[1].split("\n### ")[0]
        rows = tables.command_rows(name)
        assert all(f"| `{row[0]}` |" in section for row in rows) or "merge configuration" in section


def test_no_option_is_without_a_word(tables):
    rows = {path: tables.class_rows(tables.locate(path)) for path in tables.LISTED}
    rows |= {cls: tables.class_rows(cls) for found in tables.trainer_classes().values() for cls in found}
    rows |= {name: tables.command_rows(name) for name in COMMANDS} | {"gather": tables.gather_rows()}
    rows |= {MergeConfig: tables.class_rows(MergeConfig)}
    assert [(owner, row[0]) for owner, found in rows.items() for row in found if len(row[3]) < 8] == []


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        (list[str] | None, "list of text or null"),
        (dict[str, float], "mapping of float"),
        (int | float, "int or float"),
    ],
)
def test_types_are_told_in_the_words_of_yaml(tables, hint, told):
    assert tables.told_type(hint) == told


@pytest.fixture(scope="module")
def names():
    return hooks().on_page_markdown((DOCS / "api.md").read_text())


def test_every_public_name_has_a_level_a_signature_and_a_law(names):
    stable, provisional = names.split("## Stable")[1].split("## Provisional")
    for level, homes in ((stable, lit_wsl._STABLE), (provisional, lit_wsl._PROVISIONAL)):
        assert re.findall(r"^### (\w+)$", level, re.MULTILINE) == sorted(homes, key=str.lower)
        for name in homes:
            section = level.split(f"### {name}\n")[1].split("\n### ")[0]
            assert f"```python\n{name}(" in section
            assert re.search(r"^[A-Z].*\.$", section, re.MULTILINE), name


def test_levels_do_not_overlap_and_are_all_there_is():
    assert not lit_wsl._STABLE.keys() & lit_wsl._PROVISIONAL.keys()
    assert lit_wsl.__all__ == sorted({*lit_wsl._STABLE, *lit_wsl._PROVISIONAL})


def test_type_checkers_see_every_public_name():
    text = (DOCS.parent / "lit_wsl/__init__.py").read_text()
    seen = {name: home for home, name in re.findall(r"    from (lit_wsl[\w.]+) import \w+ as (\w+)\n", text)}
    assert seen == lit_wsl._HOME


@pytest.mark.parametrize("name", lit_wsl.__all__)
def test_every_public_name_documents_its_arguments_and_errors(name):
    found = getattr(lit_wsl, name)
    docs = [parse_from_object(one) for one in (found.__mro__[:-1] if inspect.isclass(found) else [found])]
    told = {one.arg_name.lstrip("*") for doc in docs for one in doc.params}
    lightnings = {"args", "kwargs"} if name == "UniversalCheckpoint" else set()
    assert set(inspect.signature(found).parameters) - told <= lightnings
    assert inspect.isclass(found) or docs[0].raises or name == "quiet"


def test_links_go_to_headings_of_the_page(page):
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in page.splitlines()}
    assert all(target in headings for target in re.findall(r"\]\(#([\w-]+)\)", page))
