"""The table of the page on learning is that of the code."""

from dataclasses import fields

from lit_wsl.learning.params import PARAMS, read_params
from lit_wsl.merging.settings import LEARNERS, OLD_OPTIMIZER_PARAMS
from tests.docs.examples import DOCS
from tests.docs.test_pages import hooks

PAGE = "learning.md"


def test_the_table_has_every_parameter_with_its_defaults():
    page = hooks().on_page_markdown((DOCS / PAGE).read_text())
    for kind in LEARNERS:
        assert f"`{kind}`" in page
        params = read_params(kind, {})
        for name in (one.name for one in fields(params)):
            row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
            assert len(row.split(" | ")) == len(PARAMS) + 2, "a default for each learner, and what it is"
            assert row.split(" | ")[-1].strip(" |"), name
    for old in OLD_OPTIMIZER_PARAMS:
        assert f"`{old}`" in page
