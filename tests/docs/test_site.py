"""The site builds without a warning, has every page in its navigation, and asks no other server for anything."""

import re
import subprocess
import sys

import pytest

from tests.docs.blocks import DOCS, ROOT

pytest.importorskip("mkdocs")
pytest.importorskip("material")

_LOADS = re.compile(r"<(?:link|script|img|iframe|source|object)\b[^>]*?\b(?:src|href|data)=[\"']?(?:https?:)?//[^>]*>")
_STYLE_LOADS = re.compile(r"(?:@import\s+|url\()[\"']?(?:https?:)?//[^)\"';]*")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    return folder


def test_no_page_loads_anything_from_elsewhere(site):
    found = [(page.name, tag) for page in site.rglob("*.html") for tag in _LOADS.findall(page.read_text())]
    assert not found
    assert len(list(site.rglob("*.html"))) > len(list(DOCS.glob("*.md")))


def test_no_style_loads_anything_from_elsewhere(site):
    styles = [*site.rglob("*.css"), *site.rglob("*.html")]
    assert not [(style.name, load) for style in styles for load in _STYLE_LOADS.findall(style.read_text())]


def test_scripts_that_load_from_elsewhere_have_nothing_to_load_for(site):
    """The theme's script fetches a drawing library for pages with such drawings only."""
    assert not [page for page in site.rglob("*.html") if 'class="mermaid"' in page.read_text()]


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in DOCS.rglob("*.md"):
        assert f": {page.relative_to(DOCS).as_posix()}\n" in navigation, page
