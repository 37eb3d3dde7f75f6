import json

import lightning
import peft
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F
from torchmetrics import Metric
from transformers import AutoModel, AutoTokenizer

from lit_wsl.callbacks.save_adapter import SaveAdapter
from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.models.lora import LoraSpec
from lit_wsl.training.classification import SequenceClassificationModule
from lit_wsl.training.encoder import PromptHead, class_prototypes, embed
from lit_wsl.training.text import TextClassificationData


def _adam(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


def _trainer(tmp_path, **settings):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False, **(quiet | settings)
    )


def _pair(bert_dir, opinions, lora, head="prompt", **settings):
    data = TextClassificationData(str(bert_dir), task=str(opinions), batch_size=8)
    module = SequenceClassificationModule(
        str(bert_dir), lora, head, labels=data.labels, prompts=data.prompts, optimizer=_adam, **settings
    )
    return module, data


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=4, lora_alpha=8, dropout=0.1)], ids=["whole", "lora"])
@pytest.mark.parametrize("head", ["prompt", "linear"])
def test_fit_learns_and_writes_what_it_learned(bert_dir, opinions, tmp_path, lora, head):
    module, data = _pair(bert_dir, opinions, lora, head)
    trainer = _trainer(tmp_path, max_epochs=6, callbacks=[SaveAdapter(tmp_path / "out")])
    before = trainer.validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    after = trainer.validate(module, data, verbose=False)[0]
    assert after["val/loss"] < 0.7 * before["val/loss"]
    assert after["val/acc"] >= 0.9
    assert after["val/f1"] >= 0.9
    encoder = AutoModel.from_pretrained(bert_dir if lora else tmp_path / "out")
    if lora:
        encoder = peft.PeftModel.from_pretrained(encoder, tmp_path / "out")
    batch = next(iter(data.test_dataloader()))
    torch.testing.assert_close(embed(encoder.eval(), batch), embed(module.encoder.eval(), batch))
    with safe_open(tmp_path / "out" / "head.safetensors", "pt") as file:
        assert json.loads(file.metadata()["labels"]) == ["negative", "positive"]
        for name, tensor in module.head.state_dict().items():
            torch.testing.assert_close(file.get_tensor(name), tensor)


def test_metrics_equal_counts_by_hand(bert_dir, opinions, tmp_path):
    module, data = _pair(bert_dir, opinions, None)
    logged = _trainer(tmp_path).test(module, data, verbose=False)[0]
    batches = list(data.test_dataloader())
    with torch.no_grad():
        logits = torch.cat([module.eval()(batch) for batch in batches])
    targets = torch.cat([batch["labels"] for batch in batches])
    predicted = logits.argmax(dim=1)
    f1 = []
    for label in range(2):
        hits = ((predicted == label) & (targets == label)).sum()
        f1.append(2 * hits / ((predicted == label).sum() + (targets == label).sum()))
    assert logged["test/acc"] == pytest.approx((predicted == targets).float().mean().item())
    assert logged["test/f1"] == pytest.approx(torch.stack(f1).mean().item())
    assert logged["test/loss"] == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)


def test_the_prompt_head_is_the_base_encoders_whatever_the_adapter(bert_dir, opinions):
    module, data = _pair(bert_dir, opinions, LoraSpec(rank=2, init_lora_weights=False))
    base = AutoModel.from_pretrained(bert_dir)
    expected = class_prototypes(base, AutoTokenizer.from_pretrained(bert_dir), data.prompts)
    torch.testing.assert_close(module.head.prototypes, expected)
    batch = next(iter(data.test_dataloader()))
    assert not torch.allclose(module.eval()(batch), PromptHead(expected)(embed(base.eval(), batch)))


def test_the_optimizer_gets_named_trainable_parameters_only(bert_dir, opinions):
    module, _ = _pair(bert_dir, opinions, LoraSpec(rank=2), head="linear")
    groups = module.configure_optimizers().param_groups
    names = [name for group in groups for name in group["param_names"]]
    assert {name.split(".")[0] for name in names} == {"encoder", "head"}
    assert all("lora_" in name for name in names if name.startswith("encoder"))
    assert len(names) == sum(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=2)], ids=["whole", "lora"])
def test_every_trainable_parameter_gets_a_gradient(bert_dir, opinions, lora):
    module, data = _pair(bert_dir, opinions, lora)
    F.cross_entropy(module(batch := next(iter(data.train_dataloader()))), batch["labels"]).backward()
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_schedule_is_passed_on(bert_dir, opinions):
    module, _ = _pair(bert_dir, opinions, None, lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=1))
    assert isinstance(module.configure_optimizers()["lr_scheduler"]["scheduler"], torch.optim.lr_scheduler.StepLR)


def test_dropout_of_the_encoder(bert_dir, opinions):
    for given, expected in ((0.0, {0.0}), (None, {0.1}), (0.3, {0.3})):
        module, _ = _pair(bert_dir, opinions, None, encoder_dropout=given)
        assert module.encoder.training
        assert {m.p for m in module.encoder.modules() if isinstance(m, torch.nn.Dropout)} == expected
    with pytest.raises(ConfigError, match="encoder_dropout < 1"):
        _pair(bert_dir, opinions, None, encoder_dropout=1.0)


def test_a_checkpoint_rebuilds_the_module(bert_dir, opinions, tmp_path):
    module, data = _pair(bert_dir, opinions, LoraSpec(rank=2))
    trainer = _trainer(tmp_path, max_epochs=1)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = SequenceClassificationModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert again.lora == module.lora
    batch = next(iter(data.test_dataloader()))
    torch.testing.assert_close(again.eval()(batch), module.eval()(batch))


def test_predictions_are_probabilities_in_file_order(bert_dir, opinions, tmp_path):
    module, data = _pair(bert_dir, opinions, None)
    probabilities = torch.cat(_trainer(tmp_path).predict(module, data))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(16))
    first = json.loads((opinions / "test.jsonl").read_text().splitlines()[0])["text"]
    alone = AutoTokenizer.from_pretrained(bert_dir)([first], return_tensors="pt")
    torch.testing.assert_close(probabilities[:1], module.eval()(alone).softmax(dim=-1).detach())


@pytest.mark.parametrize(
    "classes", [{}, {"labels": ["one"]}, {"labels": list("aba")}, {"labels": ["a", "b"], "prompts": ["a"]}]
)
def test_classes_are_checked(bert_dir, classes):
    with pytest.raises(ConfigError, match="label"):
        SequenceClassificationModule(str(bert_dir), **classes)


def test_no_adapter_without_lora(bert_dir, opinions, tmp_path):
    module, _ = _pair(bert_dir, opinions, None)
    with pytest.raises(ConfigError, match="save_pretrained"):
        module.save_adapter(tmp_path / "out")


@pytest.mark.parametrize("head", ["prompt", "linear"])
def test_a_saved_adapter_scores_what_it_scored(bert_dir, opinions, tmp_path, head):
    module, data = _pair(bert_dir, opinions, LoraSpec(rank=4, lora_alpha=8), head)
    trainer = _trainer(tmp_path, max_epochs=3, callbacks=[SaveAdapter(tmp_path / "out")])
    trainer.fit(module, data)
    expected = trainer.test(module, data, verbose=False)[0]
    again, _ = _pair(bert_dir, opinions, LoraSpec(rank=4, lora_alpha=8), head, init_adapter=tmp_path / "out")
    assert _trainer(tmp_path).test(again, data, verbose=False)[0] == pytest.approx(expected, abs=1e-6)


def test_an_adapter_of_another_form_is_refused(bert_dir, opinions, tmp_path):
    module, _ = _pair(bert_dir, opinions, LoraSpec(rank=4, lora_alpha=8))
    module.save_adapter(tmp_path / "out")
    with pytest.raises(CheckpointError, match="rank 4"):
        _pair(bert_dir, opinions, LoraSpec(rank=2, lora_alpha=8), init_adapter=tmp_path / "out")
    with pytest.raises(CheckpointError, match="does not fit"):
        spec = LoraSpec(rank=4, lora_alpha=8, target_modules=["query"])
        _pair(bert_dir, opinions, spec, init_adapter=tmp_path / "out")
    form, _ = _pair(bert_dir, opinions, None, init_adapter=tmp_path / "out")
    assert (form.lora.rank, form.lora.lora_alpha) == (4, 8)


@pytest.mark.parametrize("head", ["prompt", "linear"])
def test_a_head_of_another_kind_or_size_starts_no_linear_head(bert_dir, opinions, tmp_path, head):
    module, _ = _pair(bert_dir, opinions, LoraSpec(rank=4), head)
    module.save_adapter(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"head\.safetensors.* is no linear head of 3 classes"):
        SequenceClassificationModule(str(bert_dir), None, "linear", tmp_path / "out", labels=["a", "b", "c"])


def test_every_figure_is_of_a_metric_so_of_all_processes(bert_dir, opinions):
    """A bare loss would be that of the first process alone."""
    module, data = _pair(bert_dir, opinions, None)
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: value})
    module.validation_step(next(iter(data.val_dataloader())), 0)
    assert logged.keys() == {"val/loss", "val/acc", "val/f1"}
    assert all(isinstance(value, Metric) for value in logged.values())
