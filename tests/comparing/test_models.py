"""Whatever holds a model, its entries are those of the model."""

import json

import pytest
import torch
from lightning.pytorch import LightningModule
from safetensors.torch import load_file, save_file
from torch import nn

from lit_wsl.comparing.architecture import architecture_of
from lit_wsl.comparing.entries import dense
from lit_wsl.comparing.models import open_base, open_tuned
from lit_wsl.errors import CheckpointError
from lit_wsl.state.operations import Transpose
from lit_wsl.state.remap import Entry, WeightMap
from tests.merging.build import classifier, folded, save_adapter, save_bert, save_gpt2, save_tuned
from tests.models.checkpoints import Module, save, write_gpt2


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("compared") / "bert")


def values(model):
    """Every tensor of an opened model, float32."""
    return {name: dense(model.entries(name)) for name in model.infos()}


def check(model, wanted, rtol=1e-5):
    """The model has exactly the wanted tensors."""
    found = values(model)
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor.float(), rtol=rtol, atol=rtol / 10, msg=lambda m, n=name: n + m)
        assert model.infos()[name].shape == tuple(tensor.shape)


def shards(directory, state, count, suffix=".safetensors"):
    """Write a state in so many shards with an index."""
    directory.mkdir(exist_ok=True)
    homes = {}
    stem, write = ("model", save_file) if suffix == ".safetensors" else ("pytorch_model", torch.save)
    for at in range(count):
        part = dict(list(state.items())[at::count])
        file = f"{stem}-{at + 1:05}-of-{count:05}{suffix}"
        write(part, directory / file)
        homes |= dict.fromkeys(part, file)
    (directory / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": homes}))
    return directory


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("count", [1, 3])
def test_shards(bert, tmp_path, suffix, count):
    state = load_file(bert / "model.safetensors")
    check(open_base(shards(tmp_path / "sharded", state, count, suffix)), state)
    check(open_tuned(tmp_path / "sharded", open_base(bert)), state)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "model.", "_orig_mod.", "module.", "bert."])
def test_torch_files_and_prefixes(bert, tmp_path, wrap, prefix):
    state = load_file(bert / "model.safetensors")
    torch.save(wrap({prefix + name: tensor for name, tensor in state.items()}), tmp_path / "tuned.pt")
    base = open_base(bert)
    check(open_tuned(tmp_path / "tuned.pt", base), state)


class Plain(LightningModule):
    """A model under `model`, beside a metric of its own."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.threshold = nn.Parameter(torch.ones(1))


def test_a_lightning_checkpoint(bert, tmp_path):
    tuned = classifier(bert)
    torch.save(
        {"state_dict": Plain(tuned).state_dict(), "epoch": 1, "hyper_parameters": {"lr": 0.1}}, tmp_path / "a.ckpt"
    )
    base = open_base(bert)
    model = open_tuned(tmp_path / "a.ckpt", base)
    for name in base.infos():
        assert torch.equal(dense(model.entries(name)), tuned.bert.state_dict()[name])
    assert set(model.infos()) - set(base.infos()) == {
        "threshold",
        "model.classifier.weight",
        "model.classifier.bias",
    }


@pytest.mark.parametrize("sidecar", ["exact", "none"])
def test_a_universal_checkpoint_is_the_merged_model(tmp_path, sidecar):
    directory = write_gpt2(tmp_path / "gpt2")
    module = Module(directory)
    from tests.models.checkpoints import adapt

    module.model = adapt(module.model, r=2, lora_alpha=4, target_modules=["c_attn"], fan_in_fan_out=True)
    save(module, tmp_path / "a.ckpt", sidecar)
    base = open_base(directory)
    model = open_tuned(tmp_path / "a.ckpt", base)
    layer = module.model.transformer.h[0].attn.c_attn
    changed = "transformer.h.0.attn.c_attn.weight"
    assert changed in base.infos()
    wanted = layer.base_layer.weight + layer.get_delta_weight("default")
    torch.testing.assert_close(dense(model.entries(changed)), wanted.detach(), rtol=1e-5, atol=1e-6)
    same = [name for name in base.infos() if "c_attn.weight" not in name]
    assert all(torch.equal(dense(model.entries(name)), dense(base.entries(name))) for name in same)


ADAPTERS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 1}},
    "dora": {"use_dora": True},
    "embedding": {"target_modules": ["query", "word_embeddings"]},
    "bias": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "lora_bias": {"lora_bias": True},
    "saved": {"modules_to_save": ["pooler"]},
}


@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=list(ADAPTERS))
@pytest.mark.parametrize("safe", [True, False])
def test_an_adapter_on_its_base_is_the_merged_model(bert, tmp_path, settings, safe):
    wanted = folded(save_adapter(bert, tmp_path / "adapter", safe=safe, **settings))
    base = open_base(bert)
    model = open_tuned(tmp_path / "adapter", base)
    check(model, {name: wanted[name] for name in base.infos()})


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=str)
def test_an_adapter_on_projections_that_are_stored_the_other_way_round(tmp_path, settings):
    directory = save_gpt2(tmp_path / "gpt2")
    options = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, **settings}
    wanted = folded(save_adapter(directory, tmp_path / "adapter", **options))
    base = open_base(directory)
    check(open_tuned(tmp_path / "adapter", base), {name: wanted[name] for name in base.infos()})


def test_a_head_that_the_base_lacks_is_only_in_the_fine_tuned_model(bert, tmp_path):
    peft = save_adapter(bert, tmp_path / "adapter", load=classifier, task_type="SEQ_CLS")
    head = peft.base_model.model.classifier.modules_to_save.default
    base = open_base(bert)
    model = open_tuned(tmp_path / "adapter", base)
    found = architecture_of(base, model)
    [weight, bias] = sorted(found.only_in_finetuned, reverse=True)
    assert weight.endswith("classifier.weight")
    assert torch.equal(dense(model.entries(weight)), head.weight)
    assert model.infos()[bias].shape == (3,)
    merged = folded(peft)
    for name in base.infos():
        torch.testing.assert_close(dense(model.entries(name)), merged["bert." + name], rtol=1e-5, atol=1e-6)


def test_a_saved_embedding_with_more_rows(bert, tmp_path):
    save_adapter(bert, tmp_path / "adapter", modules_to_save=["word_embeddings"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    [name] = [name for name in state if "word_embeddings" in name]
    save_file({**state, name: torch.randn(44, 16)}, file)
    base = open_base(bert)
    found = architecture_of(base, open_tuned(tmp_path / "adapter", base))
    assert found.shape_mismatch == {"embeddings.word_embeddings.weight": {"base": [40, 16], "finetuned": [44, 16]}}
    assert found.resized() == ["embeddings.word_embeddings.weight"]


def test_an_adapter_of_another_model_is_refused(bert, tmp_path):
    save_adapter(save_gpt2(tmp_path / "gpt2"), tmp_path / "gpt", target_modules=["c_attn"])
    with pytest.raises(CheckpointError, match=r"gpt changes 'h.0.attn.c_attn.weight', which .*bert lacks"):
        open_tuned(tmp_path / "gpt", open_base(bert))


def test_an_adapter_of_another_size_is_refused(bert, tmp_path):
    save_adapter(bert, tmp_path / "adapter")
    state = {
        name: torch.zeros(20, *tensor.shape[1:]) if "query.weight" in name else tensor
        for name, tensor in load_file(bert / "model.safetensors").items()
    }
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"query.weight.*\(20, 16\).*another base"):
        open_tuned(tmp_path / "adapter", open_base(tmp_path / "other.safetensors"))


def quantised(state, kind):
    """A state whose matrices are stored in 8 bits with scales, and what they stand for."""
    stored, wanted = {}, {}
    for name, tensor in state.items():
        if tensor.dim() != 2 or "layer" not in name or "dense" not in name:
            stored[name] = wanted[name] = tensor
            continue
        scale = torch.rand(1 if kind == "weight_scale_inv" else len(tensor), 1) + 0.5
        stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
        stored[name.removesuffix("weight") + kind] = scale
        wanted[name] = stored[name].float() * scale
    return stored, wanted


@pytest.mark.parametrize("kind", ["weight_scale", "weight_scale_inv"])
def test_scales_belong_to_their_weights(bert, tmp_path, kind):
    state = load_file(bert / "model.safetensors")
    stored, wanted = quantised(state, kind)
    save_file(stored, tmp_path / "quantised.safetensors")
    check(open_base(tmp_path / "quantised.safetensors"), wanted)
    check(open_tuned(tmp_path / "quantised.safetensors", open_base(bert)), wanted)
    save_file({"model." + name: tensor for name, tensor in stored.items()}, tmp_path / "prefixed.safetensors")
    check(open_tuned(tmp_path / "prefixed.safetensors", open_base(bert)), wanted)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=str)
def test_an_adapter_on_a_scaled_base(bert, tmp_path, settings):
    """Its updates are added to what the base stands for, not to the stored numbers."""
    stored, wanted = quantised(load_file(bert / "model.safetensors"), "weight_scale")
    save_file(stored, tmp_path / "quantised.safetensors")
    save_file(wanted, tmp_path / "plain.safetensors")
    save_adapter(bert, tmp_path / "adapter", target_modules=["query", "dense"], **settings)
    plain, scaled = (open_base(tmp_path / f"{name}.safetensors") for name in ("plain", "quantised"))
    check(open_tuned(tmp_path / "adapter", scaled), values(open_tuned(tmp_path / "adapter", plain)))


def renamed(state):
    """Other names, one weight turned, queries, keys and values in one: and the map from there back."""
    made, entries = {}, []
    for name, tensor in state.items():
        other = "net." + name.replace("layer", "block")
        if name.endswith("query.weight"):
            parts = [name, name.replace("query", "key"), name.replace("query", "value")]
            made[other] = torch.cat([state[part] for part in parts])
            rows = len(tensor)
            operation = {"name": "split", "dim": 0, "sizes": [rows] * 3}
            entries.append({"sources": [other], "operations": [operation], "targets": parts})
        elif not name.endswith(("key.weight", "value.weight")):
            is_turned = name.endswith("intermediate.dense.weight")
            made[other] = tensor.T.contiguous() if is_turned else tensor
            operations = [{"name": "transpose", "dims": [1, 0]}] if is_turned else []
            entries.append({"sources": [other], "operations": operations, "targets": [name]})
    return made, entries


def test_a_weight_map_gives_the_base_other_names_and_shapes(bert, tmp_path):
    state = load_file(bert / "model.safetensors")
    made, entries = renamed(state)
    save_file(made, tmp_path / "base.safetensors")
    weight_map = WeightMap.from_json({"version": 1, "entries": entries})
    base = open_base(tmp_path / "base.safetensors", weight_map)
    check(base, state)
    assert architecture_of(base, open_tuned(bert, base)).shape_mismatch == {}
    with pytest.raises(CheckpointError, match="without a weight map"):
        save_adapter(bert, tmp_path / "adapter")
        open_tuned(tmp_path / "adapter", base)


def test_a_weight_map_reads_scaled_weights(bert, tmp_path):
    stored, wanted = quantised(load_file(bert / "model.safetensors"), "weight_scale")
    save_file(stored, tmp_path / "base.safetensors")
    weight_map = WeightMap(
        tuple(Entry((n,), ("net." + n,), (Transpose((1, 0)),) * (t.dim() == 2)) for n, t in wanted.items())
    )
    check(
        open_base(tmp_path / "base.safetensors", weight_map),
        {"net." + n: t.T if t.dim() == 2 else t for n, t in wanted.items()},
    )


def test_a_wrong_weight_map_is_refused_in_one_line(bert):
    name = "pooler.dense.weight"
    missing = WeightMap((Entry(("elsewhere.weight",), (name,)),))
    with pytest.raises(CheckpointError, match="has no 'elsewhere.weight', which the weight map reads; map it anew"):
        open_base(bert, missing)
    misfit = WeightMap((Entry((name,), (name,), (Transpose((0, 2, 1)),)),))
    with pytest.raises(CheckpointError, match=r"cannot make pooler.dense.weight from .*\(16, 16\)") as caught:
        open_base(bert, misfit)
    assert "\n" not in str(caught.value)


def cut(source, target, count):
    """A copy of a file without its last bytes, and the names that this loses."""
    target.write_bytes(source.read_bytes()[:-count])
    from lit_wsl.state.damaged import open_readable

    return set(open_readable(target)[1])


def test_a_damaged_side_is_read_as_far_as_it_goes(bert, tmp_path):
    save_tuned(bert, tmp_path / "tuned", 1)
    whole = tmp_path / "tuned" / "model.safetensors"
    lost = cut(whole, tmp_path / "cut.safetensors", 2000)
    base = open_base(bert)
    found = architecture_of(base, open_tuned(tmp_path / "cut.safetensors", base))
    assert set(found.failed) == lost
    assert found.only_in_base == found.only_in_finetuned == []
    assert set(found.common_keys) == set(base.infos()) - lost
    cut_base = open_base(tmp_path / "cut.safetensors")
    found = architecture_of(cut_base, open_tuned(whole, cut_base))
    assert (set(found.failed), found.only_in_finetuned) == (lost, [])


def test_damaged_tensors_have_the_names_of_the_base(bert, tmp_path):
    state = load_file(bert / "model.safetensors")
    save_file({"bert." + name: tensor for name, tensor in state.items()}, tmp_path / "whole.safetensors")
    lost = cut(tmp_path / "whole.safetensors", tmp_path / "cut.safetensors", 2000)
    base = open_base(bert)
    found = architecture_of(base, open_tuned(tmp_path / "cut.safetensors", base))
    assert set(found.failed) == {name.removeprefix("bert.") for name in lost}
    assert found.only_in_base == found.only_in_finetuned == []
    cut_base = open_base(tmp_path / "cut.safetensors")
    found = architecture_of(cut_base, open_tuned(bert, cut_base))
    assert found.only_in_base == found.only_in_finetuned == []


def test_a_weight_whose_scales_are_damaged_cannot_be_compared(tmp_path):
    state = {"a.weight": torch.ones(3, 4).to(torch.float8_e4m3fn), "a.weight_scale": torch.ones(3)}
    save_file({**state, "b.weight": torch.ones(2)}, tmp_path / "whole.safetensors")
    raw = (tmp_path / "whole.safetensors").read_bytes()
    at = raw.index(b"F32", raw.index(b"a.weight_scale"))
    (tmp_path / "bad.safetensors").write_bytes(raw[:at] + b"F99" + raw[at + 3 :])
    model = open_base(tmp_path / "bad.safetensors")
    assert list(model.infos()) == ["b.weight"]
    assert set(model.failed) == {"a.weight", "a.weight_scale"}


def test_what_a_weight_map_would_make_of_damaged_tensors_is_named(bert, tmp_path):
    made, entries = renamed(load_file(bert / "model.safetensors"))
    save_file(made, tmp_path / "whole.safetensors")
    lost = cut(tmp_path / "whole.safetensors", tmp_path / "cut.safetensors", 3000)
    weight_map = WeightMap.from_json({"version": 1, "entries": entries})
    base = open_base(tmp_path / "cut.safetensors", weight_map)
    unmade = {name for entry in entries if lost & set(entry["sources"]) for name in entry["targets"]}
    assert set(base.failed) == unmade
    assert set(base.infos()) == set(weight_map.targets()) - unmade
    found = architecture_of(base, open_tuned(bert, base))
    assert found.only_in_base == found.only_in_finetuned == []


def test_nothing_there(tmp_path, bert):
    with pytest.raises(CheckpointError, match="does not exist"):
        open_base(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_tuned(tmp_path / "nowhere", open_base(bert))
