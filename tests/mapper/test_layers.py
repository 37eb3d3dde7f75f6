"""Outputs of layers: the model runs as ever, and is as ever afterwards."""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

from lit_wsl.errors import ConfigError
from lit_wsl.mapper.layers import IntermediateLayerGetter


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, scale=1.0):
        return self.drop(self.linear(x)) * scale


class Model(nn.Module):
    """Blocks, one of which runs twice, and a recurrent layer that returns a tuple."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.recurrent = nn.GRU(4, 4, batch_first=True)
        self.head = nn.Linear(4, 2)
        self.never = nn.Linear(4, 4)
        self.fails = False

    def forward(self, x, *, scale=1.0):
        x = self.blocks[1](self.blocks[0](self.blocks[0](x), scale))
        x, _ = self.recurrent(x)
        if self.fails:
            raise RuntimeError("broken")
        return self.head(x)


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.fixture
def model():
    return Model().eval()


X = torch.linspace(-1, 1, 24).view(2, 3, 4)


def test_outputs_by_name_beside_the_models_own(model):
    with IntermediateLayerGetter(model, {"head": "logits", "blocks.1.linear": "hidden"}) as getter:
        found, output = getter(X, scale=2.0)
    assert type(found) is OrderedDict
    assert list(found) == ["logits", "hidden"]
    assert torch.equal(found["logits"], output)
    assert torch.equal(output, model(X, scale=2.0))
    middle = model.blocks[0](model.blocks[0](X), 2.0)
    assert torch.equal(found["hidden"], model.blocks[1].linear(middle))


def test_a_list_of_paths_and_no_output(model):
    found, output = IntermediateLayerGetter(model, ["blocks.1", ""], keep_output=False)(X)
    assert output is None
    assert list(found) == ["blocks.1", ""]
    assert torch.equal(found[""], model(X))


def test_a_layer_that_runs_twice(model):
    first = model.blocks[0](X)
    found, _ = IntermediateLayerGetter(model, ["blocks.0"])(X)
    assert torch.equal(found["blocks.0"], model.blocks[0](first))
    found, _ = IntermediateLayerGetter(model, ["blocks.0", "head"], calls="all")(X)
    assert [torch.equal(*pair) for pair in zip(found["blocks.0"], (first, model.blocks[0](first)), strict=True)]
    assert len(found["head"]) == 1, "every layer has a list"


def test_one_module_under_two_paths():
    shared = nn.Linear(4, 4)
    found, _ = IntermediateLayerGetter(nn.Sequential(shared, nn.Tanh(), shared), ["0", "2"], calls="all")(X)
    assert [len(calls) for calls in found.values()] == [2, 2]


def test_tuples_stay_tuples(model):
    found, _ = IntermediateLayerGetter(model, ["recurrent"])(X)
    outputs, state = found["recurrent"]
    assert outputs.shape == (2, 3, 4)
    assert state.shape == (1, 2, 4)


def test_gradients_flow_through_the_outputs(model):
    found, output = IntermediateLayerGetter(model, ["blocks.1"])(X)
    (gradient,) = torch.autograd.grad(output.sum(), found["blocks.1"])
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("training", [True, False])
def test_modes_stay(model, context, training):
    model.train(training)
    with context():
        torch.manual_seed(1)
        expected = model(X)
        torch.manual_seed(1)
        found, output = IntermediateLayerGetter(model, ["head"])(X)
    assert torch.equal(output, expected)
    assert found["head"].requires_grad == (context is torch.enable_grad)
    assert all(module.training is training for module in model.modules())


def test_hooks_are_gone_after_every_call_and_every_error(model):
    getter = IntermediateLayerGetter(model, ["head", "blocks.0"])
    assert hooks(model) == 0
    getter(X)
    assert hooks(model) == 0
    model.fails = True
    with pytest.raises(RuntimeError, match="broken"), getter:
        getter(X)
    assert hooks(model) == 0
    with pytest.raises(ConfigError, match="is closed"):
        getter(X)


def test_hooks_of_others_stay_and_are_seen(model):
    model.head.register_forward_hook(lambda module, inputs, output: output * 0)
    found, _ = IntermediateLayerGetter(model, ["head"])(X)
    assert found["head"].abs().sum() == 0
    assert hooks(model) == 1


def test_models_are_copied_and_saved_beside_a_getter(model):
    getter = IntermediateLayerGetter(model, ["head"])
    getter(X)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            other.head.weight.zero_()
            other.head.bias.zero_()
        assert IntermediateLayerGetter(other, ["head"])(X)[0]["head"].abs().sum() == 0
    assert copy.deepcopy(getter)(X)[0]["head"].abs().sum() > 0


def test_a_module_replaced_later_is_the_one_that_is_read(model):
    getter = IntermediateLayerGetter(model, ["head"])
    model.head = nn.Linear(4, 7)
    assert getter(X)[0]["head"].shape == (2, 3, 7)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["hed"], "no module 'hed'. Did you mean 'head'"),
        (["blocks.7.linear"], r"Did you mean 'blocks\.\d\.linear'"),
        (["blocks.0.zzzzzzzz.yyyyyyyyyyyyyyyy"], r"Known: blocks\.0\.drop, blocks\.0\.linear\."),
        (["qqqqqqqq"], "Known: blocks, head, never, recurrent"),
        ({"head": "a", "never": "a"}, "would both be named 'a'"),
        ([], "names no layer"),
        ({}, "names no layer"),
        ("head", r"write \['head'\]"),
    ],
)
def test_mistakes_are_one_clear_error(model, layers, message):
    with pytest.raises(ConfigError, match=message) as caught:
        IntermediateLayerGetter(model, layers)
    assert "\n" not in str(caught.value)


def test_a_layer_that_does_not_run(model):
    with pytest.raises(ConfigError, match="'never' did not run"):
        IntermediateLayerGetter(model, ["head", "never"])(X)
    with pytest.raises(ConfigError, match="'last' or 'all'"):
        IntermediateLayerGetter(model, ["head"], calls="first")


def test_an_output_that_is_changed_in_place(model):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    expected = net[0](X)
    with pytest.raises(ConfigError, match="changed the output of '0' in place"):
        IntermediateLayerGetter(net, ["0"])(X)
    assert torch.equal(IntermediateLayerGetter(net, ["0"], copy=True)(X)[0]["0"], expected)
    with torch.inference_mode():
        assert torch.equal(IntermediateLayerGetter(net, ["0"])(X)[0]["0"], expected)
