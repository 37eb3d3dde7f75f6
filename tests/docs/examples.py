"""The Python examples of a page."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def examples(page):
    """The Python blocks of a page, in order."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def run_example(example, page):
    """Run one as a program of its own."""
    exec(compile(example, page, "exec"), {"__name__": "example"})
