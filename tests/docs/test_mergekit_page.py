"""The page on slices and mergekit: its table lists every method."""

from lit_wsl.merging.mergekit import IMPORTED
from tests.docs.examples import DOCS
from tests.docs.test_pages import hooks


def test_the_table_lists_every_method():
    page = hooks().on_page_markdown((DOCS / "mergekit.md").read_text())
    for name, method in IMPORTED.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"`{method.ours}`" in row
        assert method.differs in row
