import dataclasses
import json
import math

import lightning
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig

from lit_wsl.callbacks.save_adapter import SaveAdapter
from lit_wsl.errors import CheckpointError, ConfigError, DataError
from lit_wsl.models.lora import LoraSpec
from lit_wsl.training.causal_lm import CausalLMModule, next_token_loss
from lit_wsl.training.token_blocks import TokenBlockData
from tests.tiny_llama import tied_llama_config, untied_llama_config, write_untied_llama


def _trainer(tmp_path, **settings):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False, **(quiet | settings)
    )


def _adam(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


@pytest.fixture
def text(tmp_path):
    """A file that a model can learn by heart."""
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat. " * 40)
    return str(path)


def _batch(seed=0, rows=3, length=9):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(256, (rows, length), generator=generator)
    labels = ids.clone()
    labels[0, :4] = -100
    labels[-1, 5:] = -100
    return {"input_ids": ids, "labels": labels}


def test_the_loss_is_that_of_transformers(llama_dir):
    module = CausalLMModule(str(llama_dir)).eval()
    batch = _batch()
    expected = AutoModelForCausalLM.from_pretrained(llama_dir)(**batch).loss
    torch.testing.assert_close(next_token_loss(module(batch), batch["labels"])[0], expected)
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_padding_does_not_count(llama_dir):
    module = CausalLMModule(str(llama_dir)).eval()
    short = _batch(rows=1, length=6)
    padded = {
        "input_ids": torch.cat([short["input_ids"], torch.tensor([[7, 9]])], dim=1),
        "labels": torch.cat([short["labels"], torch.full((1, 2), -100)], dim=1),
        "attention_mask": torch.tensor([[1] * 6 + [0] * 2]),
    }
    torch.testing.assert_close(module.training_step(padded, 0), module.training_step(short, 0))
    left = {name: torch.roll(tensor, 2, dims=1) for name, tensor in padded.items()}
    without = {name: left[name] for name in ("input_ids", "labels")}
    assert not torch.allclose(module(left)[:, 2:], module(without)[:, 2:])


def test_a_batch_without_labels_costs_nothing():
    loss, tokens = next_token_loss(torch.randn(2, 3, 5), torch.full((2, 3), -100))
    assert (loss.item(), tokens.item()) == (0, 0)


def test_validation_weighs_every_token_alike(llama_dir, tmp_path):
    module = CausalLMModule(str(llama_dir))
    batches = [_batch(1), _batch(2, rows=1, length=4), _batch(3, rows=2, length=5)]
    loader = DataLoader(batches, batch_size=None)
    logged = _trainer(tmp_path).validate(module, loader, verbose=False)[0]
    tested = _trainer(tmp_path).test(module, loader, verbose=False)[0]
    total = tokens = 0
    with torch.no_grad():
        for batch in batches:
            logits = AutoModelForCausalLM.from_pretrained(llama_dir)(batch["input_ids"]).logits
            for row in range(len(logits)):
                for position, label in enumerate(batch["labels"][row, 1:].tolist()):
                    if label != -100:
                        total -= logits[row, position].log_softmax(dim=-1)[label].item()
                        tokens += 1
    assert logged["val/loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert logged["val/perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert tested["test/loss"] == pytest.approx(logged["val/loss"])
    assert tested["test/perplexity"] == pytest.approx(logged["val/perplexity"])


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=4, embedding_mode="lora")], ids=["whole", "lora"])
def test_fit_learns_and_predicts_logits(text, tmp_path, lora):
    data = TokenBlockData([text], block_size=24, batch_size=8)
    module = CausalLMModule(untied_llama_config(), lora, optimizer=_adam)
    trainer = _trainer(tmp_path, max_epochs=4)
    before = trainer.validate(module, data, verbose=False)[0]["val/loss"]
    trainer.fit(module, data)
    assert {"train/loss", "val/loss", "val/perplexity"} <= set(trainer.callback_metrics)
    assert trainer.validate(module, data, verbose=False)[0]["val/loss"] < 0.7 * before
    [logits] = _trainer(tmp_path).predict(module, data.val_dataloader())
    assert logits.shape == (4, 24, 256)
    torch.testing.assert_close(logits, module.eval()(next(iter(data.val_dataloader()))).detach())


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=2, embedding_mode="lora")], ids=["whole", "lora"])
def test_every_trainable_parameter_gets_a_gradient(llama_dir, lora):
    module = CausalLMModule(str(llama_dir), lora, untie_embeddings=lora is not None)
    module.training_step(_batch(), 0).backward()
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert all(("lora_" in name) == (lora is not None) for name in trainable)
    assert module.model.training


def test_an_empty_lora_is_none(llama_dir):
    empty = LoraSpec(embedding_mode="standard", attn_lora_rank=0, embedding_rank=0)
    module = CausalLMModule(str(llama_dir), empty)
    assert module.lora is None
    assert module.hparams["lora"] is None
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("kind", ["directory", "file", "mapping"])
def test_a_checkpoint_rebuilds_the_module_from_plain_data(llama_dir, text, tmp_path, kind):
    (tmp_path / "tiny.json").write_text(json.dumps(tied_llama_config()))
    models = {"directory": str(llama_dir), "file": str(tmp_path / "tiny.json"), "mapping": tied_llama_config()}
    lora = LoraSpec(rank=2, attn_lora_rank=3, embedding_mode="lora")
    module = CausalLMModule(models[kind], lora, untie_embeddings=True, optimizer=_adam)
    trainer = _trainer(tmp_path, max_steps=2)
    trainer.fit(module, TokenBlockData([text], block_size=24))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    json.dumps(torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"])
    (tmp_path / "tiny.json").unlink()  # the checkpoint holds what it said
    again = CausalLMModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert again.lora == lora
    torch.testing.assert_close(again.eval()(_batch()), module.eval()(_batch()))


def test_random_weights_come_from_the_seed():
    def weight(seed):
        torch.manual_seed(seed)
        return CausalLMModule(tied_llama_config()).model.lm_head.weight

    assert torch.equal(weight(3), weight(3))
    assert not torch.equal(weight(3), weight(4))


def test_untied_embeddings_part(llama_dir, tmp_path):
    module = CausalLMModule(str(llama_dir), untie_embeddings=True)
    model = module.model
    torch.testing.assert_close(module.eval()(_batch()), CausalLMModule(str(llama_dir)).eval()(_batch()))
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.tie_weights()  # what transformers does after a change of vocabulary
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    module.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not again.config.tie_word_embeddings
    torch.testing.assert_close(again.lm_head.weight, model.lm_head.weight)


def test_untied_embeddings_of_an_untied_model_stay(tmp_path):
    base = write_untied_llama(tmp_path / "base")
    module = CausalLMModule(str(base), untie_embeddings=True)
    assert torch.equal(module.model.lm_head.weight, AutoModelForCausalLM.from_pretrained(base).lm_head.weight)


def test_the_whole_model_is_saved_as_transformers_reads_it(bert_dir, llama_dir, tmp_path):
    module = CausalLMModule(str(llama_dir))
    with torch.no_grad():
        module.model.lm_head.weight.mul_(2)
    module.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(again(_batch()["input_ids"]).logits, module.eval()(_batch()))
    assert not list((tmp_path / "out").glob("tokenizer*"))
    base = tmp_path / "with_tokenizer"
    module.model.save_pretrained(base)
    for path in bert_dir.glob("tokenizer*"):
        (base / path.name).write_bytes(path.read_bytes())
    CausalLMModule(str(base)).save_pretrained(tmp_path / "both")
    assert (tmp_path / "both" / "tokenizer.json").exists()


def test_a_saved_adapter_scores_what_it_scored(text, tmp_path):
    llama_dir = write_untied_llama(tmp_path / "llama")
    lora = LoraSpec(rank=2, attn_lora_rank=4, embedding_mode="lora", target_modules="all-linear")
    data = TokenBlockData([text], block_size=24)
    module = CausalLMModule(str(llama_dir), lora, optimizer=_adam)
    trainer = _trainer(tmp_path, max_epochs=1, callbacks=[SaveAdapter(tmp_path / "out")])
    trainer.fit(module, data)
    again = CausalLMModule(str(llama_dir), lora, init_adapter=tmp_path / "out")
    assert not torch.allclose(again.eval()(_batch()), CausalLMModule(str(llama_dir)).eval()(_batch()))
    torch.testing.assert_close(again.eval()(_batch()), module.eval()(_batch()))
    assert not (tmp_path / "out" / "head.safetensors").exists()
    with pytest.raises(CheckpointError, match="make them agree"):
        CausalLMModule(str(llama_dir), dataclasses.replace(lora, rank=4), init_adapter=tmp_path / "out")
    form = CausalLMModule(str(llama_dir), init_adapter=tmp_path / "out")
    torch.testing.assert_close(form.eval()(_batch()), module.eval()(_batch()))


def test_adapters_on_random_weights_fit_no_base(text, tmp_path):
    module = CausalLMModule(tied_llama_config(), LoraSpec(rank=2))
    with pytest.raises(CheckpointError, match="random weights.*lit-wsl export"):
        module.save_adapter(tmp_path / "out")
    trainer = _trainer(tmp_path, max_steps=1, callbacks=[SaveAdapter(tmp_path / "out")])
    with pytest.raises(CheckpointError, match="random weights.*lit-wsl export"):
        trainer.fit(module, TokenBlockData([text], block_size=24))
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "'lama'. The nearest known is 'llama'"),
        ({"model_type": None}, "`model_type` is missing"),
        ({"model_type": "resnet"}, "no language model of model_type 'resnet'"),
        ({"hiden_size": 8}, "no key 'hiden_size'. The nearest known is 'hidden_size'"),
        ({"hidden_size": "wide"}, "expected int, got str"),
        ({"hidden_size": 30}, "not a multiple"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 must divide num_attention_heads 4; change one"),
    ],
)
def test_a_wrong_configuration_is_one_line(change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        CausalLMModule(tied_llama_config() | change)
    assert "\n" not in str(caught.value)


def test_every_key_that_transformers_writes_or_once_wrote_is_known(tmp_path):
    LlamaConfig(**tied_llama_config()).save_pretrained(tmp_path)
    CausalLMModule(str(tmp_path / "config.json"))
    module = CausalLMModule(tied_llama_config() | {"rope_theta": 500.0, "torch_dtype": "float32"})
    assert module.model.config.rope_parameters["rope_theta"] == 500


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), ("{", "cannot be read"), ("[]", "no JSON object")]
)
def test_a_wrong_configuration_file_is_named(tmp_path, content, message):
    path = tmp_path / "tiny.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"tiny.json.*{message}"):
        CausalLMModule(str(path))


def test_weights_are_never_made_up_for_a_directory(bert_dir, tmp_path):
    LlamaConfig(**tied_llama_config()).save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match="no weights or configuration.*config.json"):
        CausalLMModule(str(tmp_path / "bare"))
    with pytest.raises(CheckpointError, match="lacks 6 weights of BertLMHeadModel, first 'cls."):
        CausalLMModule(str(bert_dir))  # an encoder has no language head
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "lama"}')
    with pytest.raises(CheckpointError, match="no language model that can be loaded"):
        CausalLMModule(str(tmp_path / "bare"))
    with pytest.raises(CheckpointError, match="does not exist"):
        CausalLMModule("/no/such/model")


@pytest.mark.parametrize("vocabulary", [100, 116])
def test_ids_beyond_the_vocabulary_show_before_training(text, tmp_path, vocabulary):
    module = CausalLMModule(tied_llama_config() | {"vocab_size": vocabulary})
    trainer = _trainer(tmp_path, max_steps=1)
    with pytest.raises(DataError, match=f"token id 116, the model a vocabulary of {vocabulary}"):
        trainer.fit(module, TokenBlockData([text], block_size=24))
    assert trainer.global_step == 0


GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 256, "n_positions": 16}


def test_heads_that_do_not_divide_show_when_the_model_is_made():
    with pytest.raises(ConfigError, match="type 'gpt2' fits no model: .*divisible") as caught:
        CausalLMModule(GPT2 | {"n_head": 3})
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="num_key_value_heads 8 must divide num_attention_heads 4"):
        CausalLMModule(untied_llama_config() | {"model_type": "mistral", "num_key_value_heads": 8})


def test_heads_that_need_not_divide_are_left_alone():
    """Mistral's heads may have any size, and latent attention has keys for every head."""
    odd = {"num_attention_heads": 3, "num_key_value_heads": 3}
    latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {"moe_intermediate_size": 8, "first_k_dense_replace": 2, "num_key_value_heads": 128}
    for change in ({"model_type": "mistral", **odd}, {"model_type": "deepseek_v3", **latent, **experts}):
        module = CausalLMModule(untied_llama_config() | change)
        assert module.training_step(_batch(), 0).isfinite()


@pytest.mark.parametrize(
    "config",
    [
        GPT2,
        {"model_type": "gptj", "n_embd": 8, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "n_positions": 16},
        {"model_type": "opt", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 8}
        | {"word_embed_proj_dim": 8, "max_position_embeddings": 16},
    ],
    ids=lambda config: config["model_type"],
)
def test_blocks_beyond_the_positions_show_before_training(text, tmp_path, config):
    module = CausalLMModule({"vocab_size": 256} | config)
    trainer = _trainer(tmp_path, max_steps=1)
    with pytest.raises(DataError, match="blocks of 17 tokens, the model 16 positions; set `block_size` to at most 16"):
        trainer.fit(module, TokenBlockData([text], block_size=17))
    assert trainer.global_step == 0
    _trainer(tmp_path, max_steps=1).fit(module, TokenBlockData([text], block_size=16))


def test_rotary_positions_have_no_end(text, tmp_path):
    trainer = _trainer(tmp_path, max_steps=1)
    trainer.fit(CausalLMModule(untied_llama_config()), TokenBlockData([text], block_size=80))
    assert trainer.global_step == 1
