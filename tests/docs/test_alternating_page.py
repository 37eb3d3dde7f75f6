"""The page on attention between modalities names what the code has."""

from lit_wsl.models.alternating import ALIASES, VARIANTS
from lit_wsl.models.alternating.config import SCHEDULE
from tests.docs.examples import DOCS

PAGE = "alternating.md"


def test_every_name_is_told():
    page = (DOCS / PAGE).read_text()
    for name in (*VARIANTS, *ALIASES, *SCHEDULE):
        assert f"`{name}`" in page, name
