"""Every code block of README and of the documentation runs, in order, as it stands; what cannot says why."""

import logging
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from tests.docs.blocks import ROOT, blocks_of, page_name, pages
from tests.docs.running import CODE, SHOWN, Run
from tests.docs.shell import Shell
from tests.docs.workspace import GIVEN, Store

LIMIT = 12
"""Blocks that may stay without a run; each says why."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """What the pages take as given; the demo's encoder and tasks are stand-ins."""
    with pytest.MonkeyPatch.context() as patch:
        made = tmp_path_factory.mktemp("given")
        patch.setenv("LIT_WSL_CACHE", str(made / "cache"))
        patch.syspath_prepend(made / "packages")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(made / "packages"), str(ROOT)]))
        yield Store(made)


@pytest.fixture
def _as_it_was():
    """What a page sets for the process is unset again."""
    level = logging.getLogger("lightning.pytorch").level
    path = list(sys.path)
    yield
    logging.getLogger("lightning.pytorch").setLevel(level)
    sys.path[:] = path
    sys.modules.pop("my_models", None)
    plt.close("all")
    torch.use_deterministic_algorithms(False)


def _with_code():
    return [page_name(page) for page in pages() if any(block.language in CODE for block in blocks_of(page))]


@pytest.mark.usefixtures("_as_it_was")
@pytest.mark.parametrize("page", _with_code())
def test_every_block_runs(page, store, tmp_path, monkeypatch):
    folder, scratch = tmp_path / "page", tmp_path / "shell"
    folder.mkdir()
    scratch.mkdir()
    store.lay_out(page, folder)
    monkeypatch.chdir(folder)
    with Shell(folder, scratch) as shell:
        run = Run(folder, shell)
        for block in blocks_of(ROOT / page):
            run.take(block)
    assert not run.written, f"no command takes the files of {[block.place for block in run.written.values()]}"


def test_every_block_has_a_language_that_is_run_or_shown():
    for page in pages():
        fences = sum(line.lstrip().startswith("```") for line in page.read_text().splitlines())
        assert fences == 2 * len(blocks_of(page)), f"{page}: a fence that is no block"
        for block in blocks_of(page):
            assert block.language in (*CODE, *SHOWN), block.place


def test_what_is_not_run_says_why():
    left = [block for page in pages() for block in blocks_of(page) if block.marked("not run") is not None]
    for block in left:
        print(block.place, block.marked("not run"))  # noqa: T201
        assert len(block.marked("not run").split()) >= 3, block.place
        assert block.language == "bash", f"{block.place}: only commands may stay without a run"
    assert len(left) <= LIMIT


def test_marks_are_known():
    words = ("not run", "read as")
    for block in (block for page in pages() for block in blocks_of(page)):
        mark = block.mark
        assert not mark or mark == "prints" or mark.partition(":")[0] in words, f"{block.place}: {mark!r}"


def test_only_pages_are_given_anything():
    assert {Path(ROOT / page) for page in GIVEN} <= set(pages())
