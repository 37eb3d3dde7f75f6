"""Every form of PEFT's LoRA against its own merge, and through a plain state dict back into adapters."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.api import check_adapters, get_merged_state_dict, load_universal, remap_state
from lit_wsl.state.adapters import AdapterConfig
from tests.models.universal.build import logits, shake
from tests.tiny_llama import tied_llama_config


class Mixed(nn.Module):
    """One layer of every kind that PEFT adapts."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 6)
        self.conv1 = nn.Conv1d(6, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(1, 4, (2, 3), stride=(1, 2))
        self.flat = nn.Linear(48, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens):
        x = self.conv1(self.embed(tokens).transpose(1, 2))
        x = self.conv2(x.unsqueeze(1)).tanh().flatten(1)
        return self.head(self.flat(x).tanh())


class Gpt(GPT2LMHeadModel):
    """A tiny GPT-2, whose linear layers are transformers' Conv1D; the attention's output is square."""

    def __init__(self):
        tied = {"tie_word_embeddings": False}
        super().__init__(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=13, n_positions=16, **tied))

    def forward(self, input_ids, **options):
        return super().forward(input_ids=input_ids, **options)


TARGETS = ["embed", "conv1", "conv2", "flat"]
MIXED = {"r": 3, "lora_alpha": 5, "target_modules": TARGETS, "init_lora_weights": False}
GPT = {"r": 3, "lora_alpha": 5, "target_modules": ["c_attn", "c_proj", "wte"], "fan_in_fan_out": True}
FORMS = {
    "lora": (Mixed, MIXED),
    "zero init": (Mixed, MIXED | {"init_lora_weights": True}),
    "rslora": (Mixed, MIXED | {"use_rslora": True}),
    "dora": (Mixed, MIXED | {"use_dora": True}),
    "bias": (Mixed, MIXED | {"lora_bias": True, "target_modules": TARGETS[1:]}),
    "patterns": (Mixed, MIXED | {"rank_pattern": {"flat": 5, "embed": 1}, "alpha_pattern": {"conv2": 9}}),
    "saved": (Mixed, MIXED | {"modules_to_save": ["head"]}),
    "gpt": (Gpt, GPT),
    "gpt dora": (Gpt, GPT | {"use_dora": True}),
    "gpt bias": (Gpt, GPT | {"lora_bias": True, "target_modules": ["c_attn", "c_proj"]}),
}


def build(form):
    kind, settings = FORMS[form]
    return shake(inject_adapter_in_model(LoraConfig(**settings), kind().double().eval()))


@torch.no_grad()
def output(model):
    out = model(torch.arange(14).reshape(2, 7) * 3 % 13)
    return getattr(out, "logits", out)


def plain_output(kind, state):
    plain = kind().to(next(iter(state.values())).dtype).eval()
    plain.load_state_dict(state, strict=True)
    return output(plain)


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_the_merged_state_computes_what_the_adapted_model_does(form):
    model = build(form)
    same(plain_output(FORMS[form][0], get_merged_state_dict(model)), output(model))


@pytest.mark.parametrize("form", FORMS)
def test_the_merged_state_is_that_of_merge_and_unload(form):
    kind, settings = FORMS[form]
    model = shake(get_peft_model(kind().double(), LoraConfig(**settings)))
    ours = get_merged_state_dict(model)
    theirs = copy.deepcopy(model).merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-12, msg=key)


PAIRS = [(one, other) for one in FORMS for other in FORMS if FORMS[one][0] is FORMS[other][0]]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_form_goes_into_every_other_of_its_architecture(source, target):
    model, other = build(source), build(target)
    load_universal(other, get_merged_state_dict(model))
    same(output(other), output(model))


@pytest.mark.parametrize("form", FORMS)
def test_a_peft_model_takes_plain_weights(form):
    kind, settings = FORMS[form]
    model = shake(get_peft_model(kind().double().eval(), LoraConfig(**settings))).eval()
    plain = kind().double().eval()
    load_universal(model, plain.state_dict())
    same(output(model), output(plain))


@pytest.mark.parametrize("form", ["lora", "dora", "patterns", "saved", "bias", "gpt", "gpt dora"])
def test_a_bare_state_folds_under_its_configuration(form):
    kind, settings = FORMS[form]
    model = shake(get_peft_model(kind().double(), LoraConfig(**settings)))
    names = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
    config = AdapterConfig(**{name: settings[name] for name in names if name in settings})
    for state in (model.state_dict(), model.base_model.model.state_dict()):
        ours, expected = get_merged_state_dict(state, config), get_merged_state_dict(model)
        assert ours.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(ours[key], tensor, msg=key)


def test_square_weights_of_a_bare_state_follow_the_others():
    """Only the other layers tell that the square output projection is stored the other way round."""
    model = build("gpt")
    ours, expected = get_merged_state_dict(model.state_dict(), 5 / 3), get_merged_state_dict(model)
    assert expected["transformer.h.0.attn.c_proj.weight"].shape == (16, 16)
    for key, tensor in expected.items():
        torch.testing.assert_close(ours[key], tensor, msg=key)


def two_adapters(kind=Mixed, second=None, **settings):
    model = get_peft_model(kind().double().eval(), LoraConfig(**MIXED | settings), adapter_name="one")
    model.add_adapter("two", LoraConfig(**MIXED | settings | (second or {"r": 2})))
    return model.eval()


def test_several_active_adapters_add_up():
    model = two_adapters()
    model.base_model.set_adapter(["one", "two"])
    same(plain_output(Mixed, get_merged_state_dict(model)), output(model))
    plain = Mixed().double()
    load_universal(model, plain.state_dict())
    same(output(model), output(plain))


@pytest.mark.parametrize("name", ["one", "two"])
def test_of_several_adapters_the_active_one_counts(name):
    model = shake(two_adapters(modules_to_save=["head"]))
    model.set_adapter(name)
    shake(model)
    same(plain_output(Mixed, get_merged_state_dict(model)), output(model))


def test_a_bare_state_with_several_adapters_is_refused():
    model = two_adapters(modules_to_save=["head"])
    with pytest.raises(CheckpointError, match="2 adapters, and the state dict does not say which"):
        get_merged_state_dict(model.state_dict(), 2.0)


def test_disabled_adapters_do_not_count():
    model = shake(get_peft_model(Mixed().double().eval(), LoraConfig(**MIXED, modules_to_save=["head"])))
    with model.disable_adapter():
        same(plain_output(Mixed, get_merged_state_dict(model)), output(model))
        plain = Mixed().double()
        load_universal(model, plain.state_dict())
        same(output(model), output(plain))


@pytest.mark.parametrize("form", FORMS)
def test_merged_adapters_are_not_folded_twice(form):
    kind, settings = FORMS[form]
    model = shake(get_peft_model(kind().double().eval(), LoraConfig(**settings))).eval()
    expected = output(model)
    model.merge_adapter()
    same(plain_output(kind, get_merged_state_dict(model)), expected)


def test_with_one_of_two_adapters_merged_the_base_alone_counts():
    """As in PEFT, where a layer with anything merged leaves out what is not."""
    model = two_adapters()
    model.base_model.set_adapter(["one", "two"])
    model.merge_adapter(["one"])
    same(plain_output(Mixed, get_merged_state_dict(model)), output(model))


class Counting(nn.Linear):
    """A layer with state that is no tensor."""

    calls = 0

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


def test_state_that_is_no_tensor_goes_along():
    plain, target = (nn.ModuleDict({"a": Counting(4, 4), "b": nn.Linear(4, 4)}) for _ in range(2))
    model = shake(inject_adapter_in_model(LoraConfig(r=2, target_modules=["b"]), target))
    plain["a"].calls = 3
    load_universal(model, plain.state_dict())
    plain.load_state_dict(get_merged_state_dict(model), strict=True)
    assert plain["a"].calls == 0
    changed = get_merged_state_dict(model) | {"a._extra_state": {"calls": 5}}
    assert remap_state(model, changed).state["a._extra_state"] == {"calls": 5}


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=["adapted", "saved"],
)
def test_tied_weights_adapted_together(settings):
    def tied():
        return LlamaForCausalLM(LlamaConfig(**tied_llama_config())).double()

    config = LoraConfig(r=2, ensure_weight_tying=True, init_lora_weights=False, **settings)
    model, plain = get_peft_model(tied(), config), tied()
    shake(model)
    check_adapters(model)
    plain.load_state_dict(get_merged_state_dict(model), strict=True)
    same(logits(plain), logits(model))
    other = tied()
    load_universal(model, other.state_dict())
    same(logits(model), logits(other))
