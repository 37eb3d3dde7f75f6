"""What one evaluated merge leaves behind, and that none of it is ever lost."""

import json
import math
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

from lit_wsl.errors import CheckpointError
from lit_wsl.runs import (
    RunBundle,
    RunLayout,
    claim_run,
    compare_runs,
    follow,
    list_runs,
    read_index,
    read_run,
    record_run,
    write_bundle,
)
from lit_wsl.runs.registry import read_registry
from lit_wsl.runs.strict import plain, read_json, write_json
from tests.runs.build import NOON, bundle, record, result

OF = ("ties", ["intent", "tweets"])


def strict(path):
    return json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.fixture
def layout(tmp_path):
    return RunLayout(tmp_path / "artifacts")


def test_a_run_bundle_has_the_files_of_the_requirement(layout):
    """A9.8"""
    run = record(layout, metadata={"merge_mode": "common"}, inputs={"intent": "abc"})
    assert run == layout.run_dir(*OF, "run_20250131_120000")
    names = ["config.yaml", "eval_results_test.json", "merge_metadata.json", "metrics.json", "summary.json"]
    assert sorted(path.name for path in run.iterdir()) == names
    summary = strict(run / "summary.json")
    expected = {
        "timestamp": "2025-01-31T12:00:00+00:00",
        "merge_method": "ties",
        "params": {"k": 20, "lambda": 1.0},
        "source_tasks": ["intent", "tweets"],
        "evaluated_tasks": ["intent", "tweets"],
        "split": "test",
        "eval_tag": None,
        "results_path": str(run / "eval_results_test.json"),
    }
    assert {name: summary[name] for name in expected} == expected
    assert summary["merge_tag"].startswith("merged_ties_intent_tweets_lambda1_")
    metadata = strict(run / "merge_metadata.json")
    assert metadata["params"] == metadata["method_params"] == {"k": 20, "lambda": 1.0}
    assert (metadata["merge_mode"], metadata["inputs"], metadata["seed"]) == ("common", {"intent": "abc"}, 0)
    assert {"lit_wsl", "torch", "python"} <= set(metadata["versions"])
    results = strict(run / "eval_results_test.json")
    assert (results["score"], results["score_details"]["mean_interference_delta"]) == (0.2, 0.4)
    assert results["results"]["intent"]["metrics"]["accuracy"] == 0.5
    assert strict(run / "metrics.json")["test/intent/accuracy"] == 0.5
    assert yaml.safe_load((run / "config.yaml").read_text())["method"] == "ties"


def test_what_an_evaluation_writes_outside_of_its_bundle(layout):
    """A9.9, A9.11, A9.12, A9.13"""
    run = record(layout)
    tag = strict(run / "summary.json")["merge_tag"]
    unified = layout.eval_file(*OF, "test", tag)
    assert strict(unified) == strict(run / "eval_results_test.json")
    metrics = layout.per_task_metrics(*OF, "test", "intent", tag)
    assert strict(metrics) == plain(result(0.2))
    link = layout.root / f"intent/metrics/eval/test/merged/tweets/{tag}/metrics.json"
    assert link.is_symlink()
    assert follow(link) == metrics
    (entry,) = read_index(layout.index_file(*OF))
    assert list(entry)[:11] == [
        *("timestamp", "merge_tag", "split", "eval_tag", "results_path", "run_path"),
        *("method", "params", "lambda", "source_tasks", "evaluated_tasks"),
    ]
    assert (entry["results_path"], entry["run_path"], entry["lambda"]) == (str(unified), str(run), 1.0)
    assert (entry["method"], entry["source_tasks"]) == ("ties", ["intent", "tweets"])


def test_a_subset_never_takes_the_place_of_the_whole_split(layout):
    """A9.8, A9.10"""
    whole = record(layout)
    some = record(layout, (0.9, 0.9), key="test__subset_0123456789")
    assert (some / "eval_results_test__subset_0123456789.json").is_file()
    tag = strict(whole / "summary.json")["merge_tag"]
    assert tag == strict(some / "summary.json")["merge_tag"], "one merge"
    assert strict(some / "summary.json")["eval_tag"] == "subset_0123456789"
    assert strict(layout.eval_file(*OF, "test", tag))["score"] == 0.2
    assert strict(layout.eval_file(*OF, "test", tag, "subset_0123456789"))["score"] == 0.9
    folder = layout.eval_dir(*OF, "test") / "per_task/intent"
    names = {f"intent_{tag}_metrics.json", f"intent_{tag}_metrics__subset_0123456789.json"}
    assert {path.name for path in folder.iterdir()} == names
    links = layout.root / "intent/metrics/eval/test/merged/tweets"
    assert {path.name for path in links.iterdir()} == {tag, f"{tag}__subset_0123456789"}
    assert [entry["eval_tag"] for entry in read_index(layout.index_file(*OF))] == [None, "subset_0123456789"]


def test_several_splits_in_one_bundle(layout):
    """A9.8"""
    results = {"validation": {"intent": result(0.5)}, "test": {"intent": result(0.4)}}
    run = record_run(layout, RunBundle("ties", ["intent"], results=results))
    assert {path.name for path in run.glob("eval*")} == {"eval_results_test.json", "eval_results_validation.json"}
    assert strict(run / "summary.json")["split"] == "validation", "the first"
    entries = read_index(layout.index_file("ties", ["intent"]))
    assert [(entry["split"], entry["scores"]["min_interference_delta"]) for entry in entries] == [
        ("validation", 0.5),
        ("test", 0.4),
    ]


def test_everything_is_strict_json(layout):
    """A9.8, A11.5"""
    bad = {"nan": math.nan, "inf": -math.inf, "path": Path("x"), "tensor": torch.tensor([1.0, math.nan])}
    odd = {**bad, "tuple": (1, 2), "set": {2, 1}, "when": NOON, 3: "key", "scalar": torch.tensor(2), "object": object}
    run = record_run(layout, bundle((math.nan, 0.1), metadata=odd, params=bad))
    for path in layout.root.rglob("*.json"):
        strict(path)
    metadata = strict(run / "merge_metadata.json")
    assert (metadata["nan"], metadata["inf"], metadata["tensor"]) == (None, None, [1.0, None])
    assert (metadata["tuple"], metadata["set"], metadata["3"], metadata["scalar"]) == ([1, 2], [1, 2], "key", 2)


def test_weights_that_lie_in_the_run_already_stay(layout):
    """A9.6, A9.8"""
    run = claim_run(layout.runs_dir(*OF))
    (run / "adapter_model.safetensors").write_bytes(b"weights")
    write_json(run / "merge_metadata.json", {"retained_energy": {"a": 1.0}, "merge_method": "old"})
    assert record(layout, directory=run) == run
    assert (run / "adapter_model.safetensors").read_bytes() == b"weights"
    metadata = strict(run / "merge_metadata.json")
    assert (metadata["retained_energy"], metadata["merge_method"]) == ({"a": 1.0}, "ties")
    assert read_registry(layout.home(*OF))[0]["run_id"] == run.name


def test_a_second_evaluation_of_a_run_keeps_the_first(layout):
    """A9.7"""
    run = record(layout, (0.1, 0.2))
    again = record(layout, (0.1, 0.2), directory=run)
    assert again == run
    assert not list(run.glob("earlier*")), "the same figures once"
    record(layout, (0.3, 0.4), directory=run)
    record(layout, (0.5, 0.6), directory=run)
    aside = [strict(run / f"earlier_{n}_eval_results_test.json")["score"] for n in (1, 2)]
    assert [*aside, strict(run / "eval_results_test.json")["score"]] == [0.1, 0.3, 0.5]
    assert len(read_index(layout.index_file(*OF))) == 4


def test_evaluating_a_run_on_other_rows_adds_to_it(layout):
    """A9.7, A9.8"""
    best = record(layout, (0.8, 0.8))
    record(layout, (0.3, 0.3), params={"k": 1}, minutes=1)
    before = {name: (best / name).read_text() for name in ("merge_metadata.json", "config.yaml")}
    added = {"timestamp": NOON.replace(year=2026), "config": {"other": 1}, "metadata": {"merge_mode": "other"}}
    record(layout, (0.1, 0.1), key="validation", directory=best, **added, params={"k": 20, "lambda": 1.0})
    summary = strict(best / "summary.json")
    assert (summary["split"], summary["timestamp"]) == ("test", "2025-01-31T12:00:00+00:00")
    assert {score["split"]: score["lowest"] for score in summary["scores"]} == {"test": 0.8, "validation": 0.1}
    metadata = strict(best / "merge_metadata.json")
    assert {**metadata, **json.loads(before["merge_metadata.json"])} == metadata
    assert (best / "config.yaml").read_text() == before["config.yaml"]
    metrics = strict(best / "metrics.json")
    assert (metrics["test/min_interference_delta"], metrics["validation/min_interference_delta"]) == (0.8, 0.1)
    home = layout.home(*OF)
    assert follow(home / "best") == best
    assert follow(home / "latest") != best, "evaluated later, but made before"
    last = read_index(layout.index_file(*OF))[-1]
    assert (last["split"], last["timestamp"]) == ("validation", "2026-01-31T12:00:00+00:00")


def test_runs_of_an_output_of_its_own(tmp_path, layout):
    """A9.3"""
    learned = {"optimizer": {"type": "adamerging", "params": {"variant": "task_wise"}}}
    run = record(layout, output=tmp_path / "X", metadata=learned)
    assert run == tmp_path / "X/runs/run_20250131_120000"
    assert follow(tmp_path / "X/best") == run
    assert record(layout, metadata=learned).name == "run_adamerging_task_wise_20250131_120000"


def test_registry_marks_the_highest_score_and_deletes_nothing(layout):
    """A9.7"""
    scores = [(0.2, 0.3), (0.7, 0.8), (0.5, 0.9), (0.1, 0.1)]
    runs = [record(layout, deltas, params={"k": i}, minutes=i) for i, deltas in enumerate(scores)]
    home = layout.home(*OF)
    assert all((run / "summary.json").is_file() for run in runs), "no run was deleted"
    entries = read_registry(home)
    assert [entry["run_id"] for entry in entries] == [run.name for run in runs]
    assert [entry["is_best"] for entry in entries] == [False, True, False, False], "not the oldest"
    assert [entry["is_latest"] for entry in entries] == [False, False, False, True]
    assert (follow(home / "best"), follow(home / "latest")) == (runs[1], runs[3])
    known = {
        "run_id",
        "timestamp",
        "config_hash",
        "metrics",
        "is_best",
        "is_latest",
        "hyperparameters_summary",
        "status",
    }
    assert known <= set(entries[0])
    assert len(entries[0]["config_hash"]) == 12
    assert entries[1]["metrics"]["test/min_interference_delta"] == 0.7


def test_a_run_with_a_failed_task_is_never_the_best(layout):
    """A9.7"""
    good = record(layout, (0.1, 0.1))
    failed = record(layout, (0.9, "out of memory"), minutes=1)
    home = layout.home(*OF)
    assert (follow(home / "best"), follow(home / "latest")) == (good, failed)
    assert [entry["status"] for entry in read_registry(home)] == ["completed", "failed"]


def test_without_a_score_nothing_is_the_best(layout):
    """A9.7"""
    run = write_bundle(layout, RunBundle("ties", ["intent", "tweets"]))
    home = layout.home(*OF)
    assert not (home / "best").exists()
    assert follow(home / "latest") == run


def test_many_writers_at_once_lose_nothing(layout):
    """A9.4, A9.7, A9.11"""
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda i: record(layout, (i / 100, 0.5), params={"k": i % 3}), range(24)))
    assert len(set(runs)) == 24
    home = layout.home(*OF)
    assert {entry["run_id"] for entry in read_registry(home)} == {run.name for run in runs}
    assert len(read_index(layout.index_file(*OF))) == 24
    assert follow(home / "best") == runs[23]
    assert not [path for path in layout.root.rglob("*") if path.suffix in (".lock", ".partial")]


@pytest.mark.parametrize("which", ["index", "registry"])
def test_a_damaged_record_stops_everything_before_anything_is_written(layout, which):
    """A9.11"""
    home = layout.home(*OF)
    damaged = layout.index_file(*OF) if which == "index" else home / "runs_registry.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    with pytest.raises(CheckpointError, match="was left as it is"):
        record(layout)
    assert [path for path in layout.root.rglob("*") if path.is_file()] == [damaged]
    assert damaged.read_text() == "{"


def test_a_damaged_file_says_where_and_what_to_do(tmp_path):
    (tmp_path / "a.json").write_text("[1")
    with pytest.raises(CheckpointError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")
    with pytest.raises(CheckpointError, match=r"b\.json cannot be read \(No such file"):
        read_json(tmp_path / "b.json")


_WRITER = """
import sys
from tests.runs.build import record
from lit_wsl.runs import RunLayout
print("ready", flush=True)
for number in range(10_000):
    record(RunLayout(sys.argv[1]), (0.1, 0.2), params={"k": number % 4})
"""


def test_a_killed_writer_leaves_every_file_whole(layout):
    """A9.7, A9.11"""
    for wait in (0.1, 0.17, 0.29):
        command = [sys.executable, "-c", _WRITER, str(layout.root)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        assert writer.stdout.readline() == "ready\n"
        time.sleep(wait)
        writer.kill()
        writer.wait(60)
        writer.stdout.close()
        for path in layout.root.rglob("*.json"):
            strict(path)
    before = {run.run_id: run.status for run in list_runs(layout)}
    assert "completed" in before.values()
    assert not {status for status in before.values() if status not in ("completed", "unfinished")}
    run = record(layout, (0.9, 0.9), minutes=1_000_000)
    home = layout.home(*OF)
    assert follow(home / "best") == follow(home / "latest") == run
    assert before.items() <= {run.run_id: run.status for run in list_runs(layout)}.items()


def test_results_are_never_away_while_others_take_their_place(layout, monkeypatch):
    """A9.8: killed between the copy that is set aside and the new results, a run still has the earlier ones."""
    run = record(layout)
    before = strict(run / "eval_results_test.json")

    def killed(path, value):
        if path.name == "eval_results_test.json":
            raise KeyboardInterrupt
        write_json(path, value)

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("lit_wsl.runs.bundle.write_json", killed)
            write_bundle(layout, bundle((0.3, 0.7), directory=run))
        assert strict(run / "eval_results_test.json") == before
    assert [path.name for path in run.glob("earlier_*")] == ["earlier_1_eval_results_test.json"]


def test_runs_are_compared_on_test_rows_then_on_validation_rows(layout):
    runs = []
    for minutes in range(2):
        run = record(layout, key="train", minutes=minutes)
        for key in ("validation__subset_1", "validation"):
            write_bundle(layout, bundle(key=key, directory=run))
        runs.append(read_run(run))
    assert compare_runs(runs).key == "validation"
    assert compare_runs(runs, "train").key == "train"
