"""Learning as the optimizer of a merge: runs, their files, what is taken up again, and the command line."""

import json
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml

from lit_wsl.cli.main import run as main
from lit_wsl.errors import ConfigError, MergeError
from lit_wsl.evaluation import evaluate_merge
from lit_wsl.evaluation.tasks import make_evaluator
from lit_wsl.learning import run as run_module
from lit_wsl.learning.params import AdaMergingParams
from lit_wsl.learning.replay import at_checkpoint, kept_checkpoint
from lit_wsl.learning.run import learn_merge, learner_of, run_directory
from lit_wsl.merging import merge_state_dict
from lit_wsl.merging.config import MergeConfig, load_merge_config
from lit_wsl.runs import RunLayout
from lit_wsl.state.reader import open_state
from lit_wsl.sweep import run_sweep
from lit_wsl.sweep.objective import MergeObjective
from lit_wsl.sweep.paths import at_point
from tests.learning.learning import merge_of
from tests.processes import ROOT

STEPS = {"steps": 10, "batch_size": 4, "progress_bar": False, "lr": 0.05, "split": "validation"}


@pytest.fixture
def layout(tmp_path):
    return RunLayout(tmp_path / "artifacts")


def _config(pair, bert_dir, kind="adamerging", changes=None, **params):
    optimizer = {"type": kind, "params": {**STEPS, **params}}
    return merge_of(pair, bert_dir, optimizer=optimizer, **(changes or {}))


@pytest.fixture
def config(pair, bert_dir):
    return _config(pair, bert_dir, variant="layer_wise", checkpoint_every=3)


@pytest.mark.parametrize("kind", ["adamerging", "gradient", "supermerge", "regret_smoothmax"])
def test_a_run_leaves_a_merge_and_how_it_was_found_a7_46(pair, bert_dir, layout, kind):
    """A7.46: every parameter, objectives, steps, coefficients, gradients, labels, baselines, multipliers."""
    found = learn_merge(_config(pair, bert_dir, kind), layout=layout)
    told = json.loads((found.directory / "learning.json").read_text())
    assert told["params"]["steps"] == told["steps_completed"] == told["optimizer_steps_completed"] == 10
    assert {"initial_objective", "final_objective", "best_objective", "elapsed_sec"} <= told.keys()
    first, last = told["initial_coefficients"], told["final_coefficients"]
    assert first != last
    assert told["gradient"]["norm_mean"] <= told["gradient"]["norm_max"]
    assert told["labels_per_update"] == {"praise": 4.0, "noun": 4.0}
    assert len((found.directory / "history.jsonl").read_text().splitlines()) == 10
    if kind == "gradient":
        assert told["prepared"]["baselines"].keys() == {"praise", "noun"}
        assert told["prepared"]["multipliers"].keys() == {"praise", "noun"}
    if kind == "regret_smoothmax":
        assert told["prepared"]["best_losses"].keys() == {"praise", "noun"}
    for picture in ("coefficients.png", "history.png"):
        assert (found.directory / picture).read_bytes()[:4] == b"\x89PNG"
    written = MergeConfig(**yaml.safe_load((found.directory / "merge.yaml").read_text()))
    assert written.method_params == found.config.method_params
    assert written.method_params["task_coefficients"] == pytest.approx(last[0])


def test_a_finished_run_is_taken_up_as_it_is(config, layout):
    first = learn_merge(config, layout=layout)
    again = learn_merge(replace(config, output_format="model", dtype="bfloat16"), layout=layout)
    assert again.is_earlier
    assert not first.is_earlier
    assert again.directory == first.directory, "coefficients do not depend on what is written"
    assert again.config.method_params == first.config.method_params
    assert (again.config.output_format, again.config.dtype) == ("model", "bfloat16")
    params = {**config.optimizer.params, "seed": 1}
    other = learn_merge(replace(config, optimizer={"type": "adamerging", "params": params}), layout=layout)
    assert other.directory != first.directory
    assert other.config.method_params != first.config.method_params


def test_what_decides_nothing_makes_no_other_run(config, layout):
    """A killed run that is watched when it goes on is the same run."""
    kind, params = learner_of(config)
    home = run_directory(config, kind, params, layout)
    told = {"progress_bar": True, "logging_steps": 5, "resume_checkpoint": "last.ckpt", "checkpoint-every": 7}
    for one in ({name: value} for name, value in told.items()):
        assert run_directory(_with(config, **one), *learner_of(_with(config, **one)), layout) == home
    assert {field.name for field in fields(AdaMergingParams)} >= run_module._UNDECISIVE
    for one in ({"lr": 0.1}, {"log_alpha_grad_stats": False}):
        assert run_directory(_with(config, **one), *learner_of(_with(config, **one)), layout) != home


def test_an_exception_gives_the_backbone_back_as_it_was(config, layout, monkeypatch):
    made = []

    def fail(trainer, learner, **options):
        learner.live.open(learner.coefficients.rows, learner.device)
        learner.live.merge(learner.coefficients().detach())
        made.append(learner.live)
        raise RuntimeError("a callback fails")

    monkeypatch.setattr(run_module.Trainer, "fit", fail)
    with pytest.raises(RuntimeError, match="a callback fails"):
        learn_merge(config, layout=layout)
    (live,) = made
    base = open_state(config.base)
    own = dict(live.backbone.named_parameters())
    assert all(torch.equal(own[name].cpu(), base.read(name)) for name in live.plan.merged if name in own)
    assert set(live.plan.merged) & set(own)
    with pytest.raises(MergeError, match="not open"):
        live.state()


def test_other_rows_are_another_run(config, layout, pair):
    first = learn_merge(config, layout=layout)
    file = pair.root / "noun" / "validation.jsonl"
    before = file.read_text()
    try:
        file.write_text(before + json.dumps({"text": "a fine song", "label": "song"}) + "\n")
        assert learn_merge(config, layout=layout).directory != first.directory
    finally:
        file.write_text(before)


def test_a_run_without_checkpoints_leaves_none(config, layout):
    found = learn_merge(_with(config, checkpoint_every=0), layout=layout)
    assert not list(found.directory.rglob("*.ckpt"))


def test_a_killed_run_goes_on_and_ends_as_the_uninterrupted_one(config, layout, tmp_path):
    """Killed without any clean-up behind update 7; the last checkpoint is that of update 6."""
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    command = [sys.executable, "-m", "tests.learning.killed", tmp_path / "config.json", layout.root]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    (home,) = (layout.root / "merged" / "weighted_delta_n").glob("*/learning/*")
    assert (home / "last.ckpt").is_file()
    assert not (home / "learning.json").exists()
    resumed = learn_merge(config, layout=layout)
    assert resumed.directory == home
    assert resumed.provenance["resumed_from"] == str(home / "last.ckpt")
    whole = learn_merge(config, layout=RunLayout(tmp_path / "other"))
    assert resumed.config.method_params == whole.config.method_params
    lines = [json.loads(line) for line in (whole.directory / "history.jsonl").read_text().splitlines()]
    assert [json.loads(line) for line in (home / "history.jsonl").read_text().splitlines()] == lines


def test_runs_that_share_a_folder_of_checkpoints_do_not_go_on_with_each_other(config, layout, tmp_path):
    """Another learning rate is another run, wherever its checkpoints lie."""
    held = {"every_updates": 5, "split": "test"}
    changes = {"checkpoint_dir": str(tmp_path / "kept"), "heldout_eval": held, "checkpoint_on_heldout_eval": True}
    first = _with(config, lr=0.05, **changes)
    learn_merge(first, layout=layout)
    other = learn_merge(_with(config, lr=0.5, **changes), layout=layout)
    assert other.provenance["resumed_from"] is None
    plain = learn_merge(_with(config, lr=0.5), layout=layout)
    assert other.provenance["last_coefficients"] == plain.provenance["last_coefficients"]
    replayed = at_checkpoint(first, kept_checkpoint(first, 5, layout)).method_params
    assert replayed != at_checkpoint(first, kept_checkpoint(_with(config, lr=0.5, **changes), 5, layout)).method_params


def test_a_damaged_merge_of_an_earlier_run_is_told(config, layout):
    found = learn_merge(config, layout=layout)
    (found.directory / "merge.yaml").write_text("method: [")
    with pytest.raises(MergeError, match=r"merge.yaml is damaged.*learn anew"):
        learn_merge(config, layout=layout)


def test_the_best_of_the_rolling_mean_is_restored_a7_33(pair, bert_dir, layout):
    config = _config(pair, bert_dir, restore_best_checkpoint=True, rolling_window=1, lr=2.0, project_coefficients=False)
    found = learn_merge(config, layout=layout)
    lines = [json.loads(line) for line in (found.directory / "history.jsonl").read_text().splitlines()]
    best = min(range(len(lines)), key=lambda at: lines[at]["objective"])
    assert found.provenance["best_mean_update"] == best + 1
    sources = list(lines[0]["coefficients"])
    before = [0.3, 0.3] if best == 0 else [lines[best - 1]["coefficients"][name] for name in sources]
    assert found.provenance["final_coefficients"][0] == pytest.approx(before, abs=1e-6)


def test_held_out_rows_choose_and_checkpoints_replay_h1_h3(pair, bert_dir, layout):
    """H1, H3: measured on test rows every 5 updates; any measured point can be replayed from its checkpoint."""
    held = {"enabled": True, "every_updates": 5, "split": "test"}
    config = _config(pair, bert_dir, "supermerge", heldout_eval=held, checkpoint_on_heldout_eval=True)
    found = learn_merge(config, layout=layout)
    assert found.provenance["heldout"] is not None
    rows = [json.loads(line) for line in (found.directory / "heldout.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [5, 10]
    lines = [json.loads(line) for line in (found.directory / "history.jsonl").read_text().splitlines()]
    replayed = at_checkpoint(config, kept_checkpoint(config, 5, layout))
    expected = list(lines[4]["coefficients"].values())
    assert replayed.method_params["task_coefficients"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ConfigError, match="those after 5, 10 updates are there"):
        kept_checkpoint(config, 7, layout)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ties"}, "not of 'ties'"),
        ({"optimizer": None}, "learns no coefficients"),
        ({"optimizer": "bayes"}, "learns no coefficients"),
    ],
)
def test_what_learns_nothing_is_refused(config, layout, changes, message):
    with pytest.raises(ConfigError, match=message):
        learn_merge(replace(config, **changes), layout=layout)


def _file(tmp_path, config, **changes):
    path = tmp_path / "learn.yaml"
    path.write_text(yaml.safe_dump({**config.to_dict(), "output_format": "model", **changes}))
    return str(path)


def test_merge_learns_first_and_writes_the_model_it_saw(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = _with(config, print_coefficients_pre_eval=True)
    assert main(["merge", "--config", _file(tmp_path, config), "--output", "out"]) == 0
    told = capsys.readouterr().out
    assert "adamerging: 10 updates" in told
    assert "encoder:0: praise 0." in told
    learned = learn_merge(config, layout=RunLayout(tmp_path / "artifacts"))
    assert learned.is_earlier
    expected = merge_state_dict(learned.config.to_merge_spec())
    state = open_state(tmp_path / "out")
    assert all(torch.equal(state.read(name), expected[name]) for name in state.keys())
    assert main(["merge", "--config", _file(tmp_path, config), "--output", "again"]) == 0
    assert "Learned before" in capsys.readouterr().out


def _with(config, **params):
    return replace(config, optimizer={"type": config.optimizer.type, "params": {**config.optimizer.params, **params}})


def test_a_dry_run_learns_nothing_but_checks_parameters(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["merge", "--config", _file(tmp_path, config), "--output", "out", "--dry_run"]) == 0
    assert not (tmp_path / "artifacts").exists()
    wrong = _with(config, stpes=3)
    assert main(["merge", "--config", _file(tmp_path, wrong), "--output", "out", "--dry_run"]) == 1
    assert "Did you mean 'steps'" in capsys.readouterr().err


def test_evaluate_merged_learns_or_replays_h3(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = _file(tmp_path, config)
    assert main(["evaluate-merged", "--config", file]) == 0
    first = capsys.readouterr().out
    assert "10 updates" in first
    (checkpoint,) = tmp_path.glob("artifacts/merged/weighted_delta_n/*/learning/*/last.ckpt")
    assert main(["evaluate-merged", "--config", file, "--checkpoint", str(checkpoint)]) == 0
    capsys.readouterr()
    assert main(["evaluate-merged", "--config", file, "--optimizer_steps", "3"]) == 1
    assert "checkpoint_on_heldout_eval" in capsys.readouterr().err
    (tmp_path / "none.ckpt").write_bytes(b"nothing")
    assert main(["evaluate-merged", "--config", file, "--checkpoint", "none.ckpt"]) == 1
    assert "none.ckpt" in capsys.readouterr().err


def test_a_sweep_learns_at_every_point_once_a11_3(pair, bert_dir, layout):
    """A11.3: the optimizer runs for each setting of it, and a setting that was learned is taken up."""
    config = replace(
        _config(pair, bert_dir, steps=3),
        search={"type": "grid", "grid": {"optimizer.params.lr": [0.01, 0.1]}},
        constraint_nonnegative=False,
    )
    objective = MergeObjective(config, layout)
    result = run_sweep(config, objective, layout=layout)
    assert [one.score is not None for one in result.records] == [True, True]
    runs = list((layout.root / "merged" / "weighted_delta_n").glob("*/learning/*/learning.json"))
    assert sorted(json.loads(run.read_text())["params"]["lr"] for run in runs) == [0.01, 0.1]


def test_a_run_of_what_was_learned_leads_to_how_it_was_learned(config, layout, pair):
    found = learn_merge(config, layout=layout)
    evaluator = make_evaluator(pair.tasks, config.base)
    run = evaluate_merge(found.config, evaluator, layout, confusion=False).run
    assert run.name.startswith("run_adamerging_layer_wise_")
    told = json.loads((run / "merge_metadata.json").read_text())
    assert told["optimizer"] == {"type": "adamerging", "params": {"variant": "layer_wise"}}
    assert (Path(told["learned_from"]["run"]) / "learning.json").is_file()
    assert load_merge_config(run / "config.yaml").learned_from == told["learned_from"]
    assert load_merge_config(found.directory / "merge.yaml").learned_from == told["learned_from"]
    assert learn_merge(config, layout=layout).config == found.config, "taken up"
    assert at_point(found.config, {"dtype": "float32"}).learned_from is None, "a point of a sweep is another merge"


def test_fit_learns_by_the_shipped_configuration(pair, bert_dir, tmp_path, monkeypatch, capsys):
    """The shipped YAML, on the tiny tasks; its result merges, and its checkpoint goes on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"tasks": pair.registry}))
    shipped = str(ROOT / "configs" / "learn" / "adamerging.yaml")
    changes = ["--model.init_args.merge.tasks", "tasks.yaml", "--model.init_args.merge.base", str(bert_dir)]
    changes += ["--model.init_args.merge.adapters", "[praise, noun]", "--trainer.accelerator", "cpu"]
    assert main(["fit", "--config", shipped, *changes, "--data.init_args.batches", "30"]) == 0
    home = tmp_path / "artifacts" / "learned" / "adamerging"
    assert (home / "last.ckpt").is_file()
    assert len((home / "history.jsonl").read_text().splitlines()) == 30
    before = (home / "merge.yaml").read_text()
    assert main(["merge", "--config", str(home / "merge.yaml"), "--output", "merged"]) == 0
    assert (
        main(
            [
                "fit",
                "--config",
                shipped,
                *changes,
                "--data.init_args.batches",
                "30",
                "--ckpt_path",
                str(home / "last.ckpt"),
            ]
        )
        == 0
    )
    assert (home / "merge.yaml").read_text() == before
    assert main(["fit", "--config", shipped, *changes, "--model.init_args.merge.adapters", "[praise, nuon]"]) == 1
    assert "nuon" in capsys.readouterr().err
