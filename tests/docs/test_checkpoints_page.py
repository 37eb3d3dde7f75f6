"""The examples of the page on checkpoints run as they stand."""

import pytest

from tests.docs.examples import examples, run_example

EXAMPLES = [block for block in examples("checkpoints.md") if "export_checkpoint" not in block]


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example(example, "checkpoints.md")
