"""The examples of the page on comparing run as they stand."""

import pytest

from tests.docs.examples import examples, run_example

EXAMPLES = examples("comparing.md")


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example(example, "comparing.md")
