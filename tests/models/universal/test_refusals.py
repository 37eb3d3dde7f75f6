"""Adapters that no plain checkpoint can hold are refused by name, before any training."""

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.api import check_adapters, get_merged_state_dict
from tests.models.universal.build import shake
from tests.tiny_llama import tied_llama_config


def refused(model, message):
    for function in (check_adapters, get_merged_state_dict):
        with pytest.raises(CheckpointError, match=message):
            function(model)


def adapt(layer, **settings):
    settings = {"r": 2, "target_modules": ["layer"]} | settings
    return inject_adapter_in_model(LoraConfig(**settings), nn.ModuleDict({"layer": layer}))


def test_a_grouped_convolution():
    refused(adapt(nn.Conv2d(4, 4, 3, groups=2)), "layer: a convolution with 2 groups cannot be folded")


def test_multi_head_attention():
    refused(adapt(nn.MultiheadAttention(8, 2)), "layer: .*MultiheadAttention cannot be folded; exclude this layer")


@pytest.mark.parametrize(
    ("config", "name"),
    [(peft.IA3Config(target_modules=["layer"], feedforward_modules=[]), "IA3"), (peft.LoHaConfig(r=2), "LoHa")],
)
def test_another_kind_of_adapter(config, name):
    config.target_modules = ["layer"]
    model = get_peft_model(nn.ModuleDict({"layer": nn.Linear(4, 4)}), config)
    refused(model, r"layer: \w+ is no LoRA layer")


def test_trainable_tokens():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "layer": nn.Linear(4, 4)})
    config = LoraConfig(r=2, target_modules=["layer"], trainable_token_indices={"embed": [1, 2]})
    refused(inject_adapter_in_model(config, model), "embed: TrainableTokensWrapper is no LoRA layer")


def test_dora_next_to_another_active_adapter():
    model = get_peft_model(nn.ModuleDict({"layer": nn.Linear(4, 4)}), LoraConfig(r=2, target_modules=["layer"]))
    model.add_adapter("second", LoraConfig(r=2, target_modules=["layer"], use_dora=True))
    model.base_model.set_adapter(["default", "second"])
    refused(model, "layer: DoRA cannot be folded together .* activate 'second' alone")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantised_weight(dtype):
    model = adapt(nn.Linear(4, 4))
    weight = model["layer"].base_layer.weight
    model["layer"].base_layer.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    refused(model, f"layer: its weight is quantised .{dtype}")


def test_a_weight_that_is_computed():
    model = adapt(nn.Linear(4, 4))
    nn.utils.parametrizations.weight_norm(model["layer"].base_layer)
    refused(model, "layer: its weight is computed")


def test_a_bias_without_a_place():
    model = adapt(nn.Linear(4, 4))
    model["layer"].lora_bias["default"] = True
    model["layer"].base_layer.bias = None
    refused(model, "layer: `lora_bias` needs a layer with a bias")


def test_adapters_merged_and_disabled_at_once():
    model = shake(adapt(nn.Linear(4, 4)))
    model["layer"].merge()
    model["layer"].enable_adapters(False)
    refused(model, "layer: its adapters are merged and disabled")


def test_a_state_that_lacks_the_base():
    model = adapt(nn.Linear(4, 4))
    trained = {key: t for key, t in model.state_dict().items() if "lora_" in key}
    with pytest.raises(CheckpointError, match="'layer.lora_A.default.weight' stands without the weight of its layer"):
        get_merged_state_dict(trained, 1.0)


def tied(**settings):
    model = LlamaForCausalLM(LlamaConfig(**tied_llama_config()))
    return inject_adapter_in_model(LoraConfig(**{"r": 2, "target_modules": ["q_proj"]} | settings), model)


@pytest.mark.parametrize(
    "settings",
    [{"target_modules": ["embed_tokens"]}, {"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}],
    ids=["embedding", "head", "saved head"],
)
def test_one_of_two_tied_weights(settings):
    model = shake(tied(**settings))
    with pytest.raises(CheckpointError, match="are one tied tensor, and .* is adapted by itself.*untie_embeddings"):
        check_adapters(model)
    with pytest.raises(CheckpointError, match="are tied but differ after merging"):
        get_merged_state_dict(model)


def test_tied_weights_that_no_adapter_touches():
    model = shake(tied())
    assert check_adapters(model)
    assert torch.equal(get_merged_state_dict(model)["lm_head.weight"], model.lm_head.weight)
