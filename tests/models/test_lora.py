import dataclasses
import json

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, BertModel, GPT2Config, GPT2LMHeadModel

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.models.lora import LoraSpec, inject_lora, load_adapter, save_adapter
from lit_wsl.state.adapters import Adapter

ENCODER = ["query", "key", "value", "dense"]
ENCODER_SPEC = LoraSpec(rank=2, target_modules=ENCODER)


def _adapted(bert_dir, spec):
    """A model whose adapters do something: B starts at zero."""
    model = BertModel.from_pretrained(bert_dir).eval()
    inject_lora(model, spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.normal_(std=0.3)
    return model


def _lora_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _ranks(model):
    return {name: module.r["default"] for name, module in _lora_layers(model).items()}


@pytest.mark.parametrize(
    ("fields", "law"),
    [
        ({"rank": -1}, "`rank >= 0`"),
        ({"attn_lora_rank": -1}, "`attn_lora_rank >= 0`"),
        ({"embedding_rank": -1, "embedding_mode": "lora"}, "`embedding_rank >= 0`"),
        ({"embedding_rank": 4}, "set `embedding_mode: lora`"),
        ({"embedding_mode": "Lora"}, "Did you mean 'lora'"),
        ({"lora_alpha": 0.0}, "0 < lora_alpha < inf"),
        ({"lora_alpha": float("nan")}, "0 < lora_alpha < inf"),
        ({"lora_alpha": float("inf")}, "0 < lora_alpha < inf"),
        ({"dropout": 1.0}, "0 <= dropout < 1"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": ""}, "target_modules"),
        ({"init_lora_weights": "eva"}, "pissa_niter_N, got 'eva'"),
        ({"init_lora_weights": "pissa_niter_0"}, "pissa_niter_N"),
    ],
)
def test_a_broken_law_is_named(fields, law):
    with pytest.raises(ConfigError, match=law):
        LoraSpec(**fields)


@pytest.mark.parametrize(("rslora", "scalings"), [(False, (2.0, 0.5)), (True, (4.0, 2.0))])
def test_each_layer_is_scaled_by_its_own_rank(bert_dir, rslora, scalings):
    spec = LoraSpec(rank=4, lora_alpha=8, attn_lora_rank=16, target_modules=ENCODER, use_rslora=rslora)
    layers = _lora_layers(_adapted(bert_dir, spec))
    assert layers["encoder.layer.0.intermediate.dense"].scaling["default"] == scalings[0]
    assert layers["encoder.layer.0.attention.output.dense"].scaling["default"] == scalings[1]


def test_only_adapters_train_and_the_function_is_the_base_at_first(bert_dir):
    base = BertModel.from_pretrained(bert_dir).eval()
    model = BertModel.from_pretrained(bert_dir).eval()
    inject_lora(model, ENCODER_SPEC)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    ids = torch.tensor([[2, 4, 5, 3]])
    torch.testing.assert_close(model(ids).last_hidden_state, base(ids).last_hidden_state)


def test_an_unknown_layer_names_the_nearest(bert_dir):
    with pytest.raises(ConfigError, match="no layer 'querry'.*Did you mean 'query'"):
        inject_lora(BertModel.from_pretrained(bert_dir), LoraSpec(target_modules=["querry", "key"]))


def test_excluded_layers_get_no_adapter_and_absent_ones_do_not_matter(bert_dir, recwarn):
    model = BertModel.from_pretrained(bert_dir)
    inject_lora(
        model, LoraSpec(rank=2, target_modules=ENCODER, exclude_modules=["pooler.dense", "output.dense", "no.such"])
    )
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {
        f"encoder.layer.{layer}.{end}"
        for layer in range(2)
        for end in ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense")
    }
    assert not [warning for warning in recwarn if "exclude" in str(warning.message)]


@pytest.mark.parametrize("target", ["no_such_.*", "("])
def test_a_pattern_without_match_is_an_error(bert_dir, target):
    with pytest.raises(ConfigError, match="target_modules"):
        inject_lora(BertModel.from_pretrained(bert_dir), LoraSpec(target_modules=target))


@pytest.mark.parametrize(
    "spec",
    [
        LoraSpec(rank=2),
        LoraSpec(rank=2, attn_lora_rank=4, embedding_mode="lora", embedding_rank=3, target_modules=ENCODER),
        LoraSpec(rank=3, lora_alpha=5.5, use_rslora=True, target_modules=["query"]),
        LoraSpec(rank=2, use_dora=True, target_modules=ENCODER),
        LoraSpec(rank=2, target_modules="all-linear", init_lora_weights="gaussian"),
    ],
    ids=["plain", "ranks", "rslora", "dora", "all-linear"],
)
def test_peft_loads_what_we_save(bert_dir, tmp_path, spec):
    model = _adapted(bert_dir, spec)
    save_adapter(model, spec, tmp_path / "out", str(bert_dir), {"weight": torch.ones(2, 16)}, {"head": "linear"})
    loaded = peft.PeftModel.from_pretrained(BertModel.from_pretrained(bert_dir), tmp_path / "out").eval()
    ids = torch.tensor([[2, 4, 5, 6, 3], [2, 9, 8, 7, 3]])
    torch.testing.assert_close(loaded(input_ids=ids).last_hidden_state, model(ids).last_hidden_state)


def test_layout(bert_dir, tmp_path):
    spec = ENCODER_SPEC
    model = _adapted(bert_dir, spec)
    for name in ("one", "two"):
        save_adapter(model, spec, tmp_path / name, str(bert_dir), {"weight": torch.ones(2)}, {})
    keys = load_file(tmp_path / "one" / "adapter_model.safetensors").keys()
    assert "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight" in keys
    assert all(key.startswith("base_model.model.") for key in keys)
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(bert_dir)
    assert set(load_file(tmp_path / "one" / "head.safetensors")) == {"weight"}
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_the_merge_reader_sees_adapters_only(bert_dir, tmp_path):
    spec = ENCODER_SPEC
    save_adapter(_adapted(bert_dir, spec), spec, tmp_path / "out", str(bert_dir), {"weight": torch.ones(2)})
    sites = Adapter(tmp_path / "out").sites
    assert len(sites) == 2 * 6  # query, key, value and three dense a layer, but no pooler
    assert "weight" not in sites


def test_saving_replaces_an_earlier_adapter_but_nothing_else(bert_dir, tmp_path):
    spec = ENCODER_SPEC
    model = _adapted(bert_dir, spec)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="not written by lit-wsl"):
        save_adapter(model, spec, tmp_path / "mine", str(bert_dir))
    save_adapter(model, spec, tmp_path / "out", str(bert_dir), {"weight": torch.ones(2)})
    save_adapter(model, spec, tmp_path / "out", str(bert_dir))
    assert not (tmp_path / "out" / "head.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


@pytest.mark.parametrize(
    "fields",
    [
        {"rank": 0},
        {"rank": 0, "target_modules": ENCODER, "embedding_mode": "lora"},
        {"embedding_mode": "standard", "attn_lora_rank": 0, "embedding_rank": 0},
        {"attn_lora_rank": 0, "embedding_mode": "lora", "embedding_rank": 0},
    ],
)
def test_an_empty_specification_leaves_the_model_alone(bert_dir, fields):
    model = BertModel.from_pretrained(bert_dir)
    assert LoraSpec(**fields).is_empty
    inject_lora(model, LoraSpec(**fields))
    assert not _lora_layers(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rank": 0, "attn_lora_rank": 4},
        {"rank": 0, "embedding_mode": "lora", "embedding_rank": 4},
        {"attn_lora_rank": 0, "target_modules": ENCODER},
        {"attn_lora_rank": 0, "embedding_mode": "lora"},
    ],
)
def test_a_rank_anywhere_is_not_empty(fields):
    assert not LoraSpec(**fields).is_empty


def test_by_default_the_linear_layers_of_attention_are_adapted(bert_dir, llama_dir):
    bert = BertModel.from_pretrained(bert_dir)
    inject_lora(bert, LoraSpec(rank=2))
    ends = ("self.query", "self.key", "self.value", "output.dense")
    assert _ranks(bert) == {f"encoder.layer.{layer}.attention.{end}": 2 for layer in range(2) for end in ends}
    llama = AutoModelForCausalLM.from_pretrained(llama_dir)
    inject_lora(llama, LoraSpec(rank=2))
    ends = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert _ranks(llama) == {f"model.layers.{layer}.self_attn.{end}": 2 for layer in range(2) for end in ends}
    assert llama.peft_config["default"].target_modules == set(ends)


def test_conv1d_of_gpt2_is_linear_and_folds(tmp_path, recwarn):
    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8, initializer_range=0.3, bos_token_id=0
    )
    base = GPT2LMHeadModel(config).eval()
    base.save_pretrained(tmp_path / "base")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "base").eval()
    spec = LoraSpec(rank=2, init_lora_weights=False)
    inject_lora(model, spec)
    assert _ranks(model) == {"transformer.h.0.attn.c_attn": 2, "transformer.h.0.attn.c_proj": 2}
    save_adapter(model, spec, tmp_path / "out", str(tmp_path / "base"))
    adapter = Adapter(tmp_path / "out")
    with torch.no_grad():
        for name in adapter.sites:  # c_proj is square: only the configuration says which way round it is
            weight = base.get_parameter(name)
            left, right = adapter.factors(name, tuple(weight.shape)).stored_factors()
            weight += left @ right
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(base(ids).logits, model(ids).logits)
    assert not [warning for warning in recwarn if "fan_in_fan_out" in str(warning.message)]


def test_ranks_by_place(untied):
    model = AutoModelForCausalLM.from_pretrained(untied)
    spec = LoraSpec(
        rank=2, target_modules="all-linear", attn_lora_rank=4, embedding_mode="lora", embedding_rank=3, lora_alpha=12
    )
    inject_lora(model, spec)
    ranks = _ranks(model)
    assert ranks["model.embed_tokens"] == 3
    assert {rank for name, rank in ranks.items() if "self_attn" in name} == {4}
    assert {rank for name, rank in ranks.items() if "mlp" in name} == {2}
    assert len(ranks) == 1 + 2 * 7  # but no lm_head
    config = model.peft_config["default"]
    assert (config.r, config.rank_pattern["embed_tokens"], config.lora_alpha) == (4, 3, 12)


def test_rank_zero_leaves_a_place_out(untied):
    def ranks(**fields):
        model = AutoModelForCausalLM.from_pretrained(untied)
        inject_lora(model, LoraSpec(**fields))
        return _ranks(model)

    assert set(ranks(attn_lora_rank=0, embedding_mode="lora", embedding_rank=5)) == {"model.embed_tokens"}
    no_attention = ranks(rank=2, attn_lora_rank=0, target_modules="all-linear")
    assert no_attention
    assert all("mlp" in name for name in no_attention)
    only_attention = ranks(rank=0, attn_lora_rank=2, target_modules="all-linear", embedding_mode="lora")
    assert only_attention
    assert all("self_attn" in name for name in only_attention)


class Nested(nn.Module):
    """A name that is also the end of a longer name."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.attn = nn.ModuleDict({"proj": nn.Linear(4, 4), "gate": nn.Linear(4, 4)})

    def forward(self, x):
        return self.attn["gate"](self.attn["proj"](self.proj(x)))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"target_modules": "proj"}, {"proj": 8}),
        ({"target_modules": ["proj"]}, {"proj": 8, "attn.proj": 8}),
        ({"target_modules": ["proj"], "exclude_modules": ["attn.proj"]}, {"proj": 8}),
        ({"target_modules": ["proj", "gate"], "attn_lora_rank": 2}, {"proj": 8, "attn.proj": 2, "attn.gate": 2}),
        (
            {"target_modules": "proj|attn.(proj|gate)", "attn_lora_rank": 2},
            {"proj": 8, "attn.proj": 2, "attn.gate": 2},
        ),
        ({}, {"attn.proj": 8, "attn.gate": 8}),
    ],
)
def test_exactly_the_named_layers_are_adapted(tmp_path, fields, expected):
    model = Nested()
    spec = LoraSpec(**fields)
    inject_lora(model, spec)
    assert _ranks(model) == expected
    save_adapter(model, spec, tmp_path / "out", "")
    assert _ranks(peft.PeftModel.from_pretrained(Nested(), tmp_path / "out").base_model.model) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["proj"], "exclude_modules": ["proj"]}, "adapts no layer of Nested"),
        ({"target_modules": ["gate"], "attn_lora_rank": 0}, "ranks of 0 leave none"),
        ({"target_modules": "proj", "attn_lora_rank": 4}, "no layer inside an attention block"),
        ({"embedding_mode": "lora"}, "no input embedding"),
        ({"target_modules": ["attn.pro"]}, "Did you mean 'proj'"),
    ],
)
def test_what_the_model_does_not_have_is_an_error(fields, message):
    model = Nested()
    with pytest.raises(ConfigError, match=message):
        inject_lora(model, LoraSpec(**fields))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_excluded_embedding_cannot_be_adapted(llama_dir):
    spec = LoraSpec(embedding_mode="lora", exclude_modules=["embed_tokens"])
    with pytest.raises(ConfigError, match="drop one of them"):
        inject_lora(AutoModelForCausalLM.from_pretrained(llama_dir), spec)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_initialisations_that_move_the_base_keep_the_function_but_make_no_adapter(untied, tmp_path, init):
    base = AutoModelForCausalLM.from_pretrained(untied).eval()
    model = AutoModelForCausalLM.from_pretrained(untied).eval()
    spec = LoraSpec(rank=4, attn_lora_rank=2, init_lora_weights=init, embedding_mode="lora")
    inject_lora(model, spec)
    layer = _lora_layers(model)["model.layers.0.self_attn.q_proj"]
    assert not torch.allclose(layer.get_base_layer().weight, base.model.layers[0].self_attn.q_proj.weight)
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(model(ids).logits, base(ids).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(CheckpointError, match=f"'{init}' fit no unchanged base.*lit-wsl export"):
        save_adapter(model, spec, tmp_path / "out", str(untied))
    assert not (tmp_path / "out").exists()


def test_a_shared_weight_cannot_move_into_an_adapter(llama_dir):
    spec = LoraSpec(rank=2, target_modules=["lm_head"], init_lora_weights="pissa")
    with pytest.raises(ConfigError, match="'model.embed_tokens' shares"):
        inject_lora(AutoModelForCausalLM.from_pretrained(llama_dir), spec)


def test_olora_does_not_fit_conv1d():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    with pytest.raises(ConfigError, match="olora does not fit the Conv1D layer"):
        inject_lora(model, LoraSpec(rank=2, init_lora_weights="olora"))


def test_an_adapter_on_a_tied_embedding_is_refused_at_once(llama_dir, recwarn):
    model = AutoModelForCausalLM.from_pretrained(llama_dir)
    with pytest.raises(ConfigError, match="shares the weight.*`untie_embeddings: true`") as caught:
        inject_lora(model, LoraSpec(rank=2, embedding_mode="lora"))
    assert "\n" not in str(caught.value)
    assert all(parameter.requires_grad for parameter in model.parameters())
    inject_lora(model, LoraSpec(rank=2, embedding_mode="lora", embedding_rank=0))
    assert not recwarn


RANKS = LoraSpec(
    rank=2, lora_alpha=6, attn_lora_rank=4, embedding_mode="lora", embedding_rank=3, target_modules=ENCODER
)


def test_an_adapter_with_ranks_by_place_loads_again_without_the_base(bert_dir, tmp_path):
    model = _adapted(bert_dir, RANKS)
    save_adapter(model, RANKS, tmp_path / "out", str(bert_dir))
    assert not [key for key in load_file(tmp_path / "out" / "adapter_model.safetensors") if "base_layer" in key]
    again = BertModel.from_pretrained(bert_dir).eval()
    inject_lora(again, RANKS)
    load_adapter(again, RANKS, tmp_path / "out")
    ids = torch.tensor([[2, 4, 5, 6, 3]])
    torch.testing.assert_close(again(ids).last_hidden_state, model(ids).last_hidden_state)


@pytest.mark.parametrize(
    "change",
    [{"rank": 3}, {"attn_lora_rank": 2}, {"embedding_rank": 4}, {"lora_alpha": 5}, {"use_rslora": True}]
    + [{"use_dora": True}, {"embedding_mode": "standard", "embedding_rank": None}, {"target_modules": ["query"]}],
)
def test_an_adapter_of_other_settings_is_refused(bert_dir, tmp_path, change):
    save_adapter(_adapted(bert_dir, RANKS), RANKS, tmp_path / "out", str(bert_dir))
    other = dataclasses.replace(RANKS, **change)
    model = BertModel.from_pretrained(bert_dir)
    inject_lora(model, other)
    with pytest.raises(CheckpointError, match="make them agree"):
        load_adapter(model, other, tmp_path / "out")
