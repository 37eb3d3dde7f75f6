"""The fenced blocks of a page, with what the page says about how to run them."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(
    r"(?:^[ ]*<!-- *(?P<mark>[^>]*?) *-->\n\s*)?"
    r"^(?P<indent>[ ]*)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """One fenced block.

    A comment in front of the fence says what is special about it: ``not run: REASON``, ``read as: KIND`` for a
    configuration that no command of the page takes, ``prints`` for what the block before it prints.
    """

    page: str
    line: int
    language: str
    title: str | None
    text: str
    mark: str

    @property
    def place(self) -> str:
        """Page and line, as editors read it."""
        return f"{self.page}:{self.line}"

    def marked(self, word: str) -> str | None:
        """What follows ``WORD:`` in the mark; None without it."""
        name, _, rest = self.mark.partition(":")
        return rest.strip() if name.strip() == word else None


def pages() -> list[Path]:
    """README and every page of the documentation."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def page_name(page: Path) -> str:
    """Path within the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    content = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(content):
        info = match["info"].strip()
        title = _TITLE.search(info)
        line = content.count("\n", 0, match.start("info")) + 1
        language = info.split()[0] if info else ""
        text = textwrap.dedent(match["text"])
        found.append(Block(page_name(page), line, language, title and title[1], text, match["mark"] or ""))
    return found
