"""The examples of the page on mapping run as they stand."""

import pytest

from tests.docs.examples import examples, run_example

EXAMPLES = examples("mapping.md")


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example(example, "mapping.md")
