"""One source with weight one gives that source, measured against PEFT itself."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, BertForSequenceClassification

from lit_wsl.errors import LitWslError
from lit_wsl.merging import merge, merge_state_dict
from lit_wsl.state import open_state
from tests.merging.build import (
    IDS,
    classifier,
    folded,
    relative_gap,
    save_adapter,
    save_bert,
    save_gpt2,
    save_tuned,
    shake,
)

IDENTITY_METHODS = {
    "uniform": {},
    "uniform_delta": {},
    "task_arithmetic": {"scale": 1.0},
    "ties": {"k": 100},
    "dare": {"drop_rate": 0.0},
}

BERT_ADAPTERS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"layer.0.attention.self.query": 2, "value": 6},
        "alpha_pattern": {"^encoder.layer.1.attention.self.query": 11, "layer.0.attention.self.value": 3},
    },
    "rslora_patterns": {"use_rslora": True, "rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}},
    "embedding": {"target_modules": ["word_embeddings", "query"]},
    "embedding_rslora": {
        "target_modules": ["word_embeddings"],
        "use_rslora": True,
        "rank_pattern": {"word_embeddings": 3},
    },
    "lora_bias": {"lora_bias": True},
    "bias_all": {"bias": "all"},
    "bias_lora_only": {"bias": "lora_only"},
    "lora_bias_on_trained_bias": {"lora_bias": True, "bias": "all"},
    "dora": {"use_dora": True},
    "dora_rslora": {"use_dora": True, "use_rslora": True},
    "all_linear": {"target_modules": "all-linear"},
    "saved_module_of_the_base": {"modules_to_save": ["pooler"]},
    "saved_layernorm": {"modules_to_save": ["LayerNorm"]},
}

GPT2_ADAPTERS = {
    "conv1d": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
    "conv1d_square": {"target_modules": ["attn.c_proj"], "fan_in_fan_out": True},
    "conv1d_dora": {"target_modules": ["c_attn", "attn.c_proj"], "fan_in_fan_out": True, "use_dora": True},
    "conv1d_lora_bias": {"target_modules": ["c_fc"], "fan_in_fan_out": True, "lora_bias": True},
    "embeddings": {"target_modules": ["wte", "wpe"]},
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert") / "base")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return save_gpt2(tmp_path_factory.mktemp("gpt2") / "base")


def check_identity(base, adapter, expected, method="uniform_delta", params=None):
    merged = merge_state_dict(
        adapters=[str(adapter)], base=str(base), method=method, method_params=params or {}, merge_mode="strict"
    )
    before = open_state(base)
    moved = 0
    for name, tensor in merged.items():
        assert relative_gap(tensor, expected[name]) <= 1e-6, name
        moved += not torch.equal(before.read(name), expected[name])
    assert moved, "the adapter changes nothing, so this proves nothing"


@pytest.mark.parametrize("case", BERT_ADAPTERS)
def test_bert_adapter_equals_peft(bert, tmp_path, case):
    """A1.1, A1.2, A1.3, A1.4"""
    model = save_adapter(bert, tmp_path / "a", **BERT_ADAPTERS[case])
    check_identity(bert, tmp_path / "a", folded(model))


@pytest.mark.parametrize("case", GPT2_ADAPTERS)
def test_gpt2_adapter_equals_peft(gpt2, tmp_path, case):
    """A1.4: weights stored as (d_in, d_out)"""
    model = save_adapter(gpt2, tmp_path / "a", **GPT2_ADAPTERS[case])
    check_identity(gpt2, tmp_path / "a", folded(model))


def test_dora_embedding_equals_the_forward_pass_of_peft(bert, tmp_path):
    """A1.4"""
    live = save_adapter(bert, tmp_path / "a", target_modules=["word_embeddings"], use_dora=True)
    expected = live(input_ids=IDS).last_hidden_state
    merge(adapters=[str(tmp_path / "a")], base=str(bert), output_format="model", output=str(tmp_path / "out"))
    torch.testing.assert_close(
        AutoModel.from_pretrained(tmp_path / "out").eval()(input_ids=IDS).last_hidden_state,
        expected,
        rtol=1e-5,
        atol=1e-5,
    )


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.wide = nn.Conv2d(6, 4, (1, 5))
        self.line = nn.Conv1d(4, 4, 3)

    def forward(self, x):
        return self.line(self.wide(self.first(x)).flatten(2))


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["plain", "dora", "rslora"])
@pytest.mark.parametrize("targets", [["first", "wide"], ["line"]], ids=["conv2d", "conv1d"])
def test_convolutions_equal_peft(tmp_path, settings, targets):
    """A1.4"""
    torch.manual_seed(3)
    base = Pixels()
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, **settings)
    live = get_peft_model(base, config)
    shake(live)
    live.save_pretrained(tmp_path / "a")
    check_identity(tmp_path / "base.safetensors", tmp_path / "a", folded(live))


@pytest.mark.parametrize("method", IDENTITY_METHODS)
@pytest.mark.parametrize("case", ["patterns", "dora", "bias_all"])
def test_every_method_is_the_identity_for_one_adapter(bert, tmp_path, method, case):
    model = save_adapter(bert, tmp_path / "a", **BERT_ADAPTERS[case])
    check_identity(bert, tmp_path / "a", folded(model), method, IDENTITY_METHODS[method])


@pytest.mark.parametrize("method", IDENTITY_METHODS)
def test_every_method_is_the_identity_for_one_model(bert, tmp_path, method):
    """G8"""
    expected = save_tuned(bert, tmp_path / "t", seed=1)
    merged = merge_state_dict(
        models=[str(tmp_path / "t")], base=str(bert), method=method, method_params=IDENTITY_METHODS[method]
    )
    assert merged.keys() == expected.keys()
    for name in merged:
        assert relative_gap(merged[name], expected[name]) <= 1e-6, name


def test_a_head_that_the_base_lacks_is_kept_per_task(bert, tmp_path):
    """A1.4: modules_to_save; names with an outer prefix resolve to the base's (A1.7)"""
    for seed in (1, 2):
        save_adapter(bert, tmp_path / f"t{seed}", seed, load=classifier, task_type="SEQ_CLS")
    adapters = [str(tmp_path / "t1"), str(tmp_path / "t2")]
    merge(adapters=adapters, base=str(bert), method="uniform_delta", output=str(tmp_path / "out"))
    for seed in (1, 2):
        head = load_file(tmp_path / "out" / "heads" / f"t{seed}.safetensors")
        stored = load_file(tmp_path / f"t{seed}" / "adapter_model.safetensors")
        assert set(head) == {"classifier.weight", "classifier.bias"}
        assert torch.equal(head["classifier.weight"], stored["base_model.model.classifier.weight"])
    merge(adapters=adapters, base=str(bert), output=str(tmp_path / "bare"), heads="drop")
    assert not (tmp_path / "bare" / "heads").exists()


def test_a_classifier_adapter_equals_peft_with_its_head(bert, tmp_path):
    live = save_adapter(bert, tmp_path / "a", load=classifier, task_type="SEQ_CLS")
    expected = folded(live)
    merge(adapters=[str(tmp_path / "a")], base=str(bert), output_format="model", output=str(tmp_path / "out"))
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in merged.items():
        if name.startswith("pooler"):
            continue
        assert relative_gap(tensor, expected[f"bert.{name}"]) <= 1e-6, name
    whole = BertForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=3)
    head = load_file(tmp_path / "out" / "heads" / "a.safetensors")
    assert not whole.load_state_dict(head, strict=False).unexpected_keys


def test_bin_adapter_equals_peft(bert, tmp_path):
    """A1.5"""
    model = save_adapter(bert, tmp_path / "a", safe=False)
    assert not list((tmp_path / "a").glob("*.safetensors"))
    check_identity(bert, tmp_path / "a", folded(model))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_adapter_equals_peft(bert, tmp_path, suffix):
    """A1.5"""
    model = save_adapter(bert, tmp_path / "a")
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate([list(weights)[::2], list(weights)[1::2]]):
        file = f"adapter_model-{number + 1:05d}-of-00002.{suffix}"
        part = {name: weights[name] for name in names}
        save_file(part, tmp_path / "a" / file) if suffix == "safetensors" else torch.save(part, tmp_path / "a" / file)
        weight_map.update(dict.fromkeys(names, file))
    index = tmp_path / "a" / f"adapter_model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    check_identity(bert, tmp_path / "a", folded(model))


REFUSED = {
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights: olora"),
    "trainable_token_indices": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    "target_parameters": ({"target_parameters": ["x.weight"]}, "target_parameters"),
    "layer_replication": ({"layer_replication": [[0, 1], [1, 2]]}, "layer_replication"),
    "ia3": ({"peft_type": "IA3"}, "IA3"),
    "loha": ({"peft_type": "LOHA"}, "LOHA"),
    "rank 0": ({"r": 0}, "rank > 0"),
    "alpha text": ({"lora_alpha": "8"}, "finite numbers"),
    "broken pattern": ({"rank_pattern": {"(": 3}}, "regular expression"),
    "wrong rank": ({"r": 5}, "rank 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_folded_is_refused_by_name(bert, tmp_path, case):
    """A1.4"""
    save_adapter(bert, tmp_path / "a")
    change, words = REFUSED[case]
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(LitWslError, match=words):
        merge_state_dict(adapters=[str(tmp_path / "a")], base=str(bert))


def test_real_pissa_and_trainable_tokens_adapters_are_refused(bert, tmp_path):
    save_adapter(bert, tmp_path / "pissa", init_lora_weights="pissa")
    with pytest.raises(LitWslError, match="pissa"):
        merge_state_dict(adapters=[str(tmp_path / "pissa")], base=str(bert))
    save_adapter(bert, tmp_path / "tokens", trainable_token_indices={"word_embeddings": [1, 2]})
    with pytest.raises(LitWslError, match="trainable_token_indices"):
        merge_state_dict(adapters=[str(tmp_path / "tokens")], base=str(bert))


def test_dora_without_base_is_refused_by_name(bert, tmp_path):
    save_adapter(bert, tmp_path / "a", use_dora=True)
    with pytest.raises(LitWslError, match="DoRA.*--base"):
        merge(adapters=[str(tmp_path / "a")], output=str(tmp_path / "out"))


@pytest.mark.parametrize("lost", ["lora_A", "lora_B"])
def test_half_a_pair_is_refused(bert, tmp_path, lost):
    """A1.1 warns and drops it; nothing is dropped silently here"""
    save_adapter(bert, tmp_path / "a")
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    del weights[next(name for name in weights if lost in name)]
    save_file(weights, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(LitWslError, match="no partner"):
        merge_state_dict(adapters=[str(tmp_path / "a")], base=str(bert))


@pytest.mark.parametrize(
    ("case", "model"),
    [("plain", "bert"), ("patterns", "bert"), ("embedding", "bert"), ("dora", "bert"), ("conv1d", "gpt2")],
)
def test_adapter_and_model_outputs_agree_with_the_live_adapter(bert, gpt2, tmp_path, case, model):
    """Base plus adapter output, model output, and PEFT's live adapter give one forward pass."""
    base, settings = (bert, BERT_ADAPTERS[case]) if model == "bert" else (gpt2, GPT2_ADAPTERS[case])
    live = save_adapter(base, tmp_path / "a", **settings)
    expected = live(input_ids=IDS).last_hidden_state.detach()
    fields = {"adapters": [str(tmp_path / "a")], "base": str(base), "method": "uniform_delta"}
    merge(**fields, output_format="model", output=str(tmp_path / "model"))
    merge(**fields, output_format="adapter", output=str(tmp_path / "adapter"))
    merge(**fields, output_format="delta", output=str(tmp_path / "delta"))
    whole = AutoModel.from_pretrained(tmp_path / "model").eval()
    adapted = PeftModel.from_pretrained(AutoModel.from_pretrained(base), tmp_path / "adapter").eval()
    for output in (whole, adapted):
        torch.testing.assert_close(output(input_ids=IDS).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    before, after = open_state(base), whole.state_dict()
    for name, delta in load_file(tmp_path / "delta" / "delta.safetensors").items():
        torch.testing.assert_close(before.read(name) + delta, after[name], rtol=1e-6, atol=1e-6)


def test_two_adapters_as_adapter_and_as_model_agree(bert, tmp_path):
    """A1.13: different ranks; A2.11: a delta method that is saved as an adapter"""
    save_adapter(bert, tmp_path / "a", 1, r=2)
    save_adapter(bert, tmp_path / "b", 2, r=5, use_rslora=True)
    fields = {"adapters": [str(tmp_path / "a"), str(tmp_path / "b")], "base": str(bert)}
    for method, params in (("uniform_delta", {}), ("ties", {"k": 50}), ("dare", {"drop_rate": 0.5})):
        options = {**fields, "method": method, "method_params": params, "rank": 16}
        report = merge(**options, output_format="adapter", output=str(tmp_path / f"adapter-{method}"))
        merge(**options, output_format="model", output=str(tmp_path / f"model-{method}"))
        assert min(report.retained_energy.values()) > 1 - 1e-6
        live = PeftModel.from_pretrained(AutoModel.from_pretrained(bert), tmp_path / f"adapter-{method}").eval()
        whole = AutoModel.from_pretrained(tmp_path / f"model-{method}").eval()
        torch.testing.assert_close(
            live(input_ids=IDS).last_hidden_state, whole(input_ids=IDS).last_hidden_state, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("container", ["sharded", "bin", "pt", "lightning", "directory of bin"])
def test_full_models_of_any_container_are_the_identity(bert, tmp_path, container):
    """G8"""
    expected = save_tuned(bert, tmp_path / "t", seed=3)
    source = tmp_path / "t"
    if container == "sharded":
        shutil.rmtree(source)
        model = AutoModel.from_pretrained(bert)
        model.load_state_dict(expected)
        model.save_pretrained(source, max_shard_size="4KB")
        assert len(list(source.glob("*.safetensors"))) > 2
    elif container == "directory of bin":
        (source / "model.safetensors").unlink()
        torch.save(expected, source / "pytorch_model.bin")
    else:
        source = tmp_path / ("x.ckpt" if container == "lightning" else f"x.{container}")
        wrapped = {f"_orig_mod.{name}": tensor for name, tensor in expected.items()}
        torch.save({"state_dict": wrapped, "epoch": 3} if container == "lightning" else expected, source)
    merged = merge_state_dict(models=[str(source)], base=str(bert), method="task_arithmetic")
    for name in expected:
        assert relative_gap(merged[name], expected[name]) <= 1e-6, name
