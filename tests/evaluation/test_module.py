"""Backbones of any LightningModule, through Lightning's own loops."""

import json

import lightning
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.evaluation import EncoderEvaluator, ModuleEvaluator, SubsetSpec, Task, evaluate_merge, load_tasks
from lit_wsl.evaluation.split_loader import classes_of
from lit_wsl.merging import merge_state_dict
from lit_wsl.merging.config import MergeConfig
from lit_wsl.runs import RunLayout
from lit_wsl.training.classification import SequenceClassificationModule
from lit_wsl.training.text import TextClassificationData
from tests.evaluation.pair import write_pair


class Points(lightning.LightningDataModule):
    """Points of the plane with a class, by the sign of the sum."""

    def __init__(self, rows=30, labels=True):
        super().__init__()
        inputs = torch.randn(rows, 2, generator=torch.Generator().manual_seed(5))
        self.parts = (inputs, (inputs.sum(1) > 0).long()) if labels else (inputs,)

    def val_dataloader(self):
        return DataLoader(TensorDataset(*self.parts), batch_size=7)

    def test_dataloader(self):
        return DataLoader(TensorDataset(*(part[:20] for part in self.parts)), batch_size=7)


class Plane(lightning.LightningModule):
    """A linear classifier that logs a loss and an error rate, with weights under `body`."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(2, 2)
        self.rows = 0

    def _log(self, stage, batch):
        logits = self.body(batch[0])
        self.rows += len(logits)
        error = (logits.argmax(1) != batch[1]).float().mean()
        self.log_dict({f"{stage}/error": error, f"{stage}_loss": F.cross_entropy(logits, batch[1])})

    def validation_step(self, batch, batch_idx):
        self._log("val", batch)

    def test_step(self, batch, batch_idx):
        self._log("test", batch)


def perfect():
    return {"weight": torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), "bias": torch.zeros(2)}


def evaluator(tmp_path, data=None, **fields):
    task = Task("points", data or Points(), **{"metric": "error", "backbone": "body", "model": Plane(), **fields})
    return ModuleEvaluator([task], trainer={"accelerator": "cpu"}, cache=tmp_path)


@pytest.mark.parametrize(("split", "rows"), [("validation", 30), ("test", 20)])
def test_what_the_module_logs_is_what_counts(tmp_path, split, rows):
    measuring = evaluator(tmp_path)
    result = measuring.evaluate(perfect(), "points", split)
    inputs, labels = (part[:rows] for part in Points().parts)
    logits = inputs @ perfect()["weight"].T
    assert result.metrics["error"] == 0
    assert result.metrics["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-5)
    assert (result.primary, result.direction, result.rows, result.score) == ("error", "min", rows, 0)
    flipped = {name: -tensor for name, tensor in perfect().items()}
    assert measuring.evaluate(flipped, "points", split).score == 1


@pytest.mark.parametrize("metric", ["loss", "val/loss", "val_loss", "test_loss"])
def test_a_metric_is_found_with_and_without_its_stage(tmp_path, metric):
    assert evaluator(tmp_path, metric=metric).evaluate(None, "points", "test").primary == "loss"


def test_the_base_comes_back_between_evaluations(tmp_path):
    measuring = evaluator(tmp_path)
    before, key = measuring.evaluate(None, "points", "test"), measuring.digest("points", "test")
    measuring.evaluate(perfect(), "points", "test")
    assert measuring.digest("points", "test") == key
    assert measuring.evaluate(None, "points", "test").metrics == before.metrics


def test_a_subset_runs_only_its_rows_a10_7(tmp_path):
    measuring = evaluator(tmp_path)
    module = measuring.registry["points"].model
    result = measuring.evaluate(perfect(), "points", "test", SubsetSpec(max_samples=8, stratified=True))
    assert (module.rows, result.rows) == (8, 8)
    rows = json.loads(next(tmp_path.iterdir()).read_text())["indices"]
    labels = Points().parts[1][:20]
    share = 8 * float(labels.float().mean())
    assert abs(int(labels[rows].sum()) - share) < 1


def test_a_subset_is_given_by_its_size_too(tmp_path):
    measuring = evaluator(tmp_path)
    found = measuring.evaluate(perfect(), "points", "test", 8)
    assert found.rows == 8
    assert measuring.scores(perfect(), "test", 8) == {"points": found.score}
    assert measuring.digest("points", "test", 8) == measuring.digest("points", "test", {"max_samples": 8})


def test_rows_that_tell_no_class_are_refused_a10_7(tmp_path):
    measuring = evaluator(tmp_path, label_column="label")
    with pytest.raises(ConfigError, match="label_column"):
        measuring.evaluate(None, "points", "test", SubsetSpec(max_samples=8, stratified=True))


def test_classes_of_mappings_and_tables_a10_7():
    rows = [{"x": 1, "label": "a"}, {"x": 2, "label": "b"}]
    assert classes_of(rows, "label") == ["a", "b"]

    class Table:
        column_names = ("x", "label")

        def __getitem__(self, name):
            return [row[name] for row in rows]

    assert classes_of(Table(), "label") == ["a", "b"]
    with pytest.raises(ConfigError, match="label_column"):
        classes_of(rows, None)


def test_a_stream_has_no_subset(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    class Streamed(Points):
        def test_dataloader(self):
            return DataLoader(Stream())

    with pytest.raises(ConfigError, match="dataset with indices"):
        evaluator(tmp_path, Streamed()).evaluate(None, "points", "test", SubsetSpec(max_samples=3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"metric": "eror"}, "Did you mean 'error'"), ({"backbone": "bdy"}, "Did you mean 'body'")],
)
def test_unknown_metrics_and_parts_are_named(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        evaluator(tmp_path, **fields).evaluate(None, "points", "test")


def test_other_state_dicts_and_splits_are_refused(tmp_path):
    measuring = evaluator(tmp_path)
    with pytest.raises(CheckpointError, match="bias"):
        measuring.evaluate({"weight": torch.zeros(2, 2)}, "points", "test")
    with pytest.raises(ConfigError, match="Did you mean 'test'"):
        measuring.evaluate(None, "points", "tset")
    with pytest.raises(ConfigError, match="Did you mean 'points'"):
        measuring.evaluate(None, "point", "test")


def test_a_module_scores_what_the_encoder_evaluator_scores(bert_dir, tmp_path):
    pair = write_pair(bert_dir, tmp_path)
    model = {
        "class_path": "lit_wsl.training.classification.SequenceClassificationModule",
        "init_args": {"model": str(bert_dir), "labels": ["negative", "positive"], "prompts": pair.prompts["praise"]},
    }
    registry = {"praise": {**pair.registry["praise"], "model": model, "metric": "acc"}}
    task = load_tasks(registry)["praise"]
    assert isinstance(task.model, SequenceClassificationModule)
    assert isinstance(task.data, TextClassificationData)
    config = MergeConfig(
        adapters=pair.adapters, base=str(bert_dir), method="ties", tasks=pair.registry, eval_tasks=["praise"]
    )
    by_module = evaluate_merge(
        config,
        ModuleEvaluator([task], trainer={"accelerator": "cpu"}),
        RunLayout(tmp_path / "one"),
    )
    by_encoder = evaluate_merge(
        config,
        EncoderEvaluator(str(bert_dir), [pair.tasks["praise"]]),
        RunLayout(tmp_path / "two"),
    )
    assert by_module.results["praise"].score == pytest.approx(by_encoder.results["praise"].score, abs=1e-6)
    assert by_module.deltas == pytest.approx(by_encoder.deltas, abs=1e-5)
    state = merge_state_dict(config.to_merge_spec())
    measuring = ModuleEvaluator([task], trainer={"accelerator": "cpu"}, cache=tmp_path)
    subset, encoder = (
        SubsetSpec(max_samples=5, shuffle=True),
        EncoderEvaluator(str(bert_dir), [pair.tasks["praise"]], cache=tmp_path),
    )
    expected = encoder.evaluate(state, "praise", "test", subset)
    found = measuring.evaluate(state, "praise", "test", subset)
    assert found.score == pytest.approx(expected.score, abs=1e-6)
    assert found.metrics["loss"] == pytest.approx(expected.metrics["loss"], abs=1e-4)
