"""The page on images and text: its example runs, its tables are those of the code."""

import json
import re

import yaml

from lit_wsl.training.llava.listing import STRATEGIES
from lit_wsl.training.llava.rows import LocatedRow, faults_of
from tests.docs.examples import DOCS, examples, run_example

PAGE = "image_text.md"


def test_the_example_runs_and_learns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for example in examples(PAGE):
        run_example(example, PAGE)
    shown = yaml.safe_load(capsys.readouterr().out.splitlines()[-1])
    assert {"train/loss", "val/loss", "val/token_accuracy", "val/exact_match"} <= set(shown)
    assert shown["val/token_accuracy"] > 0.5


def test_the_row_is_good_and_all_strategies_are_told(tmp_path):
    page = (DOCS / PAGE).read_text()
    [row] = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "7.png").touch()
    assert faults_of(LocatedRow(tmp_path / "a.jsonl", 1, json.loads(row), 1)) == []
    for name in STRATEGIES:
        assert re.search(rf"`{name}(:N)?`", page), name
