"""The example of the page on sweeps runs, and its configuration and tables are those of the code."""

import re

import pytest
import yaml

from lit_wsl.merging.config import MergeConfig
from lit_wsl.sweep.settings import _EARLIER, _KEYS, TYPES, read_search
from tests.docs.blocks import blocks_of
from tests.docs.examples import DOCS, examples, run_example

PAGE = "sweeps.md"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = examples(PAGE)
    run_example(example, PAGE)
    told = capsys.readouterr().out
    assert told.startswith("complete")
    assert float(re.search(r"'lambda': ([\d.]+)", told)[1]) == pytest.approx(0.5, abs=0.05)
    assert (tmp_path / "sweep_example/sweeps/study.db").is_file()


def test_the_configuration_is_read():
    (block,) = (one for one in blocks_of(DOCS / PAGE) if one.language == "yaml")
    content = {**yaml.safe_load(block.text), "output_format": "model"}
    config = MergeConfig(**{**content, "tasks": None})
    assert list(read_search(config.search).space.dimensions) == list(content["search"]["space"])


def test_every_type_and_key_is_told():
    page = (DOCS / PAGE).read_text()
    for name in (*TYPES, *(_KEYS - _EARLIER)):
        assert f"`{name}`" in page, name
