import lightning
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from lit_wsl.callbacks.save_adapter import SaveAdapter
from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.models.export import export_checkpoint
from lit_wsl.models.lora import LoraSpec
from lit_wsl.training.causal_lm import CausalLMModule
from lit_wsl.training.classification import SequenceClassificationModule
from lit_wsl.training.text import TextClassificationData
from tests.models.checkpoints import output
from tests.training.build import batches


def _trainer(tmp_path, **settings):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False, **(quiet | settings)
    )


def _pair(bert_dir, opinions, lora):
    data = TextClassificationData(str(bert_dir), task=str(opinions), batch_size=8)
    return SequenceClassificationModule(str(bert_dir), lora, labels=data.labels, prompts=data.prompts), data


def test_the_callback_refuses_a_foreign_module_before_training(tmp_path):
    from lightning.pytorch.demos.boring_classes import BoringModel

    trainer = _trainer(tmp_path, max_epochs=1, callbacks=[SaveAdapter(tmp_path / "out")])
    with pytest.raises(ConfigError, match="BoringModel has no `save_pretrained`"):
        trainer.fit(BoringModel())


def test_a_directory_that_cannot_be_written_shows_before_training(bert_dir, opinions, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    module, data = _pair(bert_dir, opinions, LoraSpec(rank=2))
    trainer = _trainer(tmp_path, max_epochs=1, callbacks=[SaveAdapter(tmp_path / "out")])
    with pytest.raises(CheckpointError, match="not written by lit-wsl"):
        trainer.fit(module, data)
    assert trainer.global_step == 0


def test_a_trial_run_leaves_the_adapter_alone(bert_dir, opinions, tmp_path):
    module, data = _pair(bert_dir, opinions, LoraSpec(rank=2))
    _trainer(tmp_path, fast_dev_run=True, callbacks=[SaveAdapter(tmp_path / "out")]).fit(module, data)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_adapters_that_fit_no_base_are_refused_before_training(bert_dir, opinions, tmp_path, init):
    module, data = _pair(bert_dir, opinions, LoraSpec(rank=2, init_lora_weights=init))
    trainer = _trainer(tmp_path, max_epochs=1, callbacks=[SaveAdapter(tmp_path / "out")])
    with pytest.raises(CheckpointError, match="lit-wsl export CKPT --format hf"):
        trainer.fit(module, data)
    assert trainer.global_step == 0
    _trainer(tmp_path, callbacks=[SaveAdapter(tmp_path / "out")]).validate(module, data, verbose=False)


class Rows(CausalLMModule):
    """Takes bare rows of tokens."""

    def training_step(self, batch, batch_idx):
        return super().training_step({"input_ids": batch, "labels": batch}, batch_idx)


def _train(folder, module, *, epochs=1, ckpt_path=None, **settings):
    trainer = _trainer(folder, max_epochs=epochs, **settings)
    trainer.fit(module, batches(), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "last.ckpt")
    return trainer


def _with_adapter(base, directory):
    return output(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), directory))


@pytest.mark.parametrize("sidecar", ["exact", "factors"])
def test_a_resumed_run_saves_an_adapter_of_the_base(llama_dir, tmp_path, sidecar):
    first = Rows(str(llama_dir), LoraSpec(rank=2))
    first.sidecar = sidecar
    _train(tmp_path, first)
    path, save = tmp_path / "last.ckpt", SaveAdapter(tmp_path / "out")
    module = Rows(str(llama_dir), LoraSpec(rank=2))
    _train(tmp_path, module, epochs=2, ckpt_path=path, callbacks=[save])
    torch.testing.assert_close(_with_adapter(llama_dir, tmp_path / "out"), output(module.model), rtol=0, atol=2e-5)
    export_checkpoint(path, tmp_path / "export", format="adapter")  # its side-car has the base that was taken out


@pytest.mark.parametrize("before", [LoraSpec(rank=2), None], ids=["another rank", "full fine-tuning"])
def test_another_base_under_the_adapters_shows_at_the_start(llama_dir, tmp_path, before):
    _train(tmp_path, Rows(str(llama_dir), before))
    module, save = Rows(str(llama_dir), LoraSpec(rank=4)), SaveAdapter(tmp_path / "out")
    trainer = _trainer(tmp_path, max_epochs=2, callbacks=[save])
    with pytest.raises(CheckpointError, match=r"The adapters do not belong to .* base tensors differ, first") as error:
        trainer.fit(module, batches(), ckpt_path=tmp_path / "last.ckpt")
    assert "'model." in str(error.value)
    assert "`lit-wsl export CKPT --format hf` and use that as the base" in str(error.value)
    assert "\n" not in str(error.value)
    assert trainer.global_step == 5, "that of the checkpoint"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["bf16-true", "own class"])
def test_narrow_weights_and_classes_of_the_user(llama_dir, tmp_path, kind):
    class Mine(LlamaForCausalLM):
        def __init__(self, config, secret):
            super().__init__(config)

    def make():
        module = Rows(str(llama_dir), LoraSpec(rank=2))
        module.sidecar = "factors"
        if kind == "own class":
            module.model.__class__ = Mine
        return module

    settings = {} if kind == "own class" else {"precision": kind}
    _train(tmp_path, make(), **settings)
    save = SaveAdapter(tmp_path / "out")
    _train(tmp_path, make(), epochs=2, ckpt_path=tmp_path / "last.ckpt", callbacks=[save], **settings)
    assert (tmp_path / "out" / "adapter_config.json").exists()


def test_the_remedy_works(llama_dir, tmp_path):
    _train(tmp_path, Rows(str(llama_dir), LoraSpec(rank=2)))
    export_checkpoint(tmp_path / "last.ckpt", tmp_path / "base")
    module = Rows(str(tmp_path / "base"), LoraSpec(rank=4))
    _train(tmp_path, module, callbacks=[SaveAdapter(tmp_path / "out")])
    expected = output(module.model)
    torch.testing.assert_close(_with_adapter(tmp_path / "base", tmp_path / "out"), expected, rtol=0, atol=2e-5)


def test_a_trained_base_is_refused_at_the_start(llama_dir, tmp_path):
    module = Rows(str(llama_dir), LoraSpec(rank=2))
    module.model.model.norm.requires_grad_(True)
    trainer = _trainer(tmp_path, max_epochs=1, callbacks=[SaveAdapter(tmp_path / "out")])
    with pytest.raises(CheckpointError, match=r"1 tensors under the adapters train too, first 'model.norm.weight'"):
        trainer.fit(module, batches())
    assert trainer.global_step == 0


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_base_that_changes_while_training_loses_no_work(llama_dir, tmp_path, checkpoints):
    class Disturbed(Rows):
        @torch.no_grad()
        def on_train_end(self):
            self.model.model.norm.weight[3] += 1

    module = Disturbed(str(llama_dir), LoraSpec(rank=2))
    save = SaveAdapter(tmp_path / "out")
    trainer = _trainer(tmp_path, max_epochs=1, callbacks=[save], enable_checkpointing=checkpoints)
    with pytest.raises(CheckpointError, match=r"1 of 20 base tensors differ, first 'model.norm.weight'"):
        trainer.fit(module, batches())
    assert not (tmp_path / "out").exists()
    (path,) = tmp_path.rglob("*.ckpt")
    assert (path.name == "out.ckpt") is not checkpoints
    if not checkpoints:
        export_checkpoint(path, tmp_path / "hf")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
        torch.testing.assert_close(output(model), output(module.model), rtol=0, atol=2e-5)


def test_an_untied_copy_belongs_to_the_tied_base(llama_dir, tmp_path):
    spec = LoraSpec(rank=2, embedding_mode="lora", target_modules=["q_proj", "lm_head"])
    module = Rows(str(llama_dir), spec, untie_embeddings=True)
    _train(tmp_path, module, callbacks=[SaveAdapter(tmp_path / "out")])
    assert (tmp_path / "out" / "adapter_config.json").exists()


def test_layers_that_nothing_reads_need_no_base(bert_dir, opinions, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig.from_pretrained(bert_dir)
    BertForMaskedLM(config).save_pretrained(tmp_path / "base")  # has no pooler, so that of the encoder is random
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).write_bytes((bert_dir / name).read_bytes())
    module, data = _pair(tmp_path / "base", opinions, LoraSpec(rank=2))
    _trainer(tmp_path, max_epochs=1, callbacks=[SaveAdapter(tmp_path / "out")]).fit(module, data)
    assert (tmp_path / "out" / "adapter_config.json").exists()
