"""Files from elsewhere into plain and adapted models."""

import json
import os

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file, save_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.api import get_merged_state_dict, load_universal
from tests.models.universal.build import CONFIGURATIONS, adapted, llama, logits, shake
from tests.models.universal.layers import NETS, output
from tests.tiny_llama import tied_llama_config, untied_llama_config

TARGETS = ["standard", "r16", "dora", "random"]


def prefixed(state, prefix):
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def write_torch(model, path, suffix):
    torch.save(model.state_dict(), path / f"weights{suffix}")
    return path / f"weights{suffix}"


def write_old_torch(model, path):
    torch.save(model.state_dict(), path / "old.pt", _use_new_zipfile_serialization=False)
    return path / "old.pt"


def write_safetensors(model, path):
    save_file(model.state_dict(), path / "weights.safetensors")
    return path / "weights.safetensors"


def write_hf(model, path):
    model.save_pretrained(path, max_shard_size="40KB")
    assert (path / "model.safetensors.index.json").exists()
    return path


def write_backbone(model, path):
    model.model.save_pretrained(path)
    save_file(load_file(path / "model.safetensors") | {"lm_head.weight": model.lm_head.weight.detach()}, path / "a.tmp")
    (path / "a.tmp").replace(path / "model.safetensors")
    return path


def write_bin_shards(model, path):
    state = model.state_dict()
    names = {key: f"pytorch_model-{i % 2}.bin" for i, key in enumerate(state)}
    for file in set(names.values()):
        torch.save({key: t for key, t in state.items() if names[key] == file}, path / file)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    return path


def write_lightning(model, path):
    torch.save({"epoch": 1, "state_dict": prefixed(model.state_dict(), "net."), "loops": {}}, path / "last.ckpt")
    return path / "last.ckpt"


def write_nanogpt(model, path):
    content = {"model": prefixed(model.state_dict(), "_orig_mod."), "iter_num": 3, "config": {"n_layer": 2}}
    torch.save(content, path / "ckpt.pt")
    return path / "ckpt.pt"


def write_parallel(model, path):
    torch.save({"model_state_dict": prefixed(model.state_dict(), "module."), "epoch": 2}, path / "ckpt.pth")
    return path / "ckpt.pth"


FILES = {
    "pt": lambda model, path: write_torch(model, path, ".pt"),
    "pth": lambda model, path: write_torch(model, path, ".pth"),
    "bin": lambda model, path: write_torch(model, path, ".bin"),
    "ckpt": lambda model, path: write_torch(model, path, ".ckpt"),
    "old torch": write_old_torch,
    "safetensors": write_safetensors,
    "hf shards": write_hf,
    "bin shards": write_bin_shards,
    "backbone and head": write_backbone,
    "lightning": write_lightning,
    "nanogpt": write_nanogpt,
    "data parallel": write_parallel,
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", FILES)
def test_a_file_from_elsewhere_loads(tmp_path, kind, target):
    plain, model = llama(), adapted(target)
    load_universal(model, FILES[kind](plain, tmp_path))
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=2e-5)


class Holder(nn.Module):
    """A task model that holds a backbone under a name of its own."""

    def __init__(self, name, backbone):
        super().__init__()
        self.name = name
        setattr(self, name, backbone)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["encoder", "model", "module", "net"])
def test_a_bare_backbone_loads_into_the_part_that_holds_it(tmp_path, name, target):
    plain, model = llama(), adapted(target)
    plain.model.save_pretrained(tmp_path, max_shard_size="40KB")
    holder = Holder(name, model.model)
    load_universal(holder, tmp_path)
    model.lm_head.load_state_dict(plain.lm_head.state_dict())
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=2e-5)
    saved = get_merged_state_dict(holder)
    assert all(key.startswith(f"{name}.") for key in saved)
    load_universal(adapted(target).model, saved)


@pytest.mark.parametrize("prefix", ["", "net.", "_orig_mod.", "module."])
@pytest.mark.parametrize("name", ["r16", "r16+embedding", "dora", "saved head"])
def test_an_unmerged_file_of_the_same_configuration_loads_as_it_is(tmp_path, name, prefix):
    trained, model = shake(adapted(name)), adapted(name)
    torch.save({"state_dict": prefixed(trained.state_dict(), prefix)}, tmp_path / "last.ckpt")
    report = load_universal(model, tmp_path / "last.ckpt")
    assert not report.fresh
    assert report.restored
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in trained.state_dict().items())


def test_an_unmerged_file_of_another_configuration_is_folded_first(tmp_path):
    trained, model = shake(adapted("r16")), adapted("r32")
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="pass `lora=LoraSpec"):
        load_universal(model, tmp_path / "weights.pt")
    load_universal(model, tmp_path / "weights.pt", lora=1.0)
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=2e-5)
    assert get_merged_state_dict(tmp_path / "weights.pt", 1.0).keys() == llama().state_dict().keys()


def test_a_file_of_an_adapted_dialect_is_merged(tmp_path):
    net, other = NETS["torchtune"](3), NETS["torchtune"](2)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    load_universal(other, get_merged_state_dict(tmp_path / "net.pt", 2.0))
    torch.testing.assert_close(output(other), output(net))


def tied():
    return LlamaForCausalLM(LlamaConfig(**tied_llama_config()))


@pytest.mark.parametrize("name", ["standard", "r16"])
def test_a_file_holds_one_of_two_tied_names(tmp_path, name):
    plain, model = tied(), tied()
    if CONFIGURATIONS[name]:
        model = inject_adapter_in_model(LoraConfig(**CONFIGURATIONS[name]), model)
    save_model(plain, tmp_path / "model.safetensors")
    assert len(load_file(tmp_path / "model.safetensors")) == len(plain.state_dict()) - 1
    load_universal(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=2e-5)
    state = {key: tensor for key, tensor in plain.state_dict().items() if key != "model.embed_tokens.weight"}
    load_universal(model, prefixed(state, "net."))
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=2e-5)


def test_tied_weights_that_differ_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"lm_head.weight differ, but this model ties them; untie it"):
        load_universal(tied(), llama().state_dict())


def test_an_untied_model_takes_a_tied_file_only_in_full():
    state = tied().state_dict()
    load_universal(llama(), state)
    del state["lm_head.weight"]
    with pytest.raises(CheckpointError, match="1 missing: lm_head.weight"):
        load_universal(llama(), state)


def other_llama(**changes):
    return LlamaForCausalLM(LlamaConfig(**untied_llama_config() | changes))


@pytest.mark.parametrize("prefix", ["", "net."])
@pytest.mark.parametrize("target", ["standard", "r16"])
def test_another_width_is_refused_with_both_shapes(prefix, target):
    model = adapted(target)
    before = logits(model)
    with pytest.raises(CheckpointError) as caught:
        load_universal(model, prefixed(other_llama(hidden_size=16).state_dict(), prefix))
    message = str(caught.value)
    assert "of another shape: model.embed_tokens.weight ((256, 16) here, (256, 32) in the model)" in message
    assert message.count(" here, ") == 20
    assert ", …" in message
    assert "lit-wsl map" in message
    assert "\n" not in message
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("target", ["standard", "r16"])
def test_more_and_fewer_layers_are_refused_with_twenty_names(target):
    fewer, more = other_llama(num_hidden_layers=5).state_dict(), adapted(target)
    with pytest.raises(CheckpointError, match="27 unexpected: model.layers.2") as caught:
        load_universal(more, fewer)
    assert str(caught.value).count("model.layers") == 20
    with pytest.raises(CheckpointError, match="9 missing: model.layers.1"):
        load_universal(adapted(target), other_llama(num_hidden_layers=1).state_dict())


def test_a_stranger_is_refused_with_all_kinds():
    with pytest.raises(
        CheckpointError, match=r"21 missing: .* 5 unexpected: a0.*does not fit|does not fit.*5 unexpected"
    ):
        load_universal(llama(), {f"a{i}.weight": torch.zeros(2) for i in range(5)})


def test_without_strict_what_is_left_out_is_reported():
    model, state = adapted("random"), llama().state_dict()
    before = logits(model)
    del state["model.layers.1.self_attn.q_proj.weight"]
    state["stranger.weight"] = torch.zeros(2)
    untouched = get_merged_state_dict(model)["model.layers.1.self_attn.q_proj.weight"]
    report = load_universal(model, state, strict=False)
    assert report.missing == ("model.layers.1.self_attn.q_proj.weight",)
    assert report.unexpected == ("stranger.weight",)
    assert "model.layers.1.self_attn.q_proj" not in report.fresh | report.restored
    expected = state | {report.missing[0]: untouched}
    del expected["stranger.weight"]
    plain = llama()
    plain.load_state_dict(expected)
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=2e-5)
    assert not torch.equal(logits(model), before)


def test_without_strict_another_shape_is_still_refused():
    state = llama().state_dict() | {"lm_head.weight": torch.zeros(3, 3)}
    with pytest.raises(CheckpointError, match=r"1 of another shape: lm_head.weight \(\(3, 3\) here"):
        load_universal(llama(), state, strict=False)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda _: b"", lambda b: b"\x80\x02nonsense" + b[:50]])
def test_a_damaged_file_gives_one_line(tmp_path, suffix, damage):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(llama().state_dict(), path)
    path.write_bytes(damage(path.read_bytes()))
    for function in (lambda: load_universal(llama(), path), lambda: get_merged_state_dict(path)):
        with pytest.raises(CheckpointError, match="weights") as caught:
            function()
        assert "\n" not in str(caught.value)


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_malicious_file_runs_nothing(tmp_path):
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": llama().state_dict(), "extra": Malicious(f"touch {tmp_path / 'ran'}")}, path)
    with pytest.raises(CheckpointError, match="would run code") as caught:
        load_universal(llama(), path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nothing.pt' does not exist"):
        load_universal(llama(), tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_universal(llama(), {"epoch": 3})
