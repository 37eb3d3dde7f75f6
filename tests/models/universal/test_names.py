"""Names are worked on by component: what merely looks like an adapter or a wrapper stays as it is."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.api import get_merged_state_dict, load_universal
from lit_wsl.models.universal.foreign import align
from tests.models.universal.build import shake
from tests.models.universal.layers import NETS, output, plain_like


class Named(nn.Module):
    """Names that a replacement of text would spoil."""

    def __init__(self):
        super().__init__()
        self.lora_things = nn.Linear(4, 4)
        self.weight = nn.Linear(4, 4)
        self.my_base_layer = nn.Linear(4, 4)
        self.weight_norm = nn.Linear(4, 4)
        self.module = nn.Linear(4, 4)
        self.model = nn.ModuleDict({"linear": nn.Linear(4, 4), "modules_to_save_too": nn.Linear(4, 4)})
        self.register_buffer("lora_A_count", torch.zeros(3))

    def forward(self, x):
        x = self.weight_norm(self.my_base_layer(self.weight(self.lora_things(x))))
        return self.model["modules_to_save_too"](self.model["linear"](self.module(x)))


TARGETS = ["lora_things", "my_base_layer", "weight_norm", "module", "model.linear"]


def test_names_that_look_like_adapters_survive():
    plain, x = Named(), torch.randn(2, 4)
    model = shake(inject_adapter_in_model(LoraConfig(r=2, target_modules=TARGETS), Named()))
    state = get_merged_state_dict(model)
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state, strict=True)
    torch.testing.assert_close(plain(x), model(x))
    load_universal(model, Named().state_dict())
    assert get_merged_state_dict(plain).keys() == plain.state_dict().keys()


def test_a_component_after_the_weight_survives():
    net = nn.ModuleDict({"a": nn.Linear(4, 4)})
    net["a"].weight_norm = nn.LayerNorm(4)
    net = inject_adapter_in_model(LoraConfig(r=2, target_modules=["a"]), net)
    assert {"a.weight", "a.weight_norm.weight"} <= get_merged_state_dict(net).keys()


def wrapped(kind, dialect="nanoGPT"):
    net = NETS[dialect](3)
    if kind == "compiled":
        return net, torch.compile(net)
    if kind == "compiled layer":
        net.first = torch.compile(net.first)
        return net, net
    if kind == "checkpointed":
        net.first = checkpoint_wrapper(net.first)
        net.second = checkpoint_wrapper(net.second)
        return net, net
    return net, nn.DataParallel(net)


WRAPPERS = ["compiled", "compiled layer", "checkpointed", "data parallel"]


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_leave_no_trace_in_a_merged_state(kind):
    net, outer = wrapped(kind)
    plain = plain_like(net)
    plain.load_state_dict(get_merged_state_dict(outer), strict=True)
    bare = NETS["nanoGPT"](3)
    load_universal(bare, outer.state_dict())
    torch.testing.assert_close(output(plain), output(bare))


@pytest.mark.parametrize("theirs", [None, *WRAPPERS])
@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("merged", [False, True])
def test_wrappers_are_put_back_on_load(kind, theirs, merged):
    source = wrapped(theirs)[1] if theirs else NETS["nanoGPT"](3)
    _, outer = wrapped(kind)
    report = load_universal(outer, get_merged_state_dict(source) if merged else source.state_dict())
    assert bool(report.fresh) == merged
    ours, expected = get_merged_state_dict(outer), get_merged_state_dict(source)
    for key, tensor in expected.items():
        torch.testing.assert_close(ours[key], tensor, msg=key)


def test_keys_of_a_sharded_wrapper_are_plain_ones():
    net = NETS["torchtune"](3)
    inner = {key.replace("first", "first._fsdp_wrapped_module"): t for key, t in net.state_dict().items()}
    state = {f"_fsdp_wrapped_module.{key}": tensor for key, tensor in inner.items()}
    ours, expected = get_merged_state_dict(state, 2.0), get_merged_state_dict(net)
    assert ours.keys() == expected.keys()
    load_universal(NETS["torchtune"](3), state)


def test_module_is_a_name_like_any_other_inside_a_model():
    outer = nn.Module()
    outer.module = NETS["torchtune"](3)
    state = get_merged_state_dict(outer)
    assert all(key.startswith("module.") for key in state)
    plain = nn.Module()
    plain.module = plain_like(outer.module)
    load_universal(plain, state)
    load_universal(outer, plain.state_dict())
    load_universal(outer, plain.module.state_dict())
    torch.testing.assert_close(output(outer.module), output(plain.module))


def shapes(*names):
    return dict.fromkeys(names, (2, 3))


def tensors(*names):
    return {name: torch.zeros(2, 3) for name in names}


@pytest.mark.parametrize(
    ("names", "model", "expected"),
    [
        (["a.w", "b.w"], ["net.a.w", "net.b.w"], ["net.a.w", "net.b.w"]),
        (["net.a.w", "net.b.w"], ["a.w", "b.w"], ["a.w", "b.w"]),
        (["net.x.a.w", "net.x.b.w"], ["model.a.w", "model.b.w"], ["model.a.w", "model.b.w"]),
        (["a.w", "b.w", "head.w"], ["m.a.w", "m.b.w", "head.w"], ["m.a.w", "m.b.w", "head.w"]),
        (["p.a.w", "p.b.w", "p.c.w", "loss.w"], ["a.w", "b.w", "c.w"], ["a.w", "b.w", "c.w", "loss.w"]),
    ],
    ids=["into a part", "out of a part", "exchanged", "with a head", "with a stranger"],
)
def test_one_exchange_of_prefixes(names, model, expected):
    assert list(align(tensors(*names), shapes(*model))) == expected


TOWER = ["l.0.w", "l.1.w", "norm.w"]


def tower(name, *more):
    return [f"{name}.{end}" for end in (*TOWER, *more)]


@pytest.mark.parametrize(
    ("names", "model"),
    [
        (tower("student") + tower("teacher"), tower("teacher") + tower("momentum")),
        (tower("student", "extra.w") + tower("teacher"), tower("teacher") + tower("momentum", "extra.w")),
        (tower("teacher", "extra.w"), tower("teacher") + tower("student", "extra.w")),
        (tower("model") + TOWER, TOWER),
        (tower("towers.0"), tower("towers.1")),
        ([*TOWER, "extra.w"], TOWER + tower("teacher", "extra.w")),
    ],
    ids=["moved on", "moved on with more", "swapped", "both", "another member", "beside"],
)
def test_towers_are_never_swapped(names, model):
    assert list(align(tensors(*names), shapes(*model))) == names


@pytest.mark.parametrize(
    ("names", "model"),
    [
        (TOWER, tower("student") + tower("teacher")),
        (tower("query") + tower("key"), TOWER),
        (TOWER, tower("student") + tower("net.teacher") + [f"x.{i}.w" for i in range(9)]),
    ],
)
def test_a_choice_between_towers_is_left_to_the_user(names, model):
    with pytest.raises(CheckpointError, match="in two ways: .*lit-wsl map"):
        align(tensors(*names), shapes(*model))


def test_shapes_tell_towers_apart():
    model = dict.fromkeys(tower("text"), (2, 3)) | dict.fromkeys(tower("image"), (4, 3))
    assert list(align(tensors(*TOWER), model)) == tower("text")


def test_every_name_of_a_large_model_is_matched():
    names = [f"layers.{i}.{part}.weight" for i in range(60) for part in ("q", "k", "v", "o")]
    assert list(align(tensors(*names), shapes(*(f"model.{n}" for n in names)))) == [f"model.{n}" for n in names]


class _Counting(nn.Module):
    """A layer with a buffer that its state dict does not have, though older files do."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.register_buffer("position_ids", torch.arange(3), persistent=False)


def test_buffers_that_a_model_does_not_save_are_passed_over():
    module = nn.Sequential(_Counting(), nn.Linear(3, 2))
    state = {name: torch.randn_like(tensor) for name, tensor in module.state_dict().items()}
    report = load_universal(module, {**state, "0.position_ids": torch.arange(5)})
    assert (report.missing, report.unexpected) == ((), ())
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(module[0].position_ids, torch.arange(3))
    with pytest.raises(CheckpointError, match=r"1 unexpected: 1\.position_ids"):
        load_universal(module, {**state, "1.position_ids": torch.arange(5)})
