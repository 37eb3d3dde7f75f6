"""Extracted adapters: PEFT loads them, and they give the fine-tuned model."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from lit_wsl.comparing.adapter_output import read_extraction, write_extracted
from lit_wsl.comparing.models import open_base, open_tuned
from lit_wsl.comparing.run import examine_all, new_comparison
from lit_wsl.comparing.settings import CompareSettings
from lit_wsl.errors import CheckpointError
from lit_wsl.models.lora import LoraSpec
from lit_wsl.state.adapters import Adapter
from lit_wsl.state.remap import Entry, WeightMap
from lit_wsl.tensors.lora import fold
from lit_wsl.training.causal_lm import CausalLMModule
from tests.comparing.fine_tuned import (
    IDS,
    config_of,
    difference,
    extract,
    load,
    merged_lora,
    output,
    save,
    under_adapter,
)

HALF = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}


def llama(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **changes))


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_head=2, n_embd=48, vocab_size=40, n_positions=32, initializer_range=0.1)
    )


def bert(kind=BertModel, **changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    return kind(
        BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=32, initializer_range=0.1, **changes)
    )


def noise(parameter, size=0.1):
    parameter.data += size * torch.randn_like(parameter)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_merged_lora_comes_back_with_its_ranks(tmp_path, dtype):
    base = save(llama(tie_word_embeddings=False), tmp_path / "base", dtype)
    settings = {"target_modules": ["q_proj", "v_proj", "down_proj"], "rank_pattern": {"down_proj": 5}}
    tuned = merged_lora(load(AutoModelForCausalLM, base), r=3, lora_alpha=6, **settings, size=0.2)
    plain = load(AutoModelForCausalLM, base).state_dict()
    updates = {name: tensor - plain[name] for name, tensor in tuned.state_dict().items()}
    tuned = save(tuned, tmp_path / "tuned", dtype)
    _, report = extract(base, tuned, tmp_path / "out")
    expected = {name: 5 if "down" in name else 3 for name, update in updates.items() if update.norm() > 0}
    assert report.ranks == expected
    assert len(expected) == 6
    assert not report.left_out
    assert not report.kept_whole
    adapter = Adapter(tmp_path / "out" / "adapter")
    assert set(adapter.sites) == set(expected)
    for name in expected:
        assert difference(fold(adapter.factors(name)), updates[name]) < HALF[dtype]
        assert report.errors[name] < HALF[dtype]
    found = under_adapter(AutoModelForCausalLM, base, tmp_path / "out" / "adapter")
    assert difference(found, output(AutoModelForCausalLM, tuned)) < (1e-5 if dtype == torch.float32 else 0.01)
    config = config_of(tmp_path / "out")
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert (config["r"], config["rank_pattern"], config["task_type"]) == (3, config["alpha_pattern"], "CAUSAL_LM")


def test_the_files_say_what_they_hold(tmp_path):
    base = save(llama(tie_word_embeddings=False), tmp_path / "base")
    tuned = merged_lora(load(AutoModelForCausalLM, base), r=4, target_modules=["q_proj"], use_rslora=True)
    tuned = save(tuned, tmp_path / "tuned")
    _, report = extract(base, tuned, tmp_path / "out")
    flat = tmp_path / "out" / "extracted_lora_weights.safetensors"
    factors, before = load_file(flat), load_file(base / "model.safetensors")
    after = load_file(tuned / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    A, B = factors[f"{name}.lora_A"], factors[f"{name}.lora_B"]
    assert (A.shape, B.shape, len(factors)) == ((4, 64), (64, 4), 4)
    torch.testing.assert_close(before[f"{name}.weight"] + B @ A, after[f"{name}.weight"])
    with safe_open(flat, "pt") as file:
        assert file.metadata()["base"] == str(base)
        assert file.metadata()["finetuned"] == str(tuned)
    content = json.loads((tmp_path / "out" / "lora_metadata.json").read_text())
    assert content["ranks"] == content["alpha"] == report.ranks
    assert content["parameters"] == sum(tensor.numel() for tensor in factors.values())
    assert content["total_reconstruction_error"] < 1e-5
    assert not (tmp_path / "out" / ".factors").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter", flat.name, "lora_metadata.json"}
    assert all(path.exists() for path in report.files)
    assert "rank 4" in report.sentence()


def test_a_second_call_reports_what_the_first_wrote(tmp_path):
    base = save(llama(tie_word_embeddings=False), tmp_path / "base")
    tuned = save(merged_lora(load(AutoModelForCausalLM, base), r=2, target_modules=["q_proj"]), tmp_path / "tuned")
    comparison, report = extract(base, tuned, tmp_path / "out")
    before = open_base(base)
    again = write_extracted(comparison, before, open_tuned(tuned, before), tmp_path / "out")
    assert sorted(again.files) == sorted(report.files)
    assert replace(again, files=[]) == replace(report, files=[])
    (tmp_path / "out" / "lora_metadata.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_extraction(tmp_path / "out")


def test_conv1d_layers_are_turned(tmp_path):
    base = save(gpt2(), tmp_path / "base")
    settings = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    tuned = save(merged_lora(load(GPT2LMHeadModel, base), r=2, **settings), tmp_path / "tuned")
    _, report = extract(base, tuned, tmp_path / "out")
    assert set(report.ranks.values()) == {2}
    assert len(report.ranks) == 8
    assert config_of(tmp_path / "out")["fan_in_fan_out"] is True
    found = under_adapter(GPT2LMHeadModel, base, tmp_path / "out" / "adapter")
    assert difference(found, output(GPT2LMHeadModel, tuned)) < 1e-5


@pytest.mark.parametrize("kind", ["bert", "tied", "gpt2"])
def test_embeddings(tmp_path, kind):
    """A tied output embedding follows the input embedding."""
    model = {"bert": bert, "tied": lambda: llama(tie_word_embeddings=True), "gpt2": gpt2}[kind]()
    base = save(model, tmp_path / "base")
    tuned = load(type(model), base)
    weight = tuned.get_input_embeddings().weight
    weight.data += torch.randn(40, 2) @ torch.randn(2, weight.shape[1]) * 0.1
    tuned = save(tuned, tmp_path / "tuned")
    _, report = extract(base, tuned, tmp_path / "out")
    assert list(report.ranks.values()) == [2]
    found = under_adapter(type(model), base, tmp_path / "out" / "adapter")
    assert difference(found, output(type(model), tuned)) < 1e-5
    assert config_of(tmp_path / "out")["ensure_weight_tying"] is (kind != "bert")
    assert len(Adapter(tmp_path / "out" / "adapter").sites) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_vectors_are_kept_whole(tmp_path, kind, dtype):
    model = {"bert": bert, "llama": lambda: llama(attention_bias=True), "gpt2": gpt2}[kind]()
    base = save(model, tmp_path / "base", dtype)
    targets = {"bert": ["query"], "llama": ["q_proj"], "gpt2": ["c_attn"]}[kind]
    settings = {"fan_in_fan_out": kind == "gpt2"}
    tuned = merged_lora(load(type(model), base), r=2, target_modules=targets, **settings, size=0.2)
    vectors = [name for name, parameter in tuned.named_parameters() if parameter.dim() == 1]
    for name in vectors:
        noise(tuned.get_parameter(name))
    tuned = save(tuned, tmp_path / "tuned", dtype)
    _, report = extract(base, tuned, tmp_path / "out")
    assert sorted(report.kept_whole) == sorted(vectors)
    found = under_adapter(type(model), base, tmp_path / "out" / "adapter")
    assert difference(found, output(type(model), tuned)) < (1e-5 if dtype == torch.float32 else 0.02)
    adapter = Adapter(tmp_path / "out" / "adapter")
    held = load_file(tuned / "model.safetensors")
    for name in vectors:
        value = adapter.state.read(adapter.sites[name].value)
        assert value.dtype == dtype
        assert torch.equal(value, held[name])
    config = config_of(tmp_path / "out")
    assert config["bias"] == "all"
    assert any("norm" in name.lower() or "ln_" in name for name in config["modules_to_save"])
    _, skipped = extract(base, tuned, tmp_path / "skipped", skip_1d=True)
    assert sorted(skipped.left_out) == sorted(vectors)
    assert config_of(tmp_path / "skipped")["modules_to_save"] is None


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_resized_vocabulary_is_kept_whole(tmp_path, is_tied):
    base = save(llama(tie_word_embeddings=is_tied), tmp_path / "base")
    tuned = merged_lora(load(AutoModelForCausalLM, base), r=2, target_modules=["q_proj"])
    tuned.resize_token_embeddings(43, mean_resizing=False)
    noise(tuned.get_input_embeddings().weight)
    tuned = save(tuned, tmp_path / "tuned")
    _, report = extract(base, tuned, tmp_path / "out")
    assert len(report.kept_whole) == (1 if is_tied else 2)
    assert "resize_token_embeddings(43)" in report.notes[0]
    found = under_adapter(AutoModelForCausalLM, base, tmp_path / "out" / "adapter", rows=43)
    assert difference(found, output(AutoModelForCausalLM, tuned)) < 1e-5


def test_an_output_embedding_that_was_untied_is_kept_whole(tmp_path):
    base = save(llama(tie_word_embeddings=True), tmp_path / "base")
    tuned = llama(tie_word_embeddings=False)
    tuned.load_state_dict(load(AutoModelForCausalLM, base).state_dict())
    noise(tuned.lm_head.weight)
    tuned = save(merged_lora(tuned, r=2, target_modules=["q_proj"]), tmp_path / "tuned")
    _, report = extract(base, tuned, tmp_path / "out")
    assert list(report.kept_whole) == ["lm_head.weight"]
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        found = PeftModel.from_pretrained(load(AutoModelForCausalLM, base), tmp_path / "out" / "adapter").eval()
    assert difference(found(IDS)[0], output(AutoModelForCausalLM, tuned)) < 1e-5


def test_an_embedding_that_several_layers_use_is_kept_whole(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    base = save(T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)), tmp_path / "base")
    tuned = merged_lora(load(T5ForConditionalGeneration, base), r=2, target_modules=["q"])
    tuned.shared.weight.data += torch.randn(40, 2) @ torch.randn(2, 32) * 0.1
    tuned = save(tuned, tmp_path / "tuned")
    _, report = extract(base, tuned, tmp_path / "out", extraction="always")
    assert list(report.kept_whole) == ["shared.weight"]
    assert "shared.weight" not in report.ranks
    found = PeftModel.from_pretrained(load(T5ForConditionalGeneration, base), tmp_path / "out" / "adapter").eval()
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS}
    expected = load(T5ForConditionalGeneration, tuned)(**inputs).logits
    assert difference(found(**inputs).logits, expected) < 1e-5
    assert config_of(tmp_path / "out")["task_type"] == "SEQ_2_SEQ_LM"


def test_behind_a_weight_map_the_factors_are_written_flat(tmp_path):
    base = save(llama(tie_word_embeddings=False), tmp_path / "base")
    tuned = merged_lora(load(AutoModelForCausalLM, base), r=2, target_modules=["q_proj"])
    names = [name for name, _ in tuned.named_parameters()]
    weight_map = WeightMap([Entry((name,), (f"net.{name}",)) for name in names])
    (tmp_path / "tuned").mkdir()
    save_file({f"net.{name}": p.detach() for name, p in tuned.named_parameters()}, tmp_path / "tuned" / "a.safetensors")
    before = open_base(base, weight_map)
    after = open_tuned(tmp_path / "tuned" / "a.safetensors", before)
    comparison = new_comparison(before, after, CompareSettings())
    examine_all(comparison, before, after, tmp_path / "tuned", threads=1)
    report = write_extracted(comparison, before, after, tmp_path / "tuned")
    assert "no adapter" in report.notes[0]
    assert [path.name for path in report.files] == ["extracted_lora_weights.safetensors", "lora_metadata.json"]
    assert "net.model.layers.0.self_attn.q_proj.lora_A" in load_file(report.files[0])


def test_a_classifier_is_kept_whole(tmp_path):
    base = save(bert(BertForSequenceClassification, num_labels=3), tmp_path / "base")
    tuned = merged_lora(load(BertForSequenceClassification, base), r=2, target_modules=["value"])
    noise(tuned.classifier.weight)
    tuned = save(tuned, tmp_path / "tuned")
    _, report = extract(base, tuned, tmp_path / "out")
    assert set(report.kept_whole) == {"classifier.weight", "classifier.bias"}
    assert config_of(tmp_path / "out")["task_type"] == "SEQ_CLS"
    found = under_adapter(AutoModelForSequenceClassification, base, tmp_path / "out" / "adapter")
    assert difference(found, output(AutoModelForSequenceClassification, tuned)) < 1e-5


def test_convolutions(tmp_path):
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1], layer_type="basic", num_labels=3, num_channels=3
    )
    base = save(ResNetForImageClassification(config), tmp_path / "base")
    tuned = load(ResNetForImageClassification, base)
    layer = tuned.resnet.encoder.stages[1].layers[0].layer[1].convolution
    update = torch.randn(24, 2) @ torch.randn(2, 24 * 9) * 0.1
    layer.weight.data += update.reshape(layer.weight.shape)
    tuned = save(tuned, tmp_path / "tuned")
    _, report = extract(base, tuned, tmp_path / "out")
    assert list(report.ranks.values()) == [2]
    pixels = torch.randn(2, 3, 32, 32)
    found = PeftModel.from_pretrained(load(ResNetForImageClassification, base), tmp_path / "out" / "adapter").eval()
    expected = load(ResNetForImageClassification, tuned)(pixels).logits
    assert difference(found(pixels).logits, expected) < 1e-5


def moe(kind):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 16, "num_experts_per_tok": 2, "initializer_range": 0.1}
    if kind == "stacked":
        return GptOssForCausalLM(GptOssConfig(**sizes, intermediate_size=40, num_local_experts=4))
    sizes |= {"moe_intermediate_size": 40, "num_experts": 4, "tie_word_embeddings": False}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes))


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:UserWarning")
@pytest.mark.parametrize("kind", ["stacked", "by expert"])
def test_experts(tmp_path, kind):
    """Stacks that a file holds, and those that transformers makes of a file's matrices; ranks differ by expert."""
    base = save(moe(kind), tmp_path / "base")
    tuned = load(AutoModelForCausalLM, base)
    tuned = merged_lora(tuned, r=2, target_modules=["q_proj"])
    with torch.no_grad():
        for number, layer in enumerate(tuned.model.layers):
            experts = layer.mlp.experts
            for name, parameter in experts.named_parameters():
                if parameter.dim() == 2:
                    noise(parameter)
                    continue
                for expert in range(4):
                    rank = 1 + (expert + number) % 3
                    rows, columns = parameter.shape[1:]
                    parts = 2 if name == "gate_up_proj" and kind == "by expert" else 1
                    for part in parameter[expert].chunk(parts):
                        part += torch.randn(rows // parts, rank) @ torch.randn(rank, columns) * 0.1
    tuned = save(tuned, tmp_path / "tuned")
    _, report = extract(base, tuned, tmp_path / "out", extraction="always")
    assert not report.left_out
    found = PeftModel.from_pretrained(load(AutoModelForCausalLM, base), tmp_path / "out" / "adapter").eval()
    assert difference(found(IDS).logits, output(AutoModelForCausalLM, tuned)) < 1e-5
    assert config_of(tmp_path / "out")["target_parameters"]
    assert report.total_error < 1e-5


def test_dense_changes_are_named(tmp_path):
    base = save(llama(tie_word_embeddings=False), tmp_path / "base")
    tuned = merged_lora(load(AutoModelForCausalLM, base), r=2, target_modules=["q_proj"])
    noise(tuned.model.layers[1].mlp.up_proj.weight)
    noise(tuned.lm_head.weight)
    tuned = save(tuned, tmp_path / "tuned")
    _, report = extract(base, tuned, tmp_path / "out")
    assert report.left_out == {"model.layers.1.mlp.up_proj.weight": "the change is not of low rank"}
    assert list(report.kept_whole) == ["lm_head.weight"]
    assert 0.1 < report.total_error < 1


def test_dora_is_dense(tmp_path):
    """The magnitudes scale every row of the base, so that no low rank is left; a fixed rank takes what it can."""
    base = save(llama(tie_word_embeddings=False), tmp_path / "base")
    tuned = merged_lora(load(AutoModelForCausalLM, base), r=2, target_modules=["q_proj"], use_dora=True)
    tuned = save(tuned, tmp_path / "tuned")
    _, report = extract(base, tuned, tmp_path / "out")
    assert report.is_empty
    assert len(report.left_out) == 2
    assert report.sentence() == (
        "Nothing to extract: 2 tensors differ, and none by a change of low rank that was asked for."
    )
    _, report = extract(base, tuned, tmp_path / "forced", extraction="always", rank="16")
    assert set(report.ranks.values()) == {16}
    assert 0.01 < report.total_error < 0.9


def test_nothing_is_written_of_equal_models(tmp_path):
    base = save(llama(), tmp_path / "base")
    _, report = extract(base, base, tmp_path / "out")
    assert report.is_empty
    assert report.sentence() == "Nothing to extract: the models do not differ by more than rounding."
    assert not any((tmp_path / "out").iterdir())


def test_without_a_configuration_names_and_shapes_tell_the_layers(tmp_path):
    base = save(llama(tie_word_embeddings=False), tmp_path / "base")
    tuned = save(merged_lora(load(AutoModelForCausalLM, base), r=2, target_modules=["q_proj"]), tmp_path / "tuned")
    (tmp_path / "bare").mkdir()
    bare = (base / "model.safetensors").rename(tmp_path / "bare" / "model.safetensors")
    _, report = extract(bare, tuned, tmp_path / "out")
    assert "no config.json" in report.notes[0]
    bare.rename(base / "model.safetensors")
    found = under_adapter(AutoModelForCausalLM, base, tmp_path / "out" / "adapter")
    assert difference(found, output(AutoModelForCausalLM, tuned)) < 1e-5


def test_a_base_of_a_bare_transformer_under_an_old_name(tmp_path):
    """Files of a class without a head are loaded under a prefix, which the adapter must have."""
    base = save(llama(tie_word_embeddings=True), tmp_path / "base")
    inner = save(load(AutoModel, base), tmp_path / "inner")
    (inner / "config.json").write_text((base / "config.json").read_text())
    tuned = load(AutoModel, inner)
    tuned = save(merged_lora(tuned, r=2, target_modules=["q_proj"]), tmp_path / "tuned")
    extract(inner, tuned, tmp_path / "out")
    found = under_adapter(AutoModelForCausalLM, inner, tmp_path / "out" / "adapter")
    (tuned / "config.json").write_text((base / "config.json").read_text())
    assert difference(found, output(AutoModelForCausalLM, tuned)) < 1e-5


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_trained_lora_is_found_with_its_true_ranks(tmp_path, dtype):
    """An adapter that a run trained, folded into its base by PEFT and rounded."""
    base = save(llama(tie_word_embeddings=False), tmp_path / "base", dtype)
    spec = LoraSpec(rank=2, attn_lora_rank=4, lora_alpha=8, target_modules="all-linear", use_rslora=True)
    wide = save(load(AutoModelForCausalLM, base), tmp_path / "wide")
    module = CausalLMModule(str(wide), spec, optimizer=lambda p: torch.optim.Adam(p, lr=0.03))
    batch = {"input_ids": IDS, "labels": IDS}
    optimizer = module.configure_optimizers()
    for _ in range(60):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    module.save_adapter(tmp_path / "trained")
    trained = Adapter(tmp_path / "trained")
    plain = PeftModel.from_pretrained(load(AutoModelForCausalLM, base), tmp_path / "trained").merge_and_unload()
    tuned = save(plain, tmp_path / "tuned", dtype)
    _, report = extract(base, tuned, tmp_path / "out")
    assert report.ranks == {name: 4 if "attn" in name else 2 for name in trained.sites}
    found = Adapter(tmp_path / "out" / "adapter")
    for name in trained.sites:
        assert difference(fold(found.factors(name)), fold(trained.factors(name))) < HALF[dtype]
    result = under_adapter(AutoModelForCausalLM, base, tmp_path / "out" / "adapter")
    assert difference(result, output(AutoModelForCausalLM, tuned)) < (1e-5 if dtype == torch.float32 else 0.02)
