"""A merge on several tasks: rows A10.1, A10.2, A10.4 to A10.6, A10.9, A10.10."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lit_wsl.cli.evaluating import _cells
from lit_wsl.errors import CheckpointError, ConfigError, DataError, LitWslError
from lit_wsl.evaluation import EncoderEvaluator, SubsetSpec, Task, evaluate_merge, evaluate_saved
from lit_wsl.evaluation.baselines import Baselines
from lit_wsl.merging import merge, merge_state_dict
from lit_wsl.merging.config import MergeConfig
from lit_wsl.runs import RunLayout, list_runs, read_index
from lit_wsl.training.text import TextClassificationData
from tests.evaluation.pair import write_pair


@pytest.fixture(scope="module")
def pair(bert_dir, tmp_path_factory):
    """Two tasks over one vocabulary with an adapter each: `praise` and `noun`."""
    return write_pair(bert_dir, tmp_path_factory.mktemp("pair"))


class Counting(EncoderEvaluator):
    """Remembers which states it was asked to run."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.forwards = []
        self._encoder.register_forward_hook(lambda *_: self.forwards.append(self.asked))
        self.asked, self.broken = None, ()

    def evaluate(self, state, task, split, subset=None):
        self.asked = (task, "base" if state is None else "merged", split)
        if task in self.broken:
            raise RuntimeError("no\nsuch thing")
        return super().evaluate(state, task, split, subset)


@pytest.fixture
def evaluator(bert_dir, pair, tmp_path):
    return Counting(str(bert_dir), list(pair.tasks.values()), cache=tmp_path / "subsets")


@pytest.fixture
def config(bert_dir, pair):
    return MergeConfig(
        adapters=list(pair.adapters), base=str(bert_dir), method="uniform_delta", tasks=pair.registry, split="test"
    )


@pytest.fixture
def layout(tmp_path):
    return RunLayout(tmp_path / "artifacts")


def by_hand(bert_dir, state, rows, prompts):
    """Confusion matrix in numpy, from transformers' own model."""
    from transformers import AutoModel, AutoTokenizer

    base, tuned = AutoModel.from_pretrained(bert_dir).eval(), AutoModel.from_pretrained(bert_dir).eval()
    tuned.load_state_dict(state)
    tokenizer = AutoTokenizer.from_pretrained(bert_dir)

    @torch.no_grad()
    def embedded(model, text):
        tokens = tokenizer(text, return_tensors="pt")
        return F.normalize(model(**tokens).last_hidden_state[0].mean(0), dim=0).numpy()

    prototypes = np.stack([embedded(base, prompt) for prompt in prompts])
    counts = np.zeros((len(prompts), len(prompts)), dtype=int)
    for text, label in rows:
        counts[label, int(np.argmax(prototypes @ embedded(tuned, text)))] += 1
    return counts


def numpy_metrics(counts):
    f1 = [2 * counts[c, c] / (counts[c].sum() + counts[:, c].sum()) for c in range(len(counts))]
    return {"accuracy": np.trace(counts) / counts.sum(), "macro_f1": float(np.mean(f1))}


def test_a_merge_in_memory_is_measured_on_every_task_a10_1(bert_dir, pair, config, evaluator, layout):
    found = evaluate_merge(config, evaluator, layout)
    state = merge_state_dict(config.to_merge_spec())
    assert list(found.results) == ["praise", "noun"]
    for name, result in found.results.items():
        counts = by_hand(bert_dir, state, pair.rows(name, "test"), pair.prompts[name])
        assert result.confusion.tolist() == counts.tolist()
        for metric, value in numpy_metrics(counts).items():
            assert result.metrics[metric] == pytest.approx(value, abs=1e-6)
    assert found.errors == {}
    assert found.run.is_dir()


def test_interference_deltas_are_recorded_with_what_they_are_made_of_a10_4(bert_dir, pair, config, evaluator, layout):
    found = evaluate_merge(config, evaluator, layout)
    for name, report in found.report.items():
        scores = {
            what: evaluator.evaluate(state, name, "test").metrics["accuracy"]
            for what, state in {
                "base": None,
                "task_adapter": merge_state_dict(adapters=[pair.paths[name]], base=str(bert_dir)),
                "merged": merge_state_dict(config.to_merge_spec()),
            }.items()
        }
        meta = report["interference_delta_meta"]
        assert {what: meta[what] for what in scores} == pytest.approx(scores)
        assert (meta["metric"], meta["split"]) == ("accuracy", "test")
        expected = (scores["merged"] - scores["base"]) / (scores["task_adapter"] - scores["base"])
        assert report["interference_delta"] == pytest.approx(expected)
        assert found.deltas[name] == pytest.approx(expected)
    assert found.score.lowest == pytest.approx(min(found.deltas.values()))
    assert found.score.mean == pytest.approx(math.fsum(found.deltas.values()) / 2)


def test_no_delta_without_a_baseline_a_metric_or_a_gain_a10_4(bert_dir, pair, config, layout):
    lone = {name: replace(task, metric=None) for name, task in pair.tasks.items()}
    found = evaluate_merge(config, EncoderEvaluator(str(bert_dir), list(lone.values())), layout)
    assert all("interference_delta" not in report for report in found.report.values())
    assert found.deltas == {"praise": None, "noun": None}
    assert found.score.lowest is None
    without = replace(config, compute_missing_interference_baselines=False)
    found = evaluate_merge(without, EncoderEvaluator(str(bert_dir), list(pair.tasks.values())), layout)
    assert all("interference_delta" not in report for report in found.report.values())


def test_without_a_gain_both_scores_are_still_told(config, evaluator, layout, monkeypatch):
    monkeypatch.setattr("lit_wsl.evaluation.merged.interference_delta", lambda *_, **__: None)
    found = evaluate_merge(config, evaluator, layout)
    for report in found.report.values():
        assert "interference_delta" not in report
        assert {"base", "task_adapter", "merged"} <= report["interference_delta_meta"].keys()
        assert _cells(report)[1:3] == [f"{report['interference_delta_meta'][n]:.4f}" for n in ("base", "task_adapter")]
    assert set(found.deltas.values()) == {None}


def test_a_failing_task_has_an_error_and_the_others_go_on_a10_1(config, evaluator, layout):
    evaluator.broken = ("praise",)
    found = evaluate_merge(config, evaluator, layout)
    assert found.report["praise"] == {"error": "RuntimeError: no such thing"}
    assert found.report["noun"]["metrics"]["accuracy"] > 0
    assert found.errors == {"praise": "RuntimeError: no such thing"}
    assert found.score.lowest is None
    assert json.loads((found.run / "eval_results_test.json").read_text())["results"]["praise"]["error"]


def test_data_that_are_not_there_fail_one_task_a10_1(bert_dir, pair, config, layout, tmp_path):
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/task.json").write_text('{"labels": ["a", "b"]}')
    gone = Task("praise", TextClassificationData(str(bert_dir), task=str(tmp_path / "gone")))
    with pytest.raises(DataError):
        EncoderEvaluator(str(bert_dir), [gone]).evaluate(None, "praise", "test")
    found = evaluate_merge(config, EncoderEvaluator(str(bert_dir), [gone, pair.tasks["noun"]]), layout)
    assert "test.jsonl" in found.errors["praise"]
    assert "noun" in found.results


def test_ties_with_lambda_one_on_two_adapters_runs_the_model_a10_6(config, evaluator, layout, bert_dir, pair):
    ties = replace(config, method="ties", method_params={"k": 20, "lambda": 1.0})
    evaluate_merge(config, evaluator, layout)  # leaves the single adapters' metrics where a shortcut would find them
    evaluator.forwards.clear()
    found = evaluate_merge(ties, evaluator, layout)
    for name in pair.tasks:
        batches = math.ceil(len(pair.rows(name, "test")) / pair.tasks[name].data.batch_size)
        assert evaluator.forwards.count((name, "merged", "test")) == batches
    state = merge_state_dict(ties.to_merge_spec())
    alone = merge_state_dict(adapters=[pair.paths["praise"]], base=str(bert_dir))
    assert any(not torch.equal(state[name], alone[name]) for name in state)
    counts = by_hand(bert_dir, state, pair.rows("praise", "test"), pair.prompts["praise"])
    assert found.results["praise"].confusion.tolist() == counts.tolist()


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_every_endpoint_runs_the_model_a10_6(config, evaluator, layout, pair, lam):
    evaluate_merge(config, evaluator, layout)
    evaluator.forwards.clear()
    weighted = replace(config, method="weighted_delta", method_params={"lambda": lam})
    evaluate_merge(weighted, evaluator, layout)
    assert {task for task, what, _ in evaluator.forwards if what == "merged"} == set(pair.tasks)


def test_baselines_are_measured_once_a10_5(config, evaluator, layout, bert_dir, pair):
    evaluate_merge(config, evaluator, layout)
    first = [asked for asked in evaluator.forwards if asked[1] == "base"]
    assert first
    other = Counting(str(bert_dir), list(pair.tasks.values()))  # another process would start like this
    evaluate_merge(replace(config, method="task_arithmetic"), other, layout)
    assert all(what == "merged" for _, what, _ in other.forwards)
    batches = sum(math.ceil(len(pair.rows(n, "test")) / t.data.batch_size) for n, t in pair.tasks.items())
    assert len(other.forwards) == batches + 2  # the two heads embed their prompts


def test_baseline_files_have_their_names_a10_5(config, evaluator, layout):
    evaluate_merge(config, evaluator, layout)
    evaluate_merge(replace(config, eval_subset={"max_samples": 6}), evaluator, layout)
    tag = SubsetSpec(max_samples=6).tag
    found = {path.name for path in (layout.root / "praise/metrics/eval/test").glob("*.json")}
    assert found == {
        "base_model.json",
        "best_praise_adapter.json",
        f"base_model__{tag}.json",
        f"best_praise_adapter__{tag}.json",
    }


def test_a_baseline_of_other_content_is_measured_again_a10_9(config, evaluator, layout, bert_dir, pair):
    evaluate_merge(config, evaluator, layout)
    path = layout.baseline_file("praise", "test", adapter=False)
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "score": 0.123}))
    baselines = Baselines(evaluator, layout, str(bert_dir))
    assert baselines.base("praise", "test") == 0.123  # the content is the same, so the file is believed
    path.write_text(json.dumps({**kept, "score": 0.123, "content": "other"}))
    assert Baselines(evaluator, layout, str(bert_dir)).base("praise", "test") == pytest.approx(kept["score"])
    path.write_text('{"score": ')
    assert Baselines(evaluator, layout, str(bert_dir)).base("praise", "test") == pytest.approx(kept["score"])
    other = replace(pair.tasks["praise"], metric="macro_f1")
    measured = EncoderEvaluator(str(bert_dir), [other])
    assert Baselines(measured, layout, None).base("praise", "test") == pytest.approx(
        measured.evaluate(None, "praise", "test").metrics["macro_f1"]
    )


def test_a_baseline_that_fails_is_told_and_leaves_no_delta_a10_5(config, bert_dir, pair, layout, caplog):
    tasks = [replace(pair.tasks["praise"], adapter="no/such/adapter"), pair.tasks["noun"]]
    found = evaluate_merge(config, EncoderEvaluator(str(bert_dir), tasks), layout)
    assert found.deltas["praise"] is None
    assert found.deltas["noun"] is not None
    assert "no/such/adapter cannot be measured" in caplog.text


def test_tagged_runs_read_tagged_baselines_only_a10_5(config, evaluator, layout):
    evaluate_merge(config, evaluator, layout)
    tagged = replace(config, eval_subset={"max_samples": 6}, compute_missing_interference_baselines=False)
    assert evaluate_merge(tagged, evaluator, layout).deltas == {"praise": None, "noun": None}


def test_results_of_a_subset_lie_beside_those_of_the_split_a10_7(config, evaluator, layout):
    whole = evaluate_merge(config, evaluator, layout)
    part = evaluate_merge(replace(config, eval_subset={"max_samples": 6, "stratified": True}), evaluator, layout)
    assert part.subset.startswith("subset_")
    names = {p.name for p in layout.eval_dir("uniform_delta", ["praise", "noun"], "test").glob("*.json")}
    assert len(names) == 2
    assert sum(part.subset in name for name in names) == 1
    assert (whole.results["noun"].rows, part.results["noun"].rows) == (16, 6)
    assert (part.run / f"eval_results_test__{part.subset}.json").is_file()


def test_the_seed_layout_is_written(config, evaluator, layout):
    found = evaluate_merge(config, evaluator, layout)
    assert {"merge_metadata.json", "eval_results_test.json", "summary.json"} <= {p.name for p in found.run.iterdir()}
    summary = json.loads((found.run / "summary.json").read_text())
    tag = summary["merge_tag"]
    assert layout.eval_file("uniform_delta", ["praise", "noun"], "test", tag).is_file()
    entries = read_index(layout.index_file("uniform_delta", ["praise", "noun"]))
    assert [(e["merge_tag"], e["evaluated_tasks"]) for e in entries] == [(tag, ["noun", "praise"])]
    link = layout.root / f"praise/metrics/eval/test/merged/noun/{tag}/metrics.json"
    assert json.loads(link.read_text()) == json.loads(json.dumps(found.report["praise"]))


def test_nothing_is_written_on_request(config, evaluator, layout):
    found = evaluate_merge(config, evaluator, layout, save_results=False)
    assert found.run is None
    assert not layout.root.exists()


def test_confusion_matrices_lie_beside_the_metrics_a10_10(config, evaluator, layout):
    found = evaluate_merge(config, evaluator, layout)
    folder = layout.eval_dir("uniform_delta", ["praise", "noun"], "test") / "per_task/praise"
    [picture], [record] = folder.glob("*.png"), folder.glob("*confusion_matrix.json")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {picture, record} <= set(found.files)
    content = json.loads(record.read_text())
    assert content["counts"] == found.results["praise"].confusion.tolist()
    assert content["labels"] == ["negative", "positive"]
    none = evaluate_merge(replace(config, method="task_arithmetic"), evaluator, layout, confusion=False)
    assert none.files == []


def test_saved_models_adapters_and_deltas_score_what_the_merge_scores_a10_2(config, evaluator, layout, tmp_path):
    expected = evaluate_merge(config, evaluator, layout, save_results=False).report
    for kind in ("adapter", "delta", "model"):
        output = tmp_path / kind
        merge(config.to_merge_spec(), output=str(output), output_format=kind)
        before = sorted(p.name for p in output.iterdir())
        found = evaluate_saved(output, evaluator, layout, eval_tasks=["praise", "noun"], base=config.base)
        assert sorted(p.name for p in output.iterdir()) == before
        assert found.run.parent.name == "runs"
        for name, report in found.report.items():
            assert report["metrics"] == pytest.approx(expected[name]["metrics"], abs=1e-5)
            assert report["interference_delta"] == pytest.approx(expected[name]["interference_delta"])


def test_a_run_is_evaluated_again_from_its_metadata_a10_2(config, evaluator, layout):
    first = evaluate_merge(config, evaluator, layout)
    again = evaluate_saved(first.run, evaluator, layout, split="validation")
    assert again.run == first.run
    expected = evaluate_merge(replace(config, split="validation"), evaluator, layout, save_results=False)
    assert again.report == expected.report
    assert {"eval_results_test.json", "eval_results_validation.json"} <= {p.name for p in first.run.iterdir()}
    assert len(list_runs(layout)) == 1


def test_unknown_tasks_are_refused_before_any_work(config, evaluator, layout):
    with pytest.raises(ConfigError, match="Did you mean 'praise'"):
        evaluate_merge(replace(config, eval_tasks=["prase"]), evaluator, layout)
    assert evaluator.forwards == []


def test_a_single_file_of_weights_is_a_saved_model_a10_2(config, evaluator, layout, tmp_path):
    merge(config.to_merge_spec(), output=str(tmp_path / "out"), output_format="model")
    (tmp_path / "out/model.safetensors").rename(tmp_path / "noun.safetensors")
    found = evaluate_saved(tmp_path / "noun.safetensors", evaluator, layout, base=config.base)
    expected = evaluate_merge(config, evaluator, layout, save_results=False)
    assert list(found.results) == ["noun"]
    assert found.results["noun"].metrics == pytest.approx(expected.results["noun"].metrics)
    bare = evaluate_saved(tmp_path / "noun.safetensors", evaluator, layout, save_results=False)
    assert bare.results["noun"].metrics == found.results["noun"].metrics


def test_a_directory_that_says_nothing_is_refused(evaluator, layout, tmp_path):
    with pytest.raises(ConfigError, match="does not say which tasks"):
        evaluate_saved(tmp_path, evaluator, layout)
    with pytest.raises(CheckpointError, match="has no weights"):
        evaluate_saved(tmp_path, evaluator, layout, eval_tasks=["noun"], save_results=False)


@pytest.mark.parametrize("method", ["uniform_delta", "weighted_delta", "weighted_delta_n", "dare", "ties"])
def test_what_could_not_be_saved_is_saved_with_its_run_a2_11(config, evaluator, layout, method):
    found = evaluate_merge(replace(config, method=method), evaluator, layout, save_merged=True)
    assert (found.run / "adapter_model.safetensors").is_file()
    assert evaluate_saved(found.run, evaluator, layout).deltas.keys() == found.deltas.keys()


def test_weights_that_cannot_be_saved_are_refused_before_anything_runs_a2_11(config, evaluator, layout, tmp_path):
    full = replace(config, exclude=["*"])
    with pytest.raises(LitWslError):
        evaluate_merge(full, evaluator, layout, save_merged=True)
    assert evaluator.forwards == []
    assert list_runs(layout) == []
    assert not list(layout.root.rglob("run_*"))
    with pytest.raises(ConfigError, match="needs `save_results`"):
        evaluate_merge(config, evaluator, layout, save_results=False, save_merged=True)


def test_a_score_that_is_no_number_is_a_failure(config, bert_dir, pair, layout):
    lossy = [replace(pair.tasks["praise"], metric="loss"), pair.tasks["noun"]]
    evaluator = EncoderEvaluator(str(bert_dir), lossy)
    state = merge_state_dict(config.to_merge_spec())
    state["embeddings.LayerNorm.weight"] = state["embeddings.LayerNorm.weight"] * math.inf
    found = evaluate_merge(config, evaluator, layout, state=state)
    assert "loss is nan" in found.errors["praise"]
    assert found.score.lowest is None
    assert "NaN" not in (found.run / "eval_results_test.json").read_text()


def test_training_rows_are_measured_on_request(config, evaluator, layout, pair):
    found = evaluate_merge(replace(config, split="train"), evaluator, layout)
    assert found.results["noun"].rows == len(pair.rows("noun", "train"))
