"""The Python examples of a page."""

from tests.docs.blocks import DOCS as DOCS
from tests.docs.blocks import blocks_of


def examples(page):
    """The Python blocks of a page, in order."""
    return [block.text for block in blocks_of(DOCS / page) if block.language == "python"]


def run_example(example, page):
    """Run one as a program of its own."""
    exec(compile(example, page, "exec"), {"__name__": "example"})
