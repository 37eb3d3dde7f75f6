"""The layouts of nanoGPT, litgpt and torchtune against their layers' own forward."""

import pytest
import torch
from torch import nn

import lit_wsl
from lit_wsl.errors import CheckpointError
from lit_wsl.models.lora import LoraSpec
from lit_wsl.state.adapters import AdapterConfig
from tests.models.universal.layers import (
    NETS,
    LitLinear,
    LitQKV,
    NanoLinear,
    Net,
    TuneLinear,
    output,
    plain_like,
)

ACCURACY = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


@pytest.mark.parametrize(("dtype", "limit"), ACCURACY)
@pytest.mark.parametrize("dialect", NETS)
def test_the_merged_state_is_the_forward_of_the_layers(dialect, dtype, limit):
    net = NETS[dialect](3).to(dtype)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    plain = plain_like(net).to(dtype)
    plain.load_state_dict(lit_wsl.get_merged_state_dict(net), strict=True)
    torch.testing.assert_close(output(plain), output(net), rtol=0, atol=limit)
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize("dialect", NETS)
def test_an_adapted_network_takes_plain_weights_and_keeps_its_random_adapters(dialect):
    net = NETS[dialect](3).double()
    plain = plain_like(net).double()
    factors = {key: tensor.clone() for key, tensor in net.state_dict().items() if "lora_" in key}
    report = lit_wsl.load_universal(net, plain.state_dict())
    torch.testing.assert_close(output(net), output(plain), rtol=0, atol=1e-10)
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in factors.items())
    assert report.fresh
    assert not report.restored


@pytest.mark.parametrize("dialect", NETS)
def test_another_rank_takes_the_merged_weights(dialect):
    net, other = NETS[dialect](3).double(), NETS[dialect](2).double()
    lit_wsl.load_universal(other, lit_wsl.get_merged_state_dict(net))
    torch.testing.assert_close(output(other), output(net), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dialect", NETS)
def test_the_same_configuration_takes_an_unmerged_state_as_it_is(dialect):
    net, other = NETS[dialect](3), NETS[dialect](3)
    report = lit_wsl.load_universal(other, net.state_dict())
    assert all(torch.equal(other.state_dict()[key], tensor) for key, tensor in net.state_dict().items())
    assert not report.fresh


def settings():
    spec = LoraSpec(rank=8, lora_alpha=6.0)
    return [spec, 2.0, AdapterConfig(r=3, lora_alpha=6.0)]


@pytest.mark.parametrize("lora", settings(), ids=["spec", "number", "config"])
@pytest.mark.parametrize("dialect", ["nanoGPT without bias", "torchtune", "torchtune DoRA"])
def test_a_bare_state_folds_under_the_settings_given(dialect, lora):
    net = NETS[dialect](3)
    ours, expected = lit_wsl.get_merged_state_dict(net.state_dict(), lora), lit_wsl.get_merged_state_dict(net)
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-6, msg=key)


def test_a_bare_state_of_rank_stabilised_adapters():
    net = NETS["torchtune"](4)
    for layer in (net.first, net.second):
        layer.alpha = 6.0 * 2  # sqrt(4) more than the divisor 4 gives
    ours = lit_wsl.get_merged_state_dict(net.state_dict(), LoraSpec(lora_alpha=6.0, use_rslora=True))
    torch.testing.assert_close(ours["first.weight"], lit_wsl.get_merged_state_dict(net)["first.weight"])


@pytest.mark.parametrize("dialect", ["nanoGPT without bias", "torchtune", "torchtune DoRA"])
def test_a_bare_state_loads_into_another_rank(dialect):
    net, other = NETS[dialect](3).double(), NETS[dialect](2).double()
    lit_wsl.load_universal(other, net.state_dict(), lora=2.0)
    torch.testing.assert_close(output(other), output(net), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("lora", "exact"), [(None, True), (2.0, True), (4.0, False)])
def test_another_scale_is_never_taken_as_it_is(lora, exact):
    """Equal names and shapes do not make an adapter of scale 4 one of scale 2."""
    net, other = NETS["torchtune"](3).double(), NETS["torchtune"](3).double()
    report = lit_wsl.load_universal(other, net.state_dict(), lora=lora)
    assert (not report.fresh) == exact
    if not exact:
        net.first.alpha = net.second.alpha = 12.0
    torch.testing.assert_close(output(other), output(net), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dialect", ["nanoGPT", "litgpt", "torchtune"])
def test_a_bare_state_without_settings_names_the_remedy(dialect):
    with pytest.raises(CheckpointError, match=r"pass `lora=LoraSpec\(\.\.\.\)`"):
        lit_wsl.get_merged_state_dict(NETS[dialect](3).state_dict())


def test_a_fused_projection_needs_its_module():
    with pytest.raises(CheckpointError, match="fused projection can be folded from its module only"):
        lit_wsl.get_merged_state_dict(NETS["litgpt qkv grouped"](3).state_dict(), 2.0)


def test_a_layer_without_scale_is_refused_by_name():
    net = NETS["nanoGPT"](3)
    del net.first.scaling
    with pytest.raises(CheckpointError, match="first: a NanoLinear does not say its scale"):
        lit_wsl.get_merged_state_dict(net)


@pytest.mark.parametrize("kind", [LitLinear, TuneLinear])
def test_a_merged_layer_is_not_folded_twice(kind):
    net = Net(nn.Embedding(11, 8), kind(8, 8, 3), nn.Linear(8, 5))
    merged = lit_wsl.get_merged_state_dict(net)
    expected = output(net)
    net.first.merged = True
    lit_wsl.load_universal(net, merged)
    torch.testing.assert_close(output(net), expected)
    again = lit_wsl.get_merged_state_dict(net)
    assert all(torch.equal(again[key], tensor) for key, tensor in merged.items())


def test_the_bias_of_an_adapted_layer_is_kept():
    net = NETS["nanoGPT"](3)
    assert torch.equal(lit_wsl.get_merged_state_dict(net)["first.bias"], net.first.main_weight.bias)


@pytest.mark.parametrize("layer", [NanoLinear(4, 4, 2), LitLinear(4, 4, 2), TuneLinear(4, 4, 2), LitQKV(4, 2, 1, 2)])
def test_a_single_layer_is_a_model_too(layer):
    plain, x = nn.Linear(4, 8 if isinstance(layer, LitQKV) else 4), torch.randn(1, 3, 4)
    plain.load_state_dict(lit_wsl.get_merged_state_dict(layer), strict=True)
    torch.testing.assert_close(plain(x), layer(x))
    lit_wsl.load_universal(layer, plain.state_dict())
    torch.testing.assert_close(plain(x), layer(x))


def test_a_bias_on_the_up_projection_goes_into_the_layers_bias():
    net = NETS["torchtune"](3)
    net.first.lora_b = nn.Linear(3, 8)
    plain = plain_like(net)
    plain.load_state_dict(lit_wsl.get_merged_state_dict(net), strict=True)
    torch.testing.assert_close(output(plain), output(net))
    lit_wsl.load_universal(net, plain.state_dict())
    torch.testing.assert_close(output(plain), output(net))


def test_a_bias_without_a_place_is_refused():
    net = NETS["torchtune"](3)
    net.second.lora_b = nn.Linear(3, 5)
    with pytest.raises(CheckpointError, match="second: the adapter has a bias and the layer has none"):
        lit_wsl.get_merged_state_dict(net)


def test_factors_without_their_layer_are_refused():
    state = {key: t for key, t in NETS["torchtune"](3).state_dict().items() if key != "first.weight"}
    with pytest.raises(CheckpointError, match=r"'first\.lora_a\.weight' stands without the weight of its layer"):
        lit_wsl.get_merged_state_dict(state, 2.0)


def test_a_factor_without_its_partner_is_refused():
    state = {key: t for key, t in NETS["torchtune"](3).state_dict().items() if key != "first.lora_b.weight"}
    with pytest.raises(CheckpointError, match=r"'first\.lora_a\.weight' stands without 'first\.lora_b\.weight'"):
        lit_wsl.get_merged_state_dict(state, 2.0)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_configuration_of_another_rank_is_refused(use_rslora):
    state = NETS["torchtune"](3).state_dict()
    with pytest.raises(CheckpointError, match="first has LoRA factors of rank 3, but the configuration"):
        lit_wsl.get_merged_state_dict(state, AdapterConfig(r=4, lora_alpha=6.0, use_rslora=use_rslora))
    lit_wsl.get_merged_state_dict(state, AdapterConfig(r=3, lora_alpha=6.0, use_rslora=use_rslora))
