"""Training that goes on from an extracted adapter."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lit_wsl.callbacks.save_adapter import SaveAdapter
from lit_wsl.cli.trainer import run_trainer
from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.models.lora import LoraSpec
from lit_wsl.state.adapters import Adapter
from lit_wsl.training.causal_lm import CausalLMModule, next_token_loss
from lit_wsl.training.token_blocks import TokenBlockData
from tests.comparing.fine_tuned import extract, load, merged_lora, save
from tests.tiny_llama import write_tied_llama, write_untied_llama

ROOT = Path(__file__).parents[2]
PATTERN = {"q_proj": 3, r"layers\.1\.mlp\.down_proj": 5}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    return str(path)


@pytest.fixture
def extracted(tmp_path):
    """A base, and an adapter of several ranks that was taken out of a fine-tuned model."""
    return _extracted(tmp_path, write_untied_llama(tmp_path / "base"))


def _extracted(tmp_path, base, *, norms=False):
    tuned = load(AutoModelForCausalLM, base)
    names = ["q_proj", "v_proj", "down_proj"]
    tuned = merged_lora(tuned, r=2, target_modules=names, rank_pattern=PATTERN, size=0.3)
    if norms:
        tuned.model.norm.weight.data += 0.3
    tuned = save(tuned, tmp_path / "tuned")
    _, report = extract(base, tuned, tmp_path / "out", extraction="always")
    assert sorted(set(report.ranks.values())) == [2, 3, 5]
    return base, tmp_path / "out" / "adapter"


def _batch():
    ids = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


def _adam(parameters):
    return torch.optim.Adam(parameters, lr=3e-3)


def _trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**{"enable_checkpointing": False, "default_root_dir": tmp_path} | quiet | options)


@pytest.mark.parametrize("norms", [False, True])
def test_the_loss_starts_at_that_of_base_and_adapter_and_falls(tmp_path, text, norms):
    base, adapter = _extracted(tmp_path, write_untied_llama(tmp_path / "base"), norms=norms)
    module = CausalLMModule(init_adapter=adapter, optimizer=_adam)
    assert module.base_model == str(base.resolve())
    peft = PeftModel.from_pretrained(load(AutoModelForCausalLM, base), adapter).eval()
    batch = _batch()
    expected = next_token_loss(peft(batch["input_ids"]).logits, batch["labels"])[0]
    torch.testing.assert_close(module.training_step(batch, 0), expected, rtol=1e-5, atol=1e-6)
    data = TokenBlockData([text], block_size=24)
    trainer = _trainer(tmp_path, max_epochs=4)
    before = trainer.validate(module, data, verbose=False)[0]["val/loss"]
    trainer = _trainer(tmp_path, max_epochs=4)
    trainer.fit(module, data)
    assert trainer.validate(module, data, verbose=False)[0]["val/loss"] < before - 0.1


def test_ranks_and_scales_are_those_of_the_adapter(extracted):
    base, adapter = extracted
    module = CausalLMModule(str(base), init_adapter=adapter)
    trained = {name: p.shape for name, p in module.model.named_parameters() if p.requires_grad and "lora_A" in name}
    assert len(trained) == 6
    for name, site in Adapter(adapter).sites.items():
        layer = module.model.get_submodule(name.removesuffix(".weight"))
        assert layer.r["default"] == Adapter(adapter).factors(name).rank
        assert layer.scaling["default"] == 1.0
        assert site.A
    assert module.hparams["lora"]["rank_pattern"]


def test_a_run_is_saved_as_an_adapter_and_a_checkpoint_needs_no_directory(extracted, tmp_path, text):
    base, adapter = extracted
    module = CausalLMModule(init_adapter=adapter, optimizer=_adam)
    trainer = _trainer(tmp_path, max_epochs=1, callbacks=[SaveAdapter(tmp_path / "trained")])
    trainer.fit(module, TokenBlockData([text], block_size=24))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    peft = PeftModel.from_pretrained(load(AutoModelForCausalLM, base), tmp_path / "trained").eval()
    batch = _batch()
    torch.testing.assert_close(peft(batch["input_ids"]).logits, module.eval()(batch), rtol=1e-4, atol=1e-4)
    for path in sorted(adapter.iterdir()):
        path.unlink()
    again = CausalLMModule.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    torch.testing.assert_close(again.eval()(batch), module.eval()(batch))


def test_settings_that_differ_are_refused(extracted, tmp_path):
    base, adapter = extracted
    with pytest.raises(CheckpointError, match="make them agree"):
        CausalLMModule(str(base), LoraSpec(rank=2, target_modules=["q_proj"]), init_adapter=adapter)
    with pytest.raises(ConfigError, match="No model: give `model`"):
        CausalLMModule()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="does not say which model is its base"):
        CausalLMModule(init_adapter=adapter)


def test_an_adapter_of_another_model_is_refused(extracted, tmp_path):
    _, adapter = extracted
    sizes = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 256, "n_positions": 32}
    with pytest.raises(CheckpointError, match="which GPT2LMHeadModel lacks; give its base as `model`"):
        CausalLMModule(sizes, init_adapter=adapter)


def test_a_tied_embedding_is_untied_or_refused(tmp_path):
    base = write_tied_llama(tmp_path / "base")
    tuned = load(AutoModelForCausalLM, base)
    tuned.model.embed_tokens.weight.data += torch.randn(256, 2) @ torch.randn(2, 32) * 0.1
    tuned = save(tuned, tmp_path / "tuned")
    extract(base, tuned, tmp_path / "out", extraction="always")
    with pytest.raises(ConfigError, match="untie_embeddings: true"):
        CausalLMModule(init_adapter=tmp_path / "out" / "adapter")
    module = CausalLMModule(init_adapter=tmp_path / "out" / "adapter", untie_embeddings=True)
    expected = load(AutoModelForCausalLM, tuned)(_batch()["input_ids"]).logits
    torch.testing.assert_close(module.eval()(_batch()), expected, rtol=1e-4, atol=1e-4)


def test_the_shipped_configuration_trains(extracted, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    _, adapter = extracted
    arguments = ["fit", f"--config={ROOT / 'configs' / 'train' / 'finetune_extracted.yaml'}"]
    arguments += [f"--model.init_adapter={adapter}", f"--data.init_args.files=[{text}]"]
    assert run_trainer([*arguments, "--trainer.enable_progress_bar=false", "--trainer.limit_train_batches=2"]) == 0
    assert (tmp_path / "artifacts" / "train" / "finetune_extracted" / "last.ckpt").exists()
