"""The objective that merges and evaluates: what it passes on, makes once, and takes along to other processes."""

import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lit_wsl.errors import ConfigError
from lit_wsl.evaluation import EncoderEvaluator
from lit_wsl.merging.config import MergeConfig
from lit_wsl.runs import RunLayout, list_runs
from lit_wsl.sweep import run_sweep
from lit_wsl.sweep.direct import optimise_merge
from lit_wsl.sweep.objective import MergeObjective
from tests.evaluation.pair import write_pair


@pytest.fixture(scope="module")
def pair(bert_dir, tmp_path_factory):
    """Two tasks over one vocabulary with an adapter each: `praise` and `noun`."""
    return write_pair(bert_dir, tmp_path_factory.mktemp("pair"))


@pytest.fixture
def config(bert_dir, pair, tmp_path):
    return MergeConfig(
        adapters=list(pair.adapters),
        base=str(bert_dir),
        method="ties",
        method_params={"k": 60},
        tasks=pair.registry,
        split="validation",
        constraint_nonnegative=False,
        output_dir=str(tmp_path / "out"),
        search={"type": "grid", "grid": {"lambda": [0.5, 1.0]}, "storage": "journal"},
    )


@pytest.fixture
def layout(tmp_path):
    return RunLayout(tmp_path / "artifacts")


def test_models_are_made_once_and_no_point_leaves_a_run(config, layout, monkeypatch):
    made = []
    original = EncoderEvaluator.__init__
    monkeypatch.setattr(
        EncoderEvaluator, "__init__", lambda self, *a, **k: (made.append(1), original(self, *a, **k))[1]
    )
    result = run_sweep(config, layout=layout, report=False)
    assert made == [1]
    assert [one.state for one in result.records] == ["complete", "complete"]
    assert list_runs(layout) == []
    assert result.summary["tasks"] == ["praise", "noun"]


def test_a_task_that_cannot_be_measured_fails_the_point_and_says_why(config, layout):
    evaluator = MergeObjective(config, layout)._evaluator
    asked = evaluator.evaluate

    def broken(state, task, split, subset=None):
        if task == "noun" and state is not None:
            raise RuntimeError("out of memory")
        return asked(state, task, split, subset)

    evaluator.evaluate = broken
    result = run_sweep(config, MergeObjective(config, layout, evaluator=evaluator), layout=layout, report=False)
    assert [one.error for one in result.records] == ["noun: RuntimeError: out of memory"] * 2
    assert set(result.records[0].results) == {"praise", "noun"}


def test_a_point_that_cannot_be_merged_fails_alone(config, layout):
    one = replace(config, search={"type": "grid", "grid": {"k": [60, 400]}, "storage": "journal"})
    result = run_sweep(one, layout=layout, report=False)
    assert [record.state for record in result.records] == ["complete", "failed"]
    assert "`k`" in result.records[1].error or "400" in result.records[1].error


def test_a11_3_an_optimizer_runs_for_each_point_and_once_for_each_setting(config, layout):
    runs = []

    def optimise(one):
        runs.append(dict(one.method_params))
        return replace(one, method_params={**one.method_params, "lambda": 0.25}, optimizer=None)

    learned = replace(config, optimizer={"type": "adamerging", "params": {"lr": 0.1}})
    objective = MergeObjective(learned, layout, optimise=optimise)
    first = objective({"k": 50})
    assert objective({"k": 50}) == first
    objective({"k": 70})
    assert runs == [{"k": 50}, {"k": 70}]
    assert first.deltas == MergeObjective(config, layout)({"k": 50, "lambda": 0.25}).deltas


def test_points_that_learn_the_same_wait_for_each_other(config, layout, monkeypatch):
    asked = {}
    found = SimpleNamespace(config=config)
    monkeypatch.setattr("lit_wsl.learning.run.learn_merge", lambda config, **options: asked.update(options) or found)
    assert MergeObjective(config, layout)._learned(config) is config
    assert asked["wait"]


def test_an_error_in_what_an_objective_tells_of_itself_is_told(config, layout):
    class Broken:
        @property
        def identity(self):
            return self.nothing

        def __call__(self, params):
            raise AssertionError

    with pytest.raises(AttributeError, match="nothing"):
        run_sweep(config, Broken(), layout=layout, report=False)


def test_it_travels_to_another_process_without_its_models(config, layout):
    objective = MergeObjective(config, layout)
    before = objective({"lambda": 1.0})
    copy = pickle.loads(pickle.dumps(objective))  # noqa: S301
    assert "_evaluator" not in copy.__dict__
    assert copy({"lambda": 1.0}).deltas == before.deltas
    assert copy.identity == objective.identity


def test_workers_measure_what_one_process_measures(config, layout, tmp_path):
    alone = run_sweep(config, layout=layout, report=False)
    together = run_sweep(replace(config, output_dir=str(tmp_path / "two")), layout=layout, workers=2, report=False)
    assert {str(one.params): one.score for one in together.records} == {
        str(one.params): one.score for one in alone.records
    }


def test_a11_17_retrained_adapters_of_the_same_name_are_another_study(config, layout, pair, bert_dir, tmp_path):
    import shutil

    copy = tmp_path / "praise"
    shutil.copytree(pair.paths["praise"], copy)
    one = replace(config, adapters=[str(copy), pair.paths["noun"]], eval_tasks=["praise", "noun"])
    before = MergeObjective(one, layout).identity
    assert MergeObjective(one, layout).identity == before
    shutil.copy(f"{pair.paths['noun']}/adapter_model.safetensors", copy / "adapter_model.safetensors")
    assert MergeObjective(one, layout).identity != before


def test_other_rows_under_the_same_names_are_another_study(config, layout, pair):
    first = run_sweep(config, layout=layout, report=False)
    rows = pair.root / "noun" / "validation.jsonl"
    before = rows.read_text()
    try:
        rows.write_text("".join(before.splitlines(keepends=True)[:-2]))
        fewer = run_sweep(config, layout=layout, report=False)
    finally:
        rows.write_text(before)
    assert fewer.path != first.path
    assert [one.results["noun"]["rows"] for one in (*first.records, *fewer.records)] == [16, 16, 14, 14]
    assert run_sweep(config, layout=layout, report=False).path == first.path


def test_g3_a_direct_merge_by_bayes_merges_with_the_best(config, layout):
    params = {"budget": 4, "init_points": 2, "seed": 0, "space": {"lambda": {"min": 0.1, "max": 2.0}}}
    params |= {"constraint_nonnegative": False, "storage": "journal"}
    one = replace(config, search=None, optimizer={"type": "bayes", "params": params})
    merged, result = optimise_merge(one, layout=layout)
    assert merged.to_merge_spec().method_params == {"k": 60, "lambda": result.best_params["lambda"]}
    assert len(result.records) == 4


def test_tasks_are_needed(config, layout):
    with pytest.raises(ConfigError, match="name them in `tasks`"):
        run_sweep(replace(config, tasks=None), layout=layout, report=False)
