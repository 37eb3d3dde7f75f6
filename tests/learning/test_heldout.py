"""Held-out selection of learners: rows H1 and H3."""

import csv
import json
import math
import warnings

import lightning
import pytest
import torch
import yaml

from lit_wsl.errors import ConfigError, MergeError
from lit_wsl.evaluation import EncoderEvaluator
from lit_wsl.evaluation.merged import baselines_of, measure
from lit_wsl.learning.data import MergeTaskData
from lit_wsl.learning.gradient import SuperMerge
from lit_wsl.learning.heldout import HeldOutSelection
from lit_wsl.learning.heldout.record import HeldOutPoint, HeldOutRecord
from lit_wsl.learning.heldout.settings import HeldOutSettings, read_heldout
from lit_wsl.learning.history import LearningHistory, read_history
from lit_wsl.learning.saving import SaveCoefficients
from lit_wsl.learning.stopping import Plateau
from lit_wsl.merging.config import MergeConfig
from lit_wsl.runs import RunLayout
from tests.processes import run_two_processes

NAMES = ["praise", "noun"]


@pytest.fixture(scope="module")
def merge(bert_dir, pair):
    return MergeConfig(
        adapters=list(pair.adapters), base=str(bert_dir), method="uniform_delta", tasks=pair.registry, split="train"
    )


class Scripted(EncoderEvaluator):
    """A real evaluator that may fail on purpose, and counts."""

    broken, seen = None, 0

    def evaluate(self, state, task, split, subset=None):
        self.seen += state is not None
        torch.rand(3)
        if state is not None and task == self.broken:
            raise RuntimeError("no\nsuch rows")
        return super().evaluate(state, task, split, subset)


@pytest.fixture
def evaluator(bert_dir, pair, tmp_path):
    return Scripted(str(bert_dir), list(pair.tasks.values()), cache=tmp_path / "subsets")


def selection(settings, directory, evaluator=None, **options):
    return HeldOutSelection(settings, directory, evaluator, layout=RunLayout(directory.parent / "artifacts"), **options)


def fit(merge, callbacks, steps=6, ckpt_path=None, lr=0.15, accumulate=1, seed=0):
    """Learn on the train rows of two tasks; returns learner and trainer."""
    lightning.seed_everything(1, verbose=False)
    learner = SuperMerge(merge, optimizer=lambda numbers: torch.optim.Adam(numbers, lr=lr))
    data = MergeTaskData(merge.registry, base=merge.base, split="train", batch_size=4, batches=40, seed=seed)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=callbacks,
            enable_model_summary=False,
            accumulate_grad_batches=accumulate,
            **quiet,
        )
        trainer.fit(learner, data, ckpt_path=ckpt_path)
    return learner, trainer


def lines(directory):
    return [json.loads(line) for line in (directory / "heldout.jsonl").read_text().splitlines()]


def test_the_best_measured_update_is_restored_h1(merge, evaluator, tmp_path):
    callback = selection(HeldOutSettings(every_updates=2), tmp_path / "run", evaluator)
    learner, _ = fit(merge, [callback], steps=13)
    rows = lines(tmp_path / "run")
    assert [row["update"] for row in rows] == [2, 4, 6, 8, 10, 12, 13]
    chosen = next(row for row in rows if row["chosen"])
    assert chosen["update"] == callback.record.chosen.update == callback.summary()["chosen"]["update"]
    assert learner.coefficients.values() == chosen["coefficients"]
    best = max(rows, key=lambda row: (row["criteria"]["pareto_hypervolume"], -row["update"]))
    assert best["update"] == chosen["update"]


def test_deltas_are_those_of_the_merge_with_these_coefficients(merge, evaluator, tmp_path):
    callback = selection(HeldOutSettings(every_updates=3, restore_best=False), tmp_path / "run", evaluator)
    learner, _ = fit(merge, [callback], steps=3)
    state = learner.merged_state()
    layout = RunLayout(tmp_path / "other")
    found = measure(state, NAMES, "validation", None, evaluator, baselines_of(merge, evaluator, layout))
    assert callback.record.points[0].deltas == found.deltas
    assert lines(tmp_path / "run")[0]["results"]["noun"]["metrics"] == found.report["noun"]["metrics"]


def test_without_restoring_the_last_coefficients_stay(merge, evaluator, tmp_path):
    callback = selection(HeldOutSettings(every_updates=2, restore_best=False), tmp_path / "run", evaluator)
    learner, _ = fit(merge, [callback])
    plain, _ = fit(merge, [])
    assert learner.coefficients.values() == plain.coefficients.values()


def test_what_is_measured_last_are_the_coefficients_of_the_last_update(merge, evaluator, tmp_path):
    """Also where another callback ends with those of an earlier one."""
    callback = selection(HeldOutSettings(every_updates=4, restore_best=False), tmp_path / "run", evaluator)
    plateau = Plateau(window=1, restore_best=True)
    learner, _ = fit(merge, [LearningHistory(tmp_path / "history.jsonl"), plateau, callback])
    last = lines(tmp_path / "run")[-1]
    after = read_history(tmp_path / "history.jsonl")[-1]
    assert (last["update"], after["update"]) == (6, 6)
    assert last["coefficients"][0] == list(after["coefficients"].values())
    assert learner.coefficients.values() != last["coefficients"]


def test_what_is_saved_are_the_chosen_coefficients_in_any_order_of_callbacks(merge, evaluator, tmp_path):
    callback = selection(HeldOutSettings(every_updates=1, criterion="min"), tmp_path / "run", evaluator)
    learner, _ = fit(merge, [SaveCoefficients(str(tmp_path / "saved")), callback], steps=5, lr=5.0)
    assert callback.record.chosen.update < 5
    saved = yaml.safe_load((tmp_path / "saved" / "merge.yaml").read_text())
    assert saved["method_params"]["task_coefficients"] == learner.coefficients.values()[0]


def test_measuring_changes_nothing_of_what_is_learned(merge, evaluator, tmp_path):
    states = []
    for callbacks in ([], [selection(HeldOutSettings(every_updates=1, restore_best=False), tmp_path / "r", evaluator)]):
        fit(merge, callbacks)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_an_evaluator_of_its_own_leaves_the_live_model_alone(merge, evaluator, tmp_path):
    own = selection(HeldOutSettings(every_updates=2, restore_best=False), tmp_path / "a")
    given = selection(HeldOutSettings(every_updates=2, restore_best=False), tmp_path / "b", evaluator)
    learners = [fit(merge, [callback])[0] for callback in (own, given)]
    assert learners[0].coefficients.values() == learners[1].coefficients.values()
    assert (tmp_path / "a/heldout.csv").read_text() == (tmp_path / "b/heldout.csv").read_text()


def test_accumulated_updates_are_measured_once(merge, evaluator, tmp_path):
    callback = selection(HeldOutSettings(every_updates=2), tmp_path / "run", evaluator)
    fit(merge, [callback], steps=4, accumulate=3)
    assert [point.update for point in callback.record.points] == [2, 4]
    assert evaluator.seen == 2 * 2 + 2  # the merge twice, and once each task's own adapter


def test_patience_ends_the_run_h1(merge, evaluator, tmp_path):
    settings = HeldOutSettings(every_updates=1, patience_evals=2, min_delta=10.0)
    callback = selection(settings, tmp_path / "run", evaluator)
    _, trainer = fit(merge, [callback], steps=20)
    assert trainer.global_step == 3
    assert callback.summary()["stopped_early"]
    assert [row["waited"] for row in lines(tmp_path / "run")] == [0, 1, 2]


def test_it_does_not_stop_before_enough_measurements_h1(merge, evaluator, tmp_path):
    settings = HeldOutSettings(every_updates=1, patience_evals=1, min_delta=10.0, min_evals_before_stop=5)
    _, trainer = fit(merge, [selection(settings, tmp_path / "run", evaluator)], steps=20)
    assert trainer.global_step == 5


def test_a_killed_run_goes_on_as_if_nothing_had_happened_h3(merge, bert_dir, pair, tmp_path):
    def evaluator():
        return EncoderEvaluator(str(bert_dir), list(pair.tasks.values()), cache=tmp_path / "subsets")

    def callbacks(name, directory=None):
        settings = HeldOutSettings(every_updates=2, patience_evals=50)
        directory = tmp_path / (directory or name)
        held = selection(settings, directory, evaluator(), checkpoint_dir=tmp_path / name / "checkpoints")
        return [LearningHistory(directory / "history.jsonl"), held]

    whole = callbacks("whole")
    learner, _ = fit(merge, whole, steps=9, accumulate=2)
    fit(merge, callbacks("killed"), steps=7, accumulate=2)  # has written more than the checkpoint knows of
    again = callbacks("again", "killed")
    checkpoint = tmp_path / "killed/checkpoints/update-4.ckpt"
    resumed, _ = fit(merge, again, steps=9, ckpt_path=checkpoint, accumulate=2)
    assert resumed.coefficients.values() == learner.coefficients.values()
    for name in ("heldout.csv", "heldout.jsonl", "history.jsonl"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    assert again[1].summary() == whole[1].summary()
    known, found = whole[0].summary(), again[0].summary()
    assert known.pop("elapsed_sec") > 0.0
    assert found.pop("elapsed_sec") > 0.0
    assert found == known


def test_a_run_whose_patience_was_at_its_end_does_not_go_on(merge, evaluator, tmp_path):
    settings = HeldOutSettings(every_updates=1, patience_evals=2, min_delta=10.0)
    fit(merge, [selection(settings, tmp_path / "run", evaluator, checkpoint_dir=tmp_path / "saved")], steps=20)
    again = selection(settings, tmp_path / "run", evaluator)
    learner, trainer = fit(merge, [again], steps=20, ckpt_path=tmp_path / "saved/update-3.ckpt")
    assert trainer.global_step == 3
    assert learner.coefficients.values() == again.record.chosen.coefficients


def test_other_rows_than_the_checkpoint_s_are_refused(merge, evaluator, tmp_path):
    saved = tmp_path / "saved"
    fit(merge, [selection(HeldOutSettings(every_updates=1), tmp_path / "run", evaluator, checkpoint_dir=saved)], 1)
    other = selection(HeldOutSettings(every_updates=1, max_samples=4), tmp_path / "run", evaluator)
    with pytest.raises(ConfigError, match="resume with the same rows and tasks"):
        fit(merge, [other], 2, ckpt_path=saved / "update-1.ckpt")


def test_another_criterion_chooses_anew_on_resume(merge, evaluator, tmp_path):
    saved = tmp_path / "saved"
    first = selection(HeldOutSettings(every_updates=1), tmp_path / "run", evaluator, checkpoint_dir=saved)
    history = LearningHistory(tmp_path / "history.jsonl")
    fit(merge, [history, first], 4)
    again = selection(HeldOutSettings(every_updates=1, criterion="best_single"), tmp_path / "run", evaluator)
    resumed = LearningHistory(tmp_path / "history.jsonl")
    learner, _ = fit(merge, [resumed, again], 4, ckpt_path=saved / "update-4.ckpt")  # which has nothing left to do
    assert resumed.summary()["last_coefficients"] == history.summary()["last_coefficients"]
    best = max(again.record.points, key=lambda point: (max(point.deltas.values()), -point.update))
    assert learner.coefficients.values() == best.coefficients


def test_the_learner_s_own_rows_are_refused_h1(merge, evaluator, tmp_path):
    callback = selection(HeldOutSettings(split="train"), tmp_path / "run", evaluator)
    with pytest.raises(ConfigError, match="`optimizer.params.heldout_eval.split: train` is learned from"):
        fit(merge, [callback])


def test_a_task_that_fails_ends_the_run(merge, evaluator, tmp_path):
    callback = selection(HeldOutSettings(every_updates=2), tmp_path / "run", evaluator)
    with pytest.raises(MergeError, match="after update 2 failed: task 'noun': RuntimeError: no such rows"):
        fit(merge, [Breaking(evaluator), callback])


class Breaking(lightning.Callback):
    """Lets baselines be measured, then breaks a task."""

    def __init__(self, evaluator):
        self.evaluator = evaluator

    def on_train_start(self, trainer, pl_module):
        self.evaluator.broken = "noun"


def test_missing_baselines_end_the_run_before_it_learns(merge, evaluator, tmp_path):
    settings = HeldOutSettings(compute_missing_interference_baselines=False)
    with pytest.raises(MergeError, match="'praise' has no interference delta on validation: a baseline is missing"):
        fit(merge, [selection(settings, tmp_path / "run", evaluator)])
    assert not (tmp_path / "run").exists()


def test_unknown_tasks_are_refused(merge, evaluator, tmp_path):
    with pytest.raises(ConfigError, match="Unknown task 'nuon' in `optimizer.params.heldout_eval.tasks`.*'noun'"):
        fit(merge, [selection(HeldOutSettings(tasks=["nuon"]), tmp_path / "run", evaluator)])


def test_one_task_alone_on_some_rows(merge, evaluator, tmp_path):
    settings = HeldOutSettings(every_updates=2, tasks=["noun"], max_samples=6, split="test")
    callback = selection(settings, tmp_path / "run", evaluator)
    fit(merge, [callback], 2)
    assert lines(tmp_path / "run")[0]["results"]["noun"]["rows"] == 6
    assert callback.summary()["subset"].startswith("subset_")
    assert (tmp_path / "run/heldout.png").stat().st_size > 5_000
    assert not (tmp_path / "run/heldout_tradeoffs.png").exists()


def test_the_table_has_every_figure_h1(merge, evaluator, tmp_path):
    callback = selection(HeldOutSettings(every_updates=2), tmp_path / "run", evaluator)
    fit(merge, [callback], 4)
    with (tmp_path / "run/heldout.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["update"] for row in rows] == ["2", "4"]
    assert {"delta/praise", "score/noun", "l2_shortfall", "min", "hypervolume", "on_frontier"} <= set(rows[0])
    assert sum(int(row["chosen"]) for row in rows) == 1
    for row, point in zip(rows, callback.record.points, strict=True):
        assert float(row["delta/noun"]) == point.deltas["noun"]
        assert float(row["min"]) == min(point.deltas.values())
    assert (tmp_path / "run/heldout_tradeoffs.png").stat().st_size > 5_000


def test_two_processes_choose_alike_and_fail_together_h1(merge, tmp_path):
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(merge.to_dict()))
    run_two_processes("tests.learning.heldout_processes", tmp_path)
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [one.pop("made") for one in found] == [False, True]  # only the first has made an evaluator
    assert found[0] == found[1]
    assert found[0]["summary"]["stopped_early"]
    assert found[0]["coefficients"] == found[0]["summary"]["chosen"]["coefficients"]
    assert [row["update"] for row in lines(tmp_path / "run")] == [2, 4, 6]
    assert [line["update"] for line in read_history(tmp_path / "history.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "saved/update-6.ckpt").is_file()
    told = {(tmp_path / f"error{rank}.txt").read_text() for rank in (0, 1)}
    assert told == {"The held-out evaluation after update 2 failed: task 'praise': RuntimeError: no such rows"}


def record_of(vectors, **settings):
    record = HeldOutRecord(HeldOutSettings(**settings), ["a", "b"])
    for update, vector in enumerate(vectors, start=1):
        deltas = dict(zip(record.tasks, vector, strict=True))
        results = {task: {"metrics": {"loss": 0.5}, "primary": "loss"} for task in deltas}
        record.add(HeldOutPoint(update, deltas, results, [[0.3, 0.3]], {}))
    return record


def test_the_record_tells_frontier_choice_and_patience():
    record = record_of([[0.9, 0.1], [0.6, 0.6], [0.1, 0.95], [0.3, 0.3]], patience_evals=1)
    assert [point.update for point in record.frontier] == [1, 2, 3]
    assert record.chosen.update == 2
    assert record.has_ended
    assert record.summary()["hypervolume"] == pytest.approx(0.425)
    assert [row["on_frontier"] for row in record.table] == [True, True, True, False]
    assert record.table[0]["scores"] == {"a": 0.5, "b": 0.5}


def test_a_reference_point_moves_the_choice():
    vectors = [[0.9, 0.15], [0.5, 0.3]]
    assert record_of(vectors).chosen.update == 2
    assert record_of(vectors, reference_point=[0.0, -1.0]).chosen.update == 1
    assert record_of(vectors, reference_point={"b": -1}).chosen.update == 1
    for wrong in ([0.0], {"c": 0.0}, "zero", [math.nan, 0.0], [0.0, 10**400]):
        with pytest.raises(ConfigError, match="reference_point"):
            record_of(vectors, reference_point=wrong)


def test_a_validation_afterwards_keeps_what_was_measured(merge, evaluator, tmp_path):
    callback = selection(HeldOutSettings(every_updates=1), tmp_path / "run", evaluator)
    learner, trainer = fit(merge, [callback], 1)
    rows = MergeTaskData(merge.registry, base=merge.base, split="train", validation_split="validation")
    trainer.validate(learner, rows, verbose=False)
    assert callback.summary()["evaluations"] == 1


def test_an_empty_record_has_no_choice():
    record = record_of([], patience_evals=1)
    assert record.chosen is None
    assert not record.has_ended
    assert record.summary()["evaluations"] == record.latest == 0


def test_settings_are_read_with_their_former_names_h1():
    former = {
        "enabled": True,
        "split": "validation",
        "frequency_updates": 20,
        "restore_best_checkpoint": False,
        "subset": {"max_samples": 50},
        "pareto": {
            "patience_evals": 3,
            "hypervolume_min_delta": 0.1,
            "selection_min_delta": 0.2,
            "selection_criterion": "rms_shortfall",
            "reference_point": [0, 0],
        },
    }
    found = read_heldout(former)
    assert (found.every_updates, found.restore_best, found.patience_evals) == (20, False, 3)
    assert (found.min_delta, found.criterion) == (0.2, "l2_shortfall")
    assert found.rows().max_samples == 50
    assert read_heldout({"pareto": {"hypervolume_min_delta": 0.1}}).min_delta == 0.1


def test_settings_have_the_defaults_of_the_row_h1():
    found = read_heldout(True)
    assert found == read_heldout({}) == HeldOutSettings()
    assert (found.every_updates, found.min_evals_before_stop, found.dominance_epsilon) == (100, 1, 0.0)
    assert (found.criterion, found.restore_best) == ("pareto_hypervolume", True)
    assert found.reference(["a", "b"]) == [0.0, 0.0]
    assert read_heldout(None) is read_heldout(False) is read_heldout({"enabled": False}) is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"every": 5}, "has no key 'every'"),
        ({"every_updates": 0}, "`optimizer.params.heldout_eval.every_updates` must be a whole number of at least 1"),
        ({"every_updates": 2.5}, "whole number"),
        ({"patience_evals": True}, "patience_evals"),
        ({"min_delta": -0.1}, "min_delta"),
        ({"min_delta": math.inf}, "min_delta"),
        ({"split": "valid"}, "Did you mean 'validation'"),
        ({"criterion": "hyper_volume"}, "Did you mean"),
        ({"restore_best": "yes"}, "must be true or false"),
        ({"tasks": "noun"}, "must be a list of task names"),
        ({"tasks": []}, "must be a list of task names"),
        ({"subset": {"max_sample": 3}}, "Did you mean 'max_samples'"),
        ({"subset": {}, "max_samples": 3}, "short form"),
        ({"pareto": 3}, "must be a mapping"),
        (["split"], "must be a mapping"),
    ],
)
def test_wrong_settings_are_told(given, told):
    with pytest.raises(ConfigError, match=told):
        read_heldout(given)
