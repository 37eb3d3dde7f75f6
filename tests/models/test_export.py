"""Exported checkpoints load into transformers and PEFT, and give the module's own logits."""

import json
import os
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    MixtralConfig,
)

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.models.checkpoint import open_checkpoint
from lit_wsl.models.export import export_checkpoint
from lit_wsl.state.adapters import Adapter
from tests.models.checkpoints import Classifier, Module, adapt, output, save, write_gpt2
from tests.models.universal.layers import LitQKV, NanoEmbedding, NanoLinear, TuneDora, TuneLinear

LLAMA = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
FORMS = {
    "lora": LLAMA,
    "rslora": LLAMA | {"use_rslora": True},
    "dora": LLAMA | {"use_dora": True},
    "ranks": LLAMA | {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 8}, "alpha_pattern": {"v_proj": 3}},
    "embedding": LLAMA | {"target_modules": ["q_proj", "embed_tokens"]},
    "embedding dora": LLAMA | {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "saved head": LLAMA | {"modules_to_save": ["lm_head"]},
    "one layer": LLAMA | {"target_modules": "model.layers.1.self_attn.q_proj"},
}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return write_gpt2(tmp_path_factory.mktemp("gpt2"))


def load_whole(cls, directory):
    """The model in a directory, without a key missing or left over."""
    model, report = cls.from_pretrained(directory, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model


def close(one, other, atol=2e-5):
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


# --- transformers


@pytest.mark.parametrize("form", [None, *FORMS])
def test_hf_gives_the_modules_logits(untied, tmp_path, form):
    module = Module(untied)
    if form:
        adapt(module.model, **FORMS[form])
    report = export_checkpoint(save(module, tmp_path / "a.ckpt"), tmp_path / "out", format="hf")
    close(output(load_whole(AutoModelForCausalLM, tmp_path / "out")), output(module.model))
    assert report.verified
    assert set(report.files) == {"config.json", "generation_config.json", "model.safetensors"}


@pytest.mark.parametrize("adapted", [False, True])
def test_hf_writes_tied_tensors_once(llama_dir, gpt2, tmp_path, adapted):
    for name, base, targets in (("llama", llama_dir, ["q_proj"]), ("gpt2", gpt2, ["c_attn"])):
        module = Module(base)
        if adapted:
            adapt(module.model, r=4, target_modules=targets, fan_in_fan_out=name == "gpt2")
        export_checkpoint(save(module, tmp_path / f"{name}.ckpt"), tmp_path / name)
        assert not any("lm_head" in key for key in load_file(tmp_path / name / "model.safetensors"))
        model = load_whole(AutoModelForCausalLM, tmp_path / name)
        close(output(model), output(module.model))
        assert model.lm_head.weight is model.get_input_embeddings().weight


def test_tied_names_that_differ_are_refused(llama_dir, tmp_path):
    path = save(Module(llama_dir), tmp_path / "a.ckpt")
    content = torch.load(path)
    content["state_dict"]["model.lm_head.weight"] = content["state_dict"]["model.lm_head.weight"] + 1
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="lm_head.weight differ, but its configuration ties them"):
        export_checkpoint(path, tmp_path / "out")


def test_hf_carries_tokenizer_and_head(bert_dir, tmp_path):
    module = Classifier(bert_dir)
    adapt(module.encoder, r=4, target_modules=["query"])
    export_checkpoint(save(module, tmp_path / "a.ckpt"), tmp_path / "out")
    close(output(load_whole(AutoModel, tmp_path / "out")), output(module.encoder))
    sentence = "a good film"
    expected = AutoTokenizer.from_pretrained(bert_dir)(sentence)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(sentence)["input_ids"] == expected
    assert (tmp_path / "out" / "tokenizer.json").exists()
    head = load_file(tmp_path / "out" / "head.safetensors")
    assert torch.equal(head["weight"], module.head.weight)
    assert set(head) == {"weight", "bias"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertModel"]
    assert not (tmp_path / "out" / "generation_config.json").exists()
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "head.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "head": "linear", "labels": '["no", "yes"]'}


def test_the_dtype_on_disk_is_the_configurations(untied, tmp_path):
    module = Module(untied)
    module.model.to(torch.bfloat16)
    adapt(module.model, **LLAMA)
    path = save(module, tmp_path / "a.ckpt")
    export_checkpoint(path, tmp_path / "auto")
    stored = {t.dtype for t in load_file(tmp_path / "auto" / "model.safetensors").values()}
    assert stored == {torch.bfloat16, torch.float32}, "merged weights keep what bfloat16 would round away"
    assert load_whole(AutoModelForCausalLM, tmp_path / "auto").dtype == torch.float32
    for dtype in ("float32", "bfloat16", "float16"):
        export_checkpoint(path, tmp_path / dtype, dtype=dtype)
        assert {t.dtype for t in load_file(tmp_path / dtype / "model.safetensors").values()} == {getattr(torch, dtype)}
        assert load_whole(AutoModelForCausalLM, tmp_path / dtype).dtype == getattr(torch, dtype)


@pytest.mark.parametrize("config", [GPTNeoXConfig, MixtralConfig], ids=lambda c: c.__name__)
def test_architectures_whose_files_have_other_names(tmp_path, config):
    small = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}
    AutoModelForCausalLM.from_config(config(**small, **heads)).save_pretrained(tmp_path / "base")
    module = Module(tmp_path / "base")
    export_checkpoint(save(module, tmp_path / "a.ckpt"), tmp_path / "out")
    close(output(load_whole(AutoModelForCausalLM, tmp_path / "out")), output(module.model), atol=1e-6)


def test_entries_beyond_float16_are_refused(untied, tmp_path):
    module = Module(untied)
    with torch.no_grad():
        module.model.lm_head.weight[0, 0] = 1e5
    with pytest.raises(CheckpointError, match="'lm_head.weight' do not fit float16"):
        export_checkpoint(save(module, tmp_path / "a.ckpt"), tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_shards_load_too(untied, tmp_path):
    module = Module(untied)
    report = export_checkpoint(save(module, tmp_path / "a.ckpt"), tmp_path / "out", shard_bytes=20_000)
    assert sum(name.startswith("model-") for name in report.files) > 2
    assert "model.safetensors.index.json" in report.files
    close(output(load_whole(AutoModelForCausalLM, tmp_path / "out")), output(module.model), atol=0)


def test_several_backbones_want_a_name(untied, bert_dir, tmp_path):
    module = Module(untied, encoder=AutoModel.from_pretrained(bert_dir))
    path = save(module, tmp_path / "a.ckpt")
    with pytest.raises(ConfigError, match=r"backbones model, encoder; choose with `--backbone NAME`"):
        export_checkpoint(path, tmp_path / "out")
    with pytest.raises(ConfigError, match="no backbone 'encodr'. Did you mean 'encoder'"):
        export_checkpoint(path, tmp_path / "out", backbone="encodr")
    report = export_checkpoint(path, tmp_path / "out", backbone="encoder", base=bert_dir)
    close(output(load_whole(AutoModel, tmp_path / "out")), output(module.encoder), atol=0)
    assert "model.lm_head.weight" in report.left_out


def test_a_peft_model_as_backbone(untied, tmp_path):
    from peft import LoraConfig, get_peft_model

    from tests.models.universal.build import shake

    module = Module(untied)
    module.model = shake(get_peft_model(module.model, LoraConfig(**LLAMA)))
    path = save(module, tmp_path / "a.ckpt")
    export_checkpoint(path, tmp_path / "hf")
    close(output(load_whole(AutoModelForCausalLM, tmp_path / "hf")), output(module.model))
    export_checkpoint(path, tmp_path / "adapter", format="adapter")
    close(output(with_adapter(AutoModelForCausalLM, untied, tmp_path / "adapter")), output(module.model))


@pytest.mark.parametrize("where", ["backbone", "inside", "module to save"])
def test_a_peft_model_of_random_weights(tmp_path, where):
    """A user's own module, through the callback: no directory behind it tells of the class."""
    from peft import LoraConfig, get_peft_model
    from torch import nn

    from lit_wsl.callbacks.universal_checkpoint import UniversalCheckpointCallback
    from tests.models.universal.build import llama
    from tests.training.build import Plain, train

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.llama, self.scale = llama(), nn.Linear(1, 1)

        def forward(self, **batch):
            return self.llama(**batch)

    module = Plain("standard")
    targets = {"modules_to_save": ["llama"], "target_modules": ["scale"]} if where == "module to save" else {}
    module.model = get_peft_model(llama() if where == "backbone" else Holder(), LoraConfig(**LLAMA | targets))
    train(tmp_path, module, epochs=1, callbacks=[UniversalCheckpointCallback()])
    (backbone,) = open_checkpoint(tmp_path / "last.ckpt").backbones()
    assert (backbone.name, backbone.architecture) == ("model" + ".llama" * (where != "backbone"), "LlamaForCausalLM")
    export_checkpoint(tmp_path / "last.ckpt", tmp_path / "hf")
    close(output(load_whole(AutoModelForCausalLM, tmp_path / "hf")), output(module.model))


def test_a_foreign_file_takes_the_bases_configuration(untied, tmp_path):
    module = Module(untied)
    states = {"lightning.ckpt": {"state_dict": module.state_dict()}, "plain.pt": module.model.state_dict()}
    for name, content in states.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match="describes no transformers model; pass `--base DIR`"):
            export_checkpoint(tmp_path / name, tmp_path / "out" / name)
        export_checkpoint(tmp_path / name, tmp_path / "out" / name, base=untied)
        close(output(load_whole(AutoModelForCausalLM, tmp_path / "out" / name)), output(module.model), atol=0)


def test_a_foreign_file_of_another_shape_is_refused(untied, bert_dir, tmp_path):
    torch.save(Module(untied).model.state_dict() | {"model.layers.9.x": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"1 unexpected: model\.layers\.9\.x"):
        export_checkpoint(tmp_path / "a.pt", tmp_path / "out", base=untied)
    with pytest.raises(CheckpointError, match=r"missing: embeddings\.word_embeddings"):
        export_checkpoint(tmp_path / "a.pt", tmp_path / "out", base=bert_dir)


# --- safetensors


def test_safetensors_is_the_state_dict_as_it_is(llama_dir, tmp_path):
    module = Module(llama_dir)
    adapt(module.model, r=4, target_modules=["q_proj"])
    path = save(module, tmp_path / "a.ckpt")
    export_checkpoint(path, tmp_path / "out", format="safetensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    expected = torch.load(path)["state_dict"]
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    Module(llama_dir).load_state_dict(written, strict=True)


def test_safetensors_of_any_source(tmp_path):
    states = {"w": torch.randn(3), "count": torch.tensor(3), "nan": torch.tensor([float("nan")])}
    torch.save({"model": {f"_orig_mod.{k}": v for k, v in states.items()}}, tmp_path / "nano.pt")
    export_checkpoint(tmp_path / "nano.pt", tmp_path / "one", format="safetensors")
    export_checkpoint(tmp_path / "one", tmp_path / "two", format="safetensors")
    for name in ("one", "two"):
        written = load_file(tmp_path / name / "model.safetensors")
        assert written.keys() == states.keys()
        assert all(torch.equal(t, states[k]) or k == "nan" for k, t in written.items())


def test_what_is_no_tensor_is_reported(tmp_path, caplog):
    torch.save({"state_dict": {"w": torch.ones(2), "_extra_state": {"step": 3}}}, tmp_path / "a.ckpt")
    report = export_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", format="safetensors")
    assert report.left_out == ["_extra_state"]
    assert "1 entries have no place in this format and are left out, first _extra_state." in caplog.text


def test_unmerged_factors_of_unknown_scale_are_refused(untied, tmp_path):
    module = Module(untied)
    adapt(module.model, **LLAMA)
    torch.save(module.state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="whose scale the state dict does not say"):
        export_checkpoint(tmp_path / "a.pt", tmp_path / "out", format="safetensors")


# --- PEFT


def with_adapter(cls, base, directory):
    """PEFT's model of base and adapter, without a key missing or left over."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*keys.*")
        return PeftModel.from_pretrained(cls.from_pretrained(base), directory)


@pytest.mark.parametrize("sidecar", ["exact", "factors"])
@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_gives_the_modules_logits(untied, tmp_path, form, sidecar):
    module = Module(untied)
    adapt(module.model, **FORMS[form])
    path = save(module, tmp_path / "a.ckpt", sidecar)
    export_checkpoint(path, tmp_path / "out", format="adapter")
    close(output(with_adapter(AutoModelForCausalLM, untied, tmp_path / "out")), output(module.model))
    Adapter(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"]) == (str(untied), "CAUSAL_LM")
    assert config["modules_to_save"] == FORMS[form].get("modules_to_save")


@pytest.mark.parametrize("sidecar", ["exact", "factors"])
def test_an_adapter_of_conv1d_and_biases(gpt2, bert_dir, tmp_path, sidecar):
    module = Module(gpt2)
    adapt(module.model, r=4, target_modules=["c_attn", "c_proj"], lora_bias=True, fan_in_fan_out=True)
    export_checkpoint(save(module, tmp_path / "a.ckpt", sidecar), tmp_path / "gpt2", format="adapter")
    close(output(with_adapter(AutoModelForCausalLM, gpt2, tmp_path / "gpt2")), output(module.model))
    module = Classifier(bert_dir)
    adapt(module.encoder, r=4, target_modules=["query", "dense"], lora_bias=True)
    export_checkpoint(save(module, tmp_path / "b.ckpt", sidecar), tmp_path / "bert", format="adapter")
    close(output(with_adapter(AutoModel, bert_dir, tmp_path / "bert")), output(module.encoder))
    assert load_file(tmp_path / "bert" / "head.safetensors").keys() == {"weight", "bias"}


def test_an_adapter_on_tied_embeddings(llama_dir, tmp_path):
    module = Module(llama_dir)
    settings = LLAMA | {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
    adapt(module.model, **settings)
    export_checkpoint(save(module, tmp_path / "a.ckpt"), tmp_path / "out", format="adapter")
    close(output(with_adapter(AutoModelForCausalLM, llama_dir, tmp_path / "out")), output(module.model))


def test_an_adapter_on_a_base_whose_experts_are_stacked_when_it_is_loaded(tmp_path):
    small = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}
    AutoModelForCausalLM.from_config(MixtralConfig(**small, **heads)).save_pretrained(tmp_path / "base")
    module = Module(tmp_path / "base")
    adapt(module.model, **LLAMA)
    path = save(module, tmp_path / "a.ckpt")
    export_checkpoint(path, tmp_path / "out", format="adapter")
    close(output(with_adapter(AutoModelForCausalLM, tmp_path / "base", tmp_path / "out")), output(module.model))


def test_several_active_adapters_become_one(untied, tmp_path):
    from peft import LoraConfig, inject_adapter_in_model

    module = Module(untied)
    adapt(module.model, **LLAMA)
    inject_adapter_in_model(LoraConfig(**LLAMA | {"r": 3, "lora_alpha": 1}), module.model, adapter_name="other")
    for part in module.model.modules():
        if hasattr(part, "lora_A"):
            part.set_adapter(["default", "other"])
    export_checkpoint(save(module, tmp_path / "a.ckpt"), tmp_path / "out", format="adapter")
    close(output(with_adapter(AutoModelForCausalLM, untied, tmp_path / "out")), output(module.model))
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 7


@pytest.mark.parametrize("sidecar", ["exact", "factors"])
def test_other_dialects_become_pefts(untied, bert_dir, tmp_path, sidecar):
    module = Module(untied)
    layer = module.model.model.layers[0].self_attn
    swap(layer, "q_proj", NanoLinear(32, 32, 3, bias=False))
    swap(layer, "k_proj", TuneLinear(32, 16, 5, bias=False))
    swap(module.model.model, "embed_tokens", NanoEmbedding(256, 32, 2))
    export_checkpoint(save(module, tmp_path / "a.ckpt", sidecar), tmp_path / "out", format="adapter")
    close(output(with_adapter(AutoModelForCausalLM, untied, tmp_path / "out")), output(module.model))
    module = Classifier(bert_dir)
    swap(module.encoder.encoder.layer[1].attention.self, "query", TuneDora(16, 16, 4))
    export_checkpoint(save(module, tmp_path / "b.ckpt", sidecar), tmp_path / "dora", format="adapter")
    close(output(with_adapter(AutoModel, bert_dir, tmp_path / "dora")), output(module.encoder))


@torch.no_grad()
def swap(parent, name, adapted):
    """Put a foreign adapted layer over a plain one, on its weights, with factors that are not zero."""
    plain = getattr(parent, name)
    inner = getattr(adapted, "main_weight", getattr(adapted, "linear", adapted))
    inner.weight.copy_(plain.weight)
    if plain.__dict__["_parameters"].get("bias") is not None:
        inner.bias.copy_(plain.bias)
    for key, parameter in adapted.named_parameters():
        if "lora_" in key:
            parameter.copy_(0.3 * torch.randn_like(parameter))
    setattr(parent, name, adapted)


@pytest.mark.parametrize("sidecar", ["exact", "factors"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("enable", [(True, True, True), (True, False, True)])
def test_a_fused_projection_becomes_one_adapter(tmp_path, enable, interleaved, sidecar):
    config = GPTNeoXConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "base")
    module = Module(tmp_path / "base")
    attention = module.model.gpt_neox.layers[1].attention
    swap(attention, "query_key_value", LitQKV(16, 2, 2, 3, enable, interleaved=interleaved))
    export_checkpoint(save(module, tmp_path / "a.ckpt", sidecar), tmp_path / "out", format="adapter")
    close(output(with_adapter(AutoModelForCausalLM, tmp_path / "base", tmp_path / "out")), output(module.model))
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 3 * sum(enable)


# --- the base of an adapter


@pytest.mark.parametrize("sidecar", ["exact", "factors"])
@pytest.mark.parametrize(
    ("name", "first"), [("model.layers.0.self_attn.q_proj.weight", "q_proj"), ("model.norm.weight", "norm")]
)
def test_another_base_is_refused(untied, tmp_path, sidecar, name, first):
    module = Module(untied)
    adapt(module.model, **LLAMA)
    path = save(module, tmp_path / "a.ckpt", sidecar)
    other = AutoModelForCausalLM.from_pretrained(untied)
    with torch.no_grad():
        other.get_parameter(name).flatten()[5] += 1e-3
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=rf"1 of 21 base tensors differ, first '{name}'.*--format hf") as error:
        export_checkpoint(path, tmp_path / "out", format="adapter", base=tmp_path / "other")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sidecar", ["exact", "factors"])
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_moved_base_is_refused_and_the_remedy_works(untied, tmp_path, start, sidecar):
    module = Module(untied)
    adapt(module.model, **LLAMA | {"init_lora_weights": start})
    path = save(module, tmp_path / "a.ckpt", sidecar)
    with pytest.raises(CheckpointError, match="4 of 21 base tensors differ"):
        export_checkpoint(path, tmp_path / "out", format="adapter")
    export_checkpoint(path, tmp_path / "hf")
    close(output(load_whole(AutoModelForCausalLM, tmp_path / "hf")), output(module.model))


@pytest.mark.parametrize("sidecar", ["exact", "factors"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_run_in_another_dtype_has_the_same_base(untied, tmp_path, dtype, sidecar):
    module = Module(untied)
    module.model.to(dtype)
    adapt(module.model, **LLAMA)
    export_checkpoint(save(module, tmp_path / "a.ckpt", sidecar), tmp_path / "out", format="adapter")


def test_a_base_in_another_dtype_is_the_same(untied, tmp_path):
    AutoModelForCausalLM.from_pretrained(untied).to(torch.bfloat16).save_pretrained(tmp_path / "narrow")
    module = Module(untied)
    module.model = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow", dtype=torch.float32)
    adapt(module.model, **LLAMA)
    path = save(module, tmp_path / "a.ckpt")
    export_checkpoint(path, tmp_path / "out", format="adapter", base=tmp_path / "narrow")
    with pytest.raises(CheckpointError, match="base tensors differ"):
        export_checkpoint(path, tmp_path / "no", format="adapter")


def test_what_has_no_adapter_is_refused(untied, tmp_path):
    module = Module(untied)
    with pytest.raises(CheckpointError, match=r"no low-rank adapters; export `--format hf`"):
        export_checkpoint(save(module, tmp_path / "plain.ckpt"), tmp_path / "out", format="adapter")
    adapt(module.model, **LLAMA)
    with pytest.raises(CheckpointError, match=r"keeps no factors .*; export `--format hf`"):
        export_checkpoint(save(module, tmp_path / "none.ckpt", "none"), tmp_path / "out", format="adapter")
    torch.save(module.state_dict(), tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="no universal checkpoint"):
        export_checkpoint(tmp_path / "foreign.pt", tmp_path / "out", format="adapter")
    module.hparams.model = {"model_type": "llama"}
    with pytest.raises(CheckpointError, match="started from random weights"):
        export_checkpoint(save(module, tmp_path / "random.ckpt"), tmp_path / "out", format="adapter")
    module.hparams.pop("model")
    with pytest.raises(CheckpointError, match="does not say what base"):
        export_checkpoint(save(module, tmp_path / "silent.ckpt"), tmp_path / "out", format="adapter")
    export_checkpoint(tmp_path / "silent.ckpt", tmp_path / "out", format="adapter", base=untied)


def test_a_base_file_may_hold_either_tied_name(llama_dir, tmp_path):
    module = Module(llama_dir)
    adapt(module.model, **LLAMA)
    weights = load_file(llama_dir / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    torch.save(weights, tmp_path / "base.pt")
    path = save(module, tmp_path / "a.ckpt")
    export_checkpoint(path, tmp_path / "out", format="adapter", base=tmp_path / "base.pt")


def test_an_adapter_is_one_file(untied, tmp_path):
    module = Module(untied)
    adapt(module.model, **LLAMA)
    path = save(module, tmp_path / "a.ckpt")
    report = export_checkpoint(path, tmp_path / "out", format="adapter", shard_bytes=1000)
    assert report.files == ["adapter_config.json", "adapter_model.safetensors"]


def test_weights_that_were_changed_after_saving_are_refused(untied, tmp_path):
    module = Module(untied)
    adapt(module.model, **LLAMA)
    content = torch.load(save(module, tmp_path / "a.ckpt"))
    content["state_dict"]["model.model.layers.1.self_attn.q_proj.weight"] *= 1.5
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj were changed after saving"):
        export_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", format="adapter")


def test_dora_on_some_layers_alone_is_refused(bert_dir, tmp_path):
    module = Classifier(bert_dir)
    attention = module.encoder.encoder.layer[1].attention.self
    swap(attention, "query", TuneDora(16, 16, 4))
    swap(attention, "key", TuneLinear(16, 16, 4))
    with pytest.raises(CheckpointError, match="DoRA on all layers or none, and encoder.layer.1.attention.self.key"):
        export_checkpoint(save(module, tmp_path / "a.ckpt"), tmp_path / "out", format="adapter")


# --- faults


def test_an_output_is_never_half_written(untied, tmp_path, monkeypatch):
    import errno

    path = save(Module(untied), tmp_path / "a.ckpt")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(CheckpointError, match=r"disk of .* is full"):
        export_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    export_checkpoint(path, tmp_path / "out")
    with pytest.raises(CheckpointError, match="not empty; choose another, or pass `--overwrite`"):
        export_checkpoint(path, tmp_path / "out")
    export_checkpoint(path, tmp_path / "out", overwrite=True)


def test_verification_finds_a_wrong_byte(untied, tmp_path, monkeypatch):
    path = save(Module(untied), tmp_path / "a.ckpt")
    write = os.pwrite

    def faulty(file, data, position):
        if len(data) > 4000 and position:
            data = bytes(data[:100]) + b"\x00\xff" + bytes(data[102:])
        return write(file, data, position)

    monkeypatch.setattr(os, "pwrite", faulty)
    with pytest.raises(CheckpointError, match=r"is not what was written: \d+ tensors differ"):
        export_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not export_checkpoint(path, tmp_path / "out", verify=False).verified


def test_verification_finds_a_tensor_too_many(untied, tmp_path, monkeypatch):
    from lit_wsl.models import export

    def write_more(directory, *others):
        write(directory, *others)
        file = directory / "model.safetensors"
        save_file({**load_file(file), "stray": torch.ones(2)}, file)

    path, write = save(Module(untied), tmp_path / "a.ckpt"), export._write
    monkeypatch.setattr(export, "_write", write_more)
    with pytest.raises(CheckpointError, match="1 tensors differ, first 'stray'"):
        export_checkpoint(path, tmp_path / "out", format="safetensors")


def test_an_interrupted_export_of_other_weights_is_thrown_away(untied, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    module = Module(untied)
    path = save(module, tmp_path / "a.ckpt")
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(path, tmp_path / "out", progress=stop)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
    export_checkpoint(save(module, path), tmp_path / "out", verify=False)
    close(output(load_whole(AutoModelForCausalLM, tmp_path / "out")), output(module.model))


def test_verification_reads_the_configuration_again(untied, tmp_path, monkeypatch):
    from lit_wsl.models import export_hf

    path, real = save(Module(untied), tmp_path / "a.ckpt"), export_hf.stored_config
    monkeypatch.setattr(export_hf, "stored_config", lambda *a: real(*a).replace('"vocab_size": 256', '"vocab_size": 9'))
    with pytest.raises(CheckpointError, match=r"does not fit this model .*of another shape"):
        export_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_bases_generation_settings_are_kept(llama_dir, tmp_path):
    module = Module(llama_dir)
    module.model.generation_config.repetition_penalty = 1.5
    module.model.save_pretrained(tmp_path / "base")
    export_checkpoint(save(module, tmp_path / "a.ckpt"), tmp_path / "out", base=tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.repetition_penalty == 1.5


def test_an_output_may_not_replace_its_source(untied, tmp_path):
    export_checkpoint(save(Module(untied), tmp_path / "a.ckpt"), tmp_path / "out")
    with pytest.raises(CheckpointError, match="holds the source"):
        export_checkpoint(tmp_path / "out", tmp_path / "out", base=untied, overwrite=True)


@pytest.mark.parametrize("place", ["configuration", "signature"])
def test_a_damaged_sidecar_is_one_line(untied, tmp_path, place):
    module = Module(untied)
    adapt(module.model, **LLAMA)
    content = torch.load(save(module, tmp_path / "a.ckpt"))
    meta = content["lit_wsl_universal"]
    if place == "configuration":
        meta["configuration"] = meta["configuration"][:50]
    else:
        signatures = meta["layers"]["state_dict"]["signatures"]
        signatures[next(iter(signatures))] = '{"name": 3}'
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="damaged"):
        export_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", format="adapter")


def test_a_class_that_transformers_lacks_is_refused(untied, tmp_path):
    module = Module(untied)
    module.model.__class__ = type("Homemade", (type(module.model),), {})
    with pytest.raises(CheckpointError, match="no model class 'Homemade'; export `--format safetensors`"):
        export_checkpoint(save(module, tmp_path / "a.ckpt"), tmp_path / "out")


def test_wrong_choices(tmp_path):
    with pytest.raises(ConfigError, match="`format` cannot be 'adaptor'. Did you mean 'adapter'"):
        export_checkpoint("x", tmp_path / "out", format="adaptor")
    with pytest.raises(ConfigError, match="`dtype` cannot be 'float'"):
        export_checkpoint("x", tmp_path / "out", dtype="float")
    with pytest.raises(ConfigError, match="shard_bytes >= 1"):
        export_checkpoint("x", tmp_path / "out", shard_bytes=0)


_MEASURE = """
import sys, threading
from lit_wsl.models.export import export_checkpoint
def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) * 1024
peak, stop = 0, threading.Event()
def watch():
    global peak
    while not stop.wait(0.002):
        peak = max(peak, anonymous())
path, out, *more = sys.argv[1:]
before = anonymous()
thread = threading.Thread(target=watch); thread.start()
export_checkpoint(path, out, **dict(pair.split("=") for pair in more))
stop.set(); thread.join()
print(peak - before)
"""


def peak(path, output, *options):
    """Anonymous memory that an export needs at its peak beyond that of the imported libraries, in bytes."""
    command = [sys.executable, "-c", _MEASURE, path, output, *options]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_model(tmp_path):
    config = LlamaConfig(
        vocab_size=2000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, num_attention_heads=8
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    module = Module(tmp_path / "base")
    adapt(module.model, **LLAMA)
    path = save(module, tmp_path / "a.ckpt", "factors")
    assert path.stat().st_size > 200e6
    used = {
        "safetensors": peak(path, tmp_path / "plain", "format=safetensors"),
        "hf": peak(path, tmp_path / "hf", "format=hf", "dtype=bfloat16"),
        "adapter": peak(path, tmp_path / "adapter", "format=adapter"),
    }
    assert max(used.values()) < 120e6, f"{used}: the largest tensor has 12 MB, the classes of transformers have 30"
