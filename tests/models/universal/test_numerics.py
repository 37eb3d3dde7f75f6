"""How exact folding is, and what it leaves alone."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.api import get_merged_state_dict, load_universal
from lit_wsl.tensors import lora
from tests.models.universal.build import shake
from tests.models.universal.layers import NETS

ADAPTED = "layer.weight"


def layer(dtype=torch.float32, size=1e-3, **settings):
    """A linear layer of 96 x 64 whose update is small beside its weight, with a plain one beside it."""
    model = nn.ModuleDict({"layer": nn.Linear(64, 96), "other": nn.Linear(4, 4)})
    config = LoraConfig(r=8, lora_alpha=8, target_modules=["layer"], **settings)
    model = inject_adapter_in_model(config, model)
    with torch.no_grad():
        model["layer"].lora_A["default"].weight.normal_()
        model["layer"].lora_B["default"].weight.normal_(std=size / 8**0.5)
    return model.to(dtype)


def oracle(model):
    """Base and update in float64, by the definition."""
    weights = (model["layer"].lora_B["default"].weight, model["layer"].lora_A["default"].weight)
    B, A = (weight.detach().double() for weight in weights)
    return model["layer"].base_layer.weight.detach().double(), B @ A


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float16])
def test_a_small_update_survives_beside_a_16_bit_base(base):
    model = layer(base)
    weight, update = oracle(model)

    def error(merged_dtype):
        merged = get_merged_state_dict(model, merged_dtype=merged_dtype)[ADAPTED]
        return (merged.double() - weight - update).norm() / update.norm()

    assert error("auto") <= 1e-3
    if base == torch.bfloat16:
        assert error("base") > 0.1


@pytest.mark.parametrize(
    ("base", "merged_dtype", "expected"),
    [
        (torch.bfloat16, "auto", torch.float32),
        (torch.float16, "auto", torch.float32),
        (torch.float32, "auto", torch.float32),
        (torch.float64, "auto", torch.float64),
        (torch.bfloat16, "base", torch.bfloat16),
        (torch.float64, "float32", torch.float32),
    ],
)
def test_the_dtype_of_merged_weights(base, merged_dtype, expected):
    state = get_merged_state_dict(layer(base), merged_dtype=merged_dtype)
    assert state[ADAPTED].dtype == expected
    assert state["other.weight"].dtype == base


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float32, torch.float64])
def test_folding_is_that_of_float64_rounded_once(base):
    model = layer(base, size=0.3)
    merged = get_merged_state_dict(model)[ADAPTED]
    exact = sum(oracle(model))
    limit = torch.finfo(merged.dtype).eps
    torch.testing.assert_close(merged.double(), exact, rtol=limit, atol=limit**2)


@pytest.mark.parametrize("entries", [1, 64, 65 * 7, 1 << 20])
@pytest.mark.parametrize("dialect", ["torchtune", "torchtune DoRA", "litgpt qv interleaved", "nanoGPT"])
def test_the_size_of_a_block_changes_nothing(monkeypatch, dialect, entries):
    net, plain = NETS[dialect](3), NETS[dialect](2)
    expected = get_merged_state_dict(net)
    monkeypatch.setattr(lora, "_BLOCK_ENTRIES", entries)
    ours = get_merged_state_dict(net)
    for key, tensor in expected.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-7, atol=1e-9, msg=key)
    load_universal(plain, ours)
    torch.testing.assert_close(get_merged_state_dict(plain), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["lora_A", "lora_B", "lora_magnitude_vector"])
def test_factors_that_are_not_finite_are_refused_by_name(tensor, value):
    model = layer(use_dora=True)
    model["layer"].get_parameter(f"{tensor}.default.weight").data[0] = value
    with pytest.raises(CheckpointError, match="layer.weight merged with its adapter is not finite"):
        get_merged_state_dict(model)


def test_a_bias_that_is_not_finite_is_refused_by_name():
    model = layer(lora_bias=True)
    model["layer"].lora_B["default"].bias.data[0] = float("nan")
    with pytest.raises(CheckpointError, match="layer.bias merged with its adapter is not finite"):
        get_merged_state_dict(model)


def test_an_update_that_overflows_the_base_dtype_is_refused():
    model = layer(torch.float16)
    model["layer"].base_layer.weight.data.fill_(65000)
    model["layer"].lora_B["default"].weight.data.fill_(200)
    model["layer"].lora_A["default"].weight.data.fill_(1)
    assert get_merged_state_dict(model)[ADAPTED].isfinite().all()
    with pytest.raises(CheckpointError, match="not finite"):
        get_merged_state_dict(model, merged_dtype="base")


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"lora_bias": True}], ids=["lora", "dora", "bias"])
def test_neither_side_of_a_load_is_changed_but_the_module(settings):
    source, target = shake(layer(**settings)), layer(size=0.3, **settings)
    state = get_merged_state_dict(source)
    sides = [state, source.state_dict()]
    before = [{key: tensor.clone() for key, tensor in side.items()} for side in sides]
    load_universal(target, state)
    shake(target, size=1.0)
    for side, old in zip(sides, before, strict=True):
        assert all(torch.equal(tensor, old[key]) for key, tensor in side.items())


def test_merged_weights_do_not_alias_the_module():
    model = layer()
    merged = get_merged_state_dict(model)[ADAPTED].clone()
    state = get_merged_state_dict(model)
    shake(model, size=1.0)
    assert torch.equal(state[ADAPTED], merged)
