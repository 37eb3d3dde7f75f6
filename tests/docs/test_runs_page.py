"""The page on runs names every file of a run."""

from tests.docs.examples import DOCS, examples, run_example


def test_the_page_names_every_file_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = examples("runs.md")
    run_example(example, "runs.md")
    page = (DOCS / "runs.md").read_text()
    for path in tmp_path.glob("example/merged/*/*/runs/*/*"):
        assert path.name in page or path.name.startswith("eval_results_"), path.name
