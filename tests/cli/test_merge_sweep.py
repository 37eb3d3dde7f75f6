"""`lit-wsl merge-sweep`: row A12.3, and a whole sweep over two tiny tasks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lit_wsl.cli.main import run
from lit_wsl.sweep import run_sweep
from tests.cli.test_main import one_line
from tests.evaluation.pair import write_pair


@pytest.fixture(scope="module")
def pair(bert_dir, tmp_path_factory):
    """Two tasks over one vocabulary with an adapter each: `praise` and `noun`."""
    return write_pair(bert_dir, tmp_path_factory.mktemp("pair"))


@pytest.fixture
def config(bert_dir, pair, tmp_path, monkeypatch):
    """Writes a configuration file; its base values are a grid of three points."""
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        fields = {
            "adapters": list(pair.adapters),
            "base": str(bert_dir),
            "method": "ties",
            "method_params": {"k": 60},
            "tasks": pair.registry,
            "split": "validation",
            "constraint_nonnegative": False,
            "output_dir": "out",
            "search": {"type": "grid", "grid": {"lambda": [0.5, 1.0, 1.5]}},
        }
        merged = {**fields, **changes}
        Path("sweep.yaml").write_text(yaml.safe_dump({k: v for k, v in merged.items() if v is not None}))
        return "sweep.yaml"

    return write


@pytest.fixture
def seen(monkeypatch):
    """The configuration that a sweep would run with; nothing is run."""
    found = []

    def stop(config, **options):
        found.append((config, options))
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_wsl.sweep.run.run_sweep", stop)
    return found


def summaries(folder="out"):
    return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("sweeps/sweep_*.json"))]


def test_a12_3_a_sweep_measures_every_point_and_says_which_is_best(capsys, config):
    assert run(["merge-sweep", "--config", config()]) == 0
    shown = capsys.readouterr()
    (summary,) = summaries()
    assert [one["params"] for one in summary["runs"]] == [{"lambda": lam} for lam in (0.5, 1.0, 1.5)]
    assert all(one["state"] == "complete" for one in summary["runs"])
    assert set(summary["runs"][0]["results"]) == {"praise", "noun"}
    assert {"interference_delta", "interference_delta_meta", "metrics"} <= summary["runs"][0]["results"]["noun"].keys()
    assert "point 1 of 3" in shown.err
    assert "point 3 of 3" in shown.err
    assert "Complete. Best: lambda=" in shown.out
    report = next(Path("out").rglob("report.html")).read_text()
    assert 'src="data:image/png;base64,' in report
    assert "http" not in report.replace("http-equiv", "")


def test_a11_2_what_is_fixed_reaches_the_merge(config, pair, bert_dir):
    """The score of a point is that of a merge by hand with the same parameters."""
    from lit_wsl.evaluation import EncoderEvaluator
    from lit_wsl.merging import merge_state_dict

    transforms = [{"name": "layer_l2_normalize", "params": {"target_norm": 2.0}}]
    assert run(["merge-sweep", "--config", config(transforms=transforms), "--no-report"]) == 0
    evaluator = EncoderEvaluator(str(bert_dir), list(pair.tasks.values()))
    for one in summaries()[0]["runs"]:
        state = merge_state_dict(
            adapters=list(pair.paths.values()),
            base=str(bert_dir),
            method="ties",
            method_params={"k": 60, **one["params"]},
            transforms=transforms,
        )
        for task in pair.tasks:
            merged = evaluator.evaluate(state, task, "validation").score
            assert one["results"][task]["interference_delta_meta"]["merged"] == merged


def test_a12_3_options_stand_over_the_configuration(config, seen):
    argv = ["--grid", "k=10,20", "--grid", "lambda=0.1", "--merge-mode", "strict", "--split", "test"]
    argv += ["--eval-tasks", "noun", "--save-merged", "--allow-negative", "--output-dir", "elsewhere", "--workers", "2"]
    assert run(["merge-sweep", "--config", config(constraint_nonnegative=True), *argv]) == 130
    one, options = seen[0]
    assert one.search == {"type": "grid", "grid": {"lambda": [0.1], "k": [10, 20]}}
    assert (one.merge_mode, one.split, one.eval_tasks, one.save_merged) == ("strict", "test", ["noun"], True)
    assert (one.constraint_nonnegative, one.output_dir, options["workers"]) == (False, "elsewhere", 2)
    assert one.method_params == {"k": 60}


def test_a12_3_adapters_and_a_method_are_enough(config, seen, pair, bert_dir):
    Path("tasks.yaml").write_text(yaml.safe_dump({"tasks": pair.registry}))
    config()
    argv = ["--adapters", *pair.adapters, "--tasks", "tasks.yaml", "--base", str(bert_dir)]
    argv += ["--method", "uniform_scalar_delta", "--grid", "scale=0,0.5,1e-1,half"]
    assert run(["merge-sweep", *argv]) == 130
    one, _ = seen[0]
    assert one.search == {"type": "grid", "grid": {"scale": [0, 0.5, 0.1, "half"]}}
    assert [type(value) for value in one.search["grid"]["scale"]] == [int, float, float, str]
    assert (one.method, one.constraint_nonnegative, one.split) == ("uniform_scalar_delta", True, "validation")


def test_a12_3_a_grid_in_a_configuration_without_a_search(config, seen):
    assert run(["merge-sweep", "--config", config(search=None), "--grid", "lambda=0.5"]) == 130
    assert seen[0][0].search == {"type": "grid", "grid": {"lambda": [0.5]}}


def test_a12_3_a_search_of_another_type_keeps_it_unless_asked(capsys, config, seen):
    search = {"type": "bayes", "budget": 5, "space": {"lambda": {"min": 0.0, "max": 1.0}}}
    argv = ["merge-sweep", "--config", config(search=search)]
    one_line(capsys, 2, [*argv, "--grid", "lambda=0.5"], "--search_type grid")
    assert run([*argv, "--grid", "lambda=0.5", "--search-type", "grid"]) == 130
    assert seen[0][0].search["type"] == "grid"
    assert run([*argv, "--budget", "9", "--seed", "3"]) == 130
    assert (seen[1][0].search["type"], seen[1][0].search["budget"], seen[1][0].search["seed"]) == ("bayes", 9, 3)


@pytest.mark.parametrize(
    ("code", "argv", "words"),
    [
        (2, ["--grid", "lambda"], ["NAME=V1,V2", "'lambda'"]),
        (2, ["--grid", "=0.5"], ["NAME=V1,V2"]),
        (1, ["--grid", "lamda=0.5"], ["no parameter 'lamda'", "Did you mean 'lambda'"]),
        (1, ["--storage", "."], ["is the directory"]),
    ],
)
def test_a12_3_mistakes_are_one_line(capsys, config, code, argv, words):
    one_line(capsys, code, ["merge-sweep", "--config", config(), *argv], *words)


def test_a12_3_sources_and_a_search_are_needed(capsys, config):
    one_line(capsys, 2, ["merge-sweep"], "--config FILE")
    one_line(capsys, 1, ["merge-sweep", "--config", config(search=None)], "needs `search`")


def test_h4_and_save_merged_follow_the_search(capsys, config):
    one = config(post_sweep_eval={"split": "test"}, save_merged=True)
    assert run(["merge-sweep", "--config", one, "--no-report"]) == 0
    (summary,) = summaries()
    assert summary["post_sweep_eval"]["split"] == "test"
    assert summary["post_sweep_eval"]["error"] is None
    assert summary["merged"]["error"] is None
    output = Path(summary["merged"]["output"])
    assert [*output.glob("*.safetensors")]
    assert "Merged:" in capsys.readouterr().out
    before = summary["merged"]
    assert run(["merge-sweep", "--config", one, "--no-report"]) == 0
    assert summaries()[0]["merged"] == before


def test_the_weights_that_are_kept_are_those_of_the_best_point(config, pair, bert_dir):
    import torch

    from lit_wsl.merging import merge_state_dict
    from lit_wsl.state import open_state

    assert run(["merge-sweep", "--config", config(save_merged=True, output="best", output_format="model")]) == 0
    best = summaries()[0]["best_params"]
    expected = merge_state_dict(
        adapters=list(pair.paths.values()), base=str(bert_dir), method="ties", method_params={"k": 60, **best}
    )
    found = open_state("best")
    for name, tensor in expected.items():
        torch.testing.assert_close(found.read(name), tensor)


def test_a_task_that_fails_is_told_and_all_failed_ends_with_1(capsys, config, pair):
    broken = {**pair.registry, "noun": {**pair.registry["noun"], "metric": "accuracy", "head": "nowhere.safetensors"}}
    code = run(["merge-sweep", "--config", config(tasks=broken), "--no-report"])
    shown = capsys.readouterr()
    assert code == 1
    assert "failed" in shown.err


def test_g9_a_killed_command_is_continued_and_ctrl_c_keeps_what_there_is(config):
    search = {"type": "tpe", "budget": 60, "seed": 1, "space": {"lambda": {"min": 0.0, "max": 2.0}}}
    argv = [sys.executable, "-m", "lit_wsl", "merge-sweep", "--config", config(search=search), "--no-report"]
    _until(argv, 2, signal.SIGKILL, -signal.SIGKILL)
    killed = len(summaries()[0]["runs"])
    assert summaries()[0]["status"] == "running"
    text = _until(argv, killed + 2, signal.SIGINT, 130)
    (summary,) = summaries()
    assert "Interrupted; the same command continues it" in text
    assert summary["status"] == "interrupted"
    assert len(summary["runs"]) >= killed + 2
    assert len({str(one["params"]) for one in summary["runs"]}) == len(summary["runs"])


def _until(argv, runs, number, code):
    """Run a command, send it a signal when so many points are there, and check how it ended."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        found = summaries()
        if found and len(found[0]["runs"]) >= runs:
            break
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    return out


def test_run_sweep_is_what_the_command_runs(config):
    from lit_wsl.merging.config import load_merge_config
    from lit_wsl.runs.layout import RunLayout

    result = run_sweep(load_merge_config(config()), layout=RunLayout(Path("artifacts")), report=False)
    assert result.status == "complete"
    assert run(["merge-sweep", "--config", "sweep.yaml", "--no-report"]) == 0
    assert [one["score"] for one in summaries()[0]["runs"]] == [one.score for one in result.records]


def test_g3_a_direct_merge_with_bayes_searches_and_merges(capsys, config, pair, bert_dir):
    import torch

    from lit_wsl.merging import merge_state_dict
    from lit_wsl.state import open_state

    params = {"budget": 3, "init_points": 2, "seed": 0, "space": {"lambda": {"min": 0.1, "max": 2.0}}}
    optimizer = {"type": "bayes", "params": {**params, "constraint_nonnegative": False}}
    one = config(search=None, split=None, optimizer=optimizer, output_format="model", output="merged")
    assert run(["merge", "--config", one, "--dry-run"]) == 0
    assert not Path("out").exists()
    capsys.readouterr()
    assert run(["merge", "--config", one]) == 0
    assert "Best: lambda=" in capsys.readouterr().out
    (summary,) = summaries()
    assert (summary["split"], len(summary["runs"])) == ("validation", 3)
    expected = merge_state_dict(
        adapters=list(pair.paths.values()),
        base=str(bert_dir),
        method="ties",
        method_params={"k": 60, **summary["best_params"]},
    )
    found = open_state("merged")
    for name, tensor in expected.items():
        torch.testing.assert_close(found.read(name), tensor)
