import lightning
import pytest
import torch

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.evaluation import EncoderEvaluator, SubsetSpec, Task
from lit_wsl.merging import merge_state_dict
from lit_wsl.models.lora import LoraSpec
from lit_wsl.training.classification import SequenceClassificationModule
from lit_wsl.training.encoder import embed
from lit_wsl.training.text import TextClassificationData


@pytest.fixture(scope="session")
def bert(bert_dir):
    return str(bert_dir)


@pytest.fixture(scope="module")
def trained(bert, opinions, tmp_path_factory):
    """A LoRA trained on the opinions: the module, its data, its adapter directory."""
    torch.manual_seed(0)
    data = TextClassificationData(bert, task=str(opinions), batch_size=8)
    spec = LoraSpec(rank=4, lora_alpha=8)
    module = SequenceClassificationModule(
        bert, spec, labels=data.labels, prompts=data.prompts, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2)
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=6, enable_model_summary=False, **quiet)
    trainer.fit(module, data)
    directory = tmp_path_factory.mktemp("adapter") / "opinions"
    module.save_adapter(directory)
    return module, data, trainer, str(directory)


def evaluator(bert, opinions, **settings):
    task = Task("opinions", TextClassificationData(bert, task=str(opinions), batch_size=16), **settings)
    return EncoderEvaluator(bert, [task]), task


@pytest.mark.parametrize(("metric", "logged"), [("accuracy", "acc"), ("macro_f1", "f1")])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_merged_adapter_scores_what_the_trainer_logs(bert, opinions, trained, metric, logged, split):
    module, data, trainer, adapter = trained
    measuring, _ = evaluator(bert, opinions, metric=metric)
    merged = merge_state_dict(adapters=[adapter], base=bert, method="uniform_delta")
    run = trainer.validate if split == "validation" else trainer.test
    expected = run(module, data, verbose=False)[0][f"{'val' if split == 'validation' else 'test'}/{logged}"]
    assert measuring.scores(merged, split)["opinions"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("subset", [{"max_samples": 7}, 7])
def test_a_subset_is_given_by_its_fields_or_its_size(bert, opinions, subset):
    measuring, task = evaluator(bert, opinions)
    spec = SubsetSpec(max_samples=7)
    found = measuring.evaluate(None, task.name, "test", subset)
    assert found.rows == 7
    assert found.metrics == measuring.evaluate(None, task.name, "test", spec).metrics
    assert measuring.scores(None, "test", subset) == {task.name: found.score}
    assert measuring.digest(task.name, "test", subset) == measuring.digest(task.name, "test", spec)


def test_base_is_restored_between_evaluations(bert, opinions, trained):
    measuring, task = evaluator(bert, opinions)
    before = measuring.scores(None, "test")
    tuned = measuring.scores(merge_state_dict(adapters=[trained[3]], base=bert), "test")
    assert tuned["opinions"] > before["opinions"]
    assert measuring.scores(None, "test") == before
    assert measuring.evaluate(None, task.name, "test").score == before["opinions"]


def test_incomplete_state_is_refused(bert, opinions):
    measuring, _ = evaluator(bert, opinions)
    state = merge_state_dict(models=[bert], base=bert)
    lost = "encoder.layer.0.attention.self.query.weight"
    del state[lost]
    with pytest.raises(CheckpointError, match=lost):
        measuring.scores(state, "test")


def test_a_head_from_a_file_is_used(bert, opinions, tmp_path):
    data = TextClassificationData(bert, task=str(opinions))
    module = SequenceClassificationModule(bert, LoraSpec(rank=2), "linear", labels=data.labels)
    batches = list(data.test_dataloader())
    with torch.no_grad():
        embeddings = torch.cat([embed(module.encoder.eval(), batch) for batch in batches])
        labels = torch.cat([batch["labels"] for batch in batches])
        means = torch.stack([embeddings[labels == c].mean(0) for c in (0, 1)])
        module.head.weight.copy_(means)
        module.head.bias.copy_(-means.square().sum(1) / 2)  # the nearest class mean: better than chance
        expected = float((module.head(embeddings).argmax(1) == labels).float().mean())
    module.save_adapter(tmp_path / "out")
    with_file, _ = evaluator(bert, opinions, head=tmp_path / "out/head.safetensors")
    with_prompts, _ = evaluator(bert, opinions)
    assert with_file.scores(None, "test")["opinions"] == pytest.approx(expected)
    assert with_prompts.scores(None, "test")["opinions"] != pytest.approx(expected)


def test_unknown_splits_and_wrong_shapes_are_refused(bert, opinions):
    measuring, _ = evaluator(bert, opinions)
    with pytest.raises(ConfigError, match="tset"):
        measuring.scores(None, "tset")
    state = merge_state_dict(models=[bert], base=bert)
    name = "encoder.layer.0.attention.self.query.weight"
    state[name] = state[name][:3]
    with pytest.raises(CheckpointError, match=name):
        measuring.scores(state, "test")
