"""Which run is meant."""

import json
import re
import shutil

import pytest

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.runs import (
    RunLayout,
    best_run,
    infer_merged_source_tasks,
    list_runs,
    load_merge_metadata,
    resolve_adapter,
    resolve_run,
)
from lit_wsl.runs.strict import write_json
from tests.runs.build import record, result

OF = ("ties", ["intent", "tweets"])


@pytest.fixture
def layout(tmp_path):
    return RunLayout(tmp_path / "artifacts")


@pytest.fixture
def runs(layout):
    """Three runs of TIES, the second best; one of DARE that is better and older."""
    made = [record(layout, (d, d), params={"lambda": d}, minutes=10 + i) for i, d in enumerate((0.2, 0.6, 0.4))]
    return [*made, record(layout, (0.8, 0.8), method="dare", params={})]


def test_by_path(layout, runs, monkeypatch):
    """A9.14"""
    home = layout.home(*OF)
    assert resolve_run(layout, runs[0]) == runs[0]
    assert resolve_run(layout, home) == runs[1], "the best of a folder"
    assert resolve_run(layout, home / "latest") == resolve_run(layout, "ties/intent_tweets/latest") == runs[2]
    assert resolve_run(layout, home / "best") == resolve_run(layout, "ties/intent_tweets") == runs[1]
    assert resolve_run(layout, f"ties/intent_tweets/{runs[0].name}") == runs[0]
    monkeypatch.chdir(home)
    assert resolve_run(layout, "best") == runs[1]


def test_by_id_by_method_and_by_tasks(layout, runs):
    """A9.14"""
    assert resolve_run(layout) == resolve_run(layout, "best") == runs[3], "of all"
    assert resolve_run(layout, "latest") == runs[2]
    assert resolve_run(layout, method="ties") == runs[1]
    for order in (["intent", "tweets"], ["tweets", "intent"]):
        assert resolve_run(layout, method="ties", tasks=order, run="latest") == runs[2]
    assert resolve_run(layout, runs[0].name) == runs[0]
    assert resolve_run(layout, "run_20250131_1211") == runs[1], "a beginning that only one has"
    assert resolve_run(layout, method="ties", lam=0.4) == runs[2]


def test_folders_of_the_reference_in_any_order_and_with_lambda(layout):
    """A9.14"""
    for folder in ("tweets_intent", "tweets_intent_lambda0p5"):
        run = layout.root / "merged/ties" / folder / "runs/run_20240101_000000"
        write_json(run / "summary.json", {"timestamp": "2024", "params": {}})
    plain = layout.root / "merged/ties/tweets_intent/runs/run_20240101_000000"
    assert resolve_run(layout, "ties/tweets_intent", method="ties") == plain
    found = resolve_run(layout, method="ties", tasks=["intent", "tweets"], lam=0.5)
    assert found.parent.parent.name == "tweets_intent_lambda0p5"


def test_a_single_run_without_scores(layout):
    """A9.14"""
    run = layout.run_dir(*OF, "run_1")
    write_json(run / "summary.json", {})
    assert resolve_run(layout, method="ties") == run
    with pytest.raises(CheckpointError, match=r"has a score, so none is the best\. Candidates: .*run_1"):
        resolve_run(layout, "best")


def test_errors_list_the_candidates(layout, runs):
    """A9.14"""
    with pytest.raises(
        CheckpointError, match=r"no run 'run_2024' of ties in .*merged\. Candidates: .*run_20250131_1212"
    ):
        resolve_run(layout, "run_2024", method="ties")
    with pytest.raises(CheckpointError, match=r"3 runs are called 'run_20250131_121'; give the path of one"):
        resolve_run(layout, "run_20250131_121")
    with pytest.raises(CheckpointError, match=r"no runs of slerp of a, b with lambda 0\.5 in"):
        resolve_run(layout, method="slerp", tasks=["a", "b"], lam=0.5)
    with pytest.raises(CheckpointError, match=r"x/y is no run\. Candidates"):
        resolve_run(layout, "x/y")
    with pytest.raises(CheckpointError, match="There are no runs in"):
        resolve_run(RunLayout(layout.root / "nothing"))


def test_scores_are_compared_only_where_they_can_be(layout):
    """A9.7"""
    whole = record(layout, (0.3, 0.3))
    record(layout, (0.9, 0.9), key="test__subset_1", minutes=1)
    record(layout, (0.8, 0.8), key="validation", minutes=2)
    record(layout, (0.95,), tasks=("intent",), minutes=3)
    found = list_runs(layout)
    assert best_run(found)[0].path == whole, "most tasks, the whole split, test rows"
    assert best_run(found, "validation")[1].lowest == 0.8
    assert best_run(found, "test", "subset_1")[1].lowest == 0.9
    assert best_run(found, "train") is None


def test_ties_are_broken_by_the_mean_then_by_age(layout):
    """A9.7, A11.4"""
    record(layout, (0.3, 0.4))
    better = record(layout, (0.3, 0.5), minutes=1)
    record(layout, (0.3, 0.5), minutes=2)
    assert best_run(list_runs(layout))[0].path == better


def test_unfinished_and_damaged_runs_are_listed_and_never_chosen(layout, runs):
    (runs[1] / "summary.json").unlink()
    (runs[2] / "summary.json").write_text("{")
    (layout.runs_dir(*OF) / "run_claimed").mkdir()
    states = {run.run_id: run.status.split(":")[0] for run in list_runs(layout, home=layout.home(*OF))}
    assert states[runs[0].name] == "completed"
    assert states[runs[1].name] == states["run_claimed"] == "unfinished"
    assert states[runs[2].name] == "damaged"
    assert resolve_run(layout, method="ties") == resolve_run(layout, "latest", method="ties") == runs[0]


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("params", [None], "damaged: .*parameters are"),
        ("params", "x", "damaged: .*parameters are"),
        ("source_tasks", [None, 3], "completed"),
        ("source_tasks", {"a": 1}, "completed"),
    ],
)
def test_fields_of_another_type(layout, field, value, status):
    path = record(layout)
    summary = json.loads((path / "summary.json").read_text())
    write_json(path / "summary.json", {**summary, field: value})
    (run,) = list_runs(layout)
    assert re.match(status, run.status)
    assert all(isinstance(task, str) for task in run.source_tasks)


def test_a_run_that_somebody_deleted_is_no_longer_the_best(layout, runs):
    """A9.7"""
    shutil.rmtree(runs[1])
    assert resolve_run(layout, layout.home(*OF)) == runs[2]
    record(layout, (0.1, 0.1), minutes=30)
    assert (layout.home(*OF) / "best").resolve() == runs[2]


def test_metadata_and_source_tasks(layout, tmp_path):
    """A9.15"""
    run = record(layout)
    assert load_merge_metadata(run)["merge_method"] == "ties"
    assert load_merge_metadata(run / "merge_metadata.json") == load_merge_metadata(run)
    assert load_merge_metadata(tmp_path) == load_merge_metadata(tmp_path / "nothing") == {}
    assert infer_merged_source_tasks(run) == ["intent", "tweets"]
    write_json(
        tmp_path / "adapters/merge_metadata.json", {"source_adapters": [{"name": "x", "task": "b"}, {"name": "a"}]}
    )
    assert infer_merged_source_tasks(tmp_path / "adapters") == ["b", "a"]
    assert infer_merged_source_tasks("artifacts/merged/ties/a_b/runs/run_1") == ["a", "b"]
    assert infer_merged_source_tasks(tmp_path) == []
    (tmp_path / "merge_metadata.json").write_text("[]")
    with pytest.raises(CheckpointError, match="should hold a mapping"):
        load_merge_metadata(tmp_path)


def test_adapters_by_directory_and_by_task(layout, tmp_path, monkeypatch):
    """A9.2"""
    home = layout.root / "asr/adapters/lora"
    for name in ("run_1", "run_2"):
        (home / "runs" / name).mkdir(parents=True)
    found = resolve_adapter(home / "runs/run_1", layout=layout)
    assert (found.path, found.task, found.run_id) == (home / "runs/run_1", "asr", None)
    monkeypatch.chdir(tmp_path)
    assert resolve_adapter("artifacts/asr/adapters/lora/runs/run_1").task == "asr", "relative to where we are"
    (home / "best").symlink_to("runs/run_1")
    assert resolve_adapter("asr", {"asr": home}).path == home / "runs/run_1"
    entry = {"run_id": "run_2", "is_best": True, "config_hash": "abc", "timestamp": "2025"}
    metrics = {"wer": 0.1, "private__x": 1.0, "text": "no"}
    write_json(home / "runs_registry.json", {"runs": [{"run_id": "run_1"}, {**entry, "metrics": metrics}]})
    found = resolve_adapter("asr", {"asr": home})
    assert (found.path, found.task, found.run_id) == (home / "runs/run_2", "asr", "run_2"), "the registry counts first"
    assert (found.metrics, found.config_hash, found.timestamp) == ({"wer": 0.1}, "abc", "2025")
    assert resolve_adapter(home / "runs/run_2").metrics == {"wer": 0.1}
    with pytest.raises(
        ConfigError, match=r"'intend' is neither a directory nor a task; give .* Did you mean 'intent'\?"
    ):
        resolve_adapter("intend", {"intent": home})
    with pytest.raises(ConfigError, match="which does not exist; train it first"):
        resolve_adapter("kws", {"kws": tmp_path / "gone"})


def test_a_wrong_merge_is_refused_before_anything_is_read_or_written(tmp_path):
    """A9.1"""
    from lit_wsl.errors import LitWslError
    from lit_wsl.merging import merge

    (tmp_path / "adapter").mkdir()
    for wrong in ({"method": "tiess"}, {"method": "ties", "method_params": {"k": 200}}):
        with pytest.raises(LitWslError):
            merge(adapters=[str(tmp_path / "adapter")] * 2, output=str(tmp_path / "out"), **wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_results_of_the_reference_are_read(layout):
    """A9.8"""
    run = layout.run_dir(*OF, "run_1")
    write_json(run / "summary.json", {"timestamp": "2024", "merge_method": "ties", "params": {"lambda": 1}})
    flat = {"wer": 0.3, "interference_delta": 0.4, "interference_delta_meta": {"metric": "wer"}}
    write_json(run / "eval_results_test.json", {"asr": flat, "intent": result(0.6)})
    (found,) = list_runs(layout)
    assert (found.scores[0].lowest, found.scores[0].mean) == (0.4, 0.5)
