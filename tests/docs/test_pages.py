"""The documentation says what the code does."""

import importlib.util
import inspect
import re
import sys
from pathlib import Path

from lit_wsl.cli.commands import COMMANDS
from lit_wsl.cli.main import TRAINER_COMMANDS
from lit_wsl.merging.method import all_methods
from tests.docs.blocks import pages

ROOT = Path(__file__).parents[2]


def hooks():
    """The hooks of the build, which import what lies beside them, as mkdocs lets them."""
    if str(ROOT / "docs") not in sys.path:
        sys.path.append(str(ROOT / "docs"))
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_method_page_lists_every_registered_method_with_its_defaults_and_first_sentence():
    page = hooks().on_page_markdown((ROOT / "docs/methods.md").read_text())
    rows = [line for line in page.splitlines() if line.startswith("|")]
    for name, cls in all_methods().items():
        (row,) = [line for line in rows if f"`{name}`" in line.split("|")[1]]
        for parameter, value in cls().params().items():
            assert f"`{parameter}` = {value}" in row
        assert (inspect.getdoc(cls) or "").splitlines()[0] in row


def test_start_page_is_readme_with_working_links():
    page = hooks().on_page_markdown((ROOT / "docs/index.md").read_text())
    assert "make demo" in page
    for target in re.findall(r"\]\(([^)]+\.md)\)", page):
        assert (ROOT / "docs" / target).exists(), target


def test_commands_in_the_pages_exist():
    known = {*COMMANDS, *TRAINER_COMMANDS}
    for page in pages():
        for words in re.findall(r"^lit-wsl ([a-z-]+(?: [a-z-]+)?)", page.read_text(), re.MULTILINE):
            assert words in known or words.split()[0] in known, (page.name, words)
