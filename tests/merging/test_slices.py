"""Layers of several models stacked as one."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, Qwen2Config

from lit_wsl.errors import ConfigError, LitWslError, MergeError
from lit_wsl.merging import merge, merge_tensors
from lit_wsl.merging.preview import preview
from lit_wsl.merging.run import merge_state_dict
from lit_wsl.merging.slices import SlicedState, Stack
from lit_wsl.merging.spec import MergeSpec
from lit_wsl.state.reader import MemoryReader
from tests.merging.build import save_state
from tests.tiny_llama import untied_llama_config

IDS = torch.arange(24).reshape(2, 12)


def save_llama(path, seed, layers=3):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**untied_llama_config() | {"num_hidden_layers": layers})).eval()
    model.save_pretrained(path)
    return model


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """Two models of three layers, with their directories."""
    path = tmp_path_factory.mktemp("llamas")
    return [(str(path / name), save_llama(path / name, seed)) for seed, name in enumerate("ab")]


def part(model, start, stop):
    return {"sources": [{"model": model, "layers": [start, stop]}]}


def pair(first, second):
    return {"sources": [{"model": str(model), "layers": [start, stop]} for model, start, stop in (first, second)]}


def stacked(origins, front, behind):
    """A model built by hand: layers, embedding and end from the modules of others."""
    config = LlamaConfig(**untied_llama_config() | {"num_hidden_layers": len(origins)})
    model = LlamaForCausalLM(config).eval()
    model.model.embed_tokens.load_state_dict(front.model.embed_tokens.state_dict())
    model.model.norm.load_state_dict(behind.model.norm.state_dict())
    model.lm_head.load_state_dict(behind.lm_head.state_dict())
    for layer, (origin, index) in zip(model.model.layers, origins, strict=True):
        layer.load_state_dict(origin.model.layers[index].state_dict())
    return model


def test_passthrough_is_the_model_built_by_hand(llamas, tmp_path):
    """The layers of two models, embeddings of the first and output layer of the last; transformers loads it."""
    (a, first), (b, second) = llamas
    report = merge(slices=[part(a, 0, 2), part(b, 1, 3)], method="passthrough", output=tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert merged.config.num_hidden_layers == len(merged.model.layers) == 4
    by_hand = stacked([(first, 0), (first, 1), (second, 1), (second, 2)], first, second)
    with torch.no_grad():
        assert torch.equal(merged(IDS).logits, by_hand(IDS).logits)
    assert report.merged
    assert not report.copied
    assert not report.skipped


def test_layers_may_repeat(llamas, tmp_path):
    """Seven layers out of three."""
    (a, first), _ = llamas
    slices = [part(a, 0, 3), part(a, 1, 3), part(a, 1, 3)]
    merge(slices=slices, method="passthrough", output=tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    by_hand = stacked([(first, i) for i in (0, 1, 2, 1, 2, 1, 2)], first, first)
    with torch.no_grad():
        assert torch.equal(merged(IDS).logits, by_hand(IDS).logits)


def test_each_slice_is_merged_by_the_method(llamas):
    """Slerp of two slices, layer by layer against the function of one parameter."""
    (a, first), (b, second) = llamas
    slices = [pair((a, 0, 2), (b, 1, 3)), pair((b, 0, 1), (a, 2, 3))]
    merged = merge_state_dict(slices=slices, method="slerp", method_params={"t": 0.3})
    one, two = first.state_dict(), second.state_dict()
    layers = [((one, 0), (two, 1)), ((one, 1), (two, 2)), ((two, 0), (one, 2))]
    for index, pairs in enumerate(layers):
        for role in ("mlp.up_proj.weight", "self_attn.q_proj.weight", "input_layernorm.weight"):
            tensors = torch.stack([state[f"model.layers.{layer}.{role}"] for state, layer in pairs])
            close(merged[f"model.layers.{index}.{role}"], slerp(tensors))
    close(merged["model.embed_tokens.weight"], slerp(both(one, two, "model.embed_tokens.weight")))
    close(merged["lm_head.weight"], slerp(both(two, one, "lm_head.weight")))


def both(one, two, name):
    return torch.stack([one[name], two[name]])


def slerp(tensors: Tensor) -> Tensor:
    zero = torch.zeros_like(tensors[0])
    return merge_tensors("slerp", tensors, zero, t=0.3)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", ["among the sources", "base_layers"])
def test_a_base_runs_through_the_slices(llamas, tmp_path, given):
    """The task vectors of a slice are differences to the base's layers there."""
    (a, first), (b, second) = llamas
    slices = [pair((a, 0, 1), (b, 2, 3)), pair((b, 0, 2), (a, 1, 3))]
    if given == "base_layers":
        slices = [part(b, 2, 3) | {"base_layers": [0, 1]}, part(b, 0, 2) | {"base_layers": [1, 3]}]
    fields = {"slices": slices, "base": a, "method": "task_arithmetic", "method_params": {"scale": 0.4}}
    merged = merge_state_dict(**fields)
    one, two = first.state_dict(), second.state_dict()
    for index, (of_base, of_other) in enumerate([(0, 2), (1, 0), (2, 1)]):
        name = "model.layers.{}.mlp.down_proj.weight"
        base, other = one[name.format(of_base)], two[name.format(of_other)]
        close(merged[name.format(index)], base + 0.4 * (other - base))


def test_rules_see_the_new_layers(llamas):
    """A gradient runs over the depth of the stack."""
    (a, first), (b, _) = llamas
    params = {"scale": {"gradient": [1.0, 3.0], "default": 1.0}}
    merged = merge_state_dict(
        slices=[part(a, 0, 1), part(b, 0, 1), part(a, 0, 1)], method="passthrough", method_params=params
    )
    name = "model.layers.{}.mlp.down_proj.weight"
    close(merged[name.format(2)], 3.0 * first.state_dict()[name.format(0)])


def test_bytes_are_the_same_however_the_work_is_cut(llamas, tmp_path):
    (a, _), (b, _) = llamas
    fields = {"slices": [pair((a, 0, 2), (b, 1, 3)), pair((b, 0, 1), (a, 2, 3))], "method": "linear"}
    merge(**fields, threads=1, output=tmp_path / "one")
    merge(**fields, threads=2, shard_size="20KB", output=tmp_path / "two")
    once = load_file(tmp_path / "one/model.safetensors")
    shards = sorted((tmp_path / "two").glob("model-*.safetensors"))
    again = {name: tensor for file in shards for name, tensor in load_file(file).items()}
    assert len(shards) > 1
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_an_interrupted_stack_is_taken_up_again(llamas, tmp_path):
    """What the journal lists is not merged twice, and the result is the same."""
    (a, _), (b, _) = llamas
    fields = {"slices": [part(a, 0, 2), part(b, 1, 3)], "method": "passthrough", "threads": 1}
    seen = []

    def stop(done, total, name):
        seen.append(name)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(**fields, output=tmp_path / "out", progress=stop)
    rest = []
    merge(**fields, output=tmp_path / "out", progress=lambda done, total, name: rest.append(name))
    merge(**fields, output=tmp_path / "whole")
    assert not set(seen) & set(rest)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert files[0] == files[1]


def test_preview_reads_headers_alone(llamas):
    (a, _), (b, _) = llamas
    found = preview(MergeSpec(slices=[part(a, 0, 2), part(b, 1, 3)], method="passthrough"))
    assert found.sources == ["a+b"]
    assert found.merged == 3 + 4 * 9
    assert found.copied == 0


class Watching(MemoryReader):
    """Counts what is read."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.reads = []

    def read(self, name, rows=None):
        self.reads.append(name)
        return super().read(name, rows)


def test_nothing_is_read_before_it_is_wanted():
    reader = Watching({f"layers.{i}.weight": torch.full((2,), float(i)) for i in range(3)})
    state = SlicedState([(Stack(reader), 1, 3), (Stack(reader), 0, 1)])
    assert state.keys() == [f"layers.{i}.weight" for i in range(3)]
    assert state.info("layers.2.weight").shape == (2,)
    assert reader.reads == []
    assert state.read("layers.2.weight").tolist() == [0.0, 0.0]
    assert reader.reads == ["layers.0.weight"]


def test_front_is_the_first_models_and_end_the_last_models():
    """Whatever the order in the file; an output layer called `embed_out` is no embedding."""
    names = ["embed_out.weight", "embed_in.weight", "norm.weight", "layers.0.weight", "wpe.weight", "other.h.0.weight"]
    first, last = ({name: torch.full((1,), value) for name in names} for value in (1.0, 2.0))
    first |= {"layers.1.weight": torch.ones(1)}
    last |= {"layers.1.weight": torch.ones(1)}
    state = SlicedState([(Stack(MemoryReader(first)), 0, 1), (Stack(MemoryReader(last)), 0, 1)])
    values = {name: state.read(name).item() for name in names if "layers" not in name}
    assert values == {
        "embed_out.weight": 2,
        "embed_in.weight": 1,
        "norm.weight": 2,
        "wpe.weight": 1,
        "other.h.0.weight": 1,
    }
    assert list(state.keys())[-2:] == ["embed_out.weight", "norm.weight"]


def test_models_may_call_their_layers_differently(tmp_path):
    """The first model's names hold; `bert.encoder…` is `encoder…`."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    a, b = BertModel(config), BertModel(config)
    a.save_pretrained(tmp_path / "a")
    save_state(tmp_path / "b/model.safetensors", {f"bert.{name}": tensor for name, tensor in b.state_dict().items()})
    slices = [part(tmp_path / "a", 0, 2), part(tmp_path / "b", 1, 2)]
    merge(slices=slices, method="passthrough", output=tmp_path / "out")
    merged = BertModel.from_pretrained(tmp_path / "out")
    assert len(merged.encoder.layer) == 3
    name = "encoder.layer.{}.output.dense.weight"
    assert torch.equal(merged.state_dict()[name.format(2)], b.state_dict()[name.format(1)])
    assert torch.equal(merged.pooler.dense.weight, b.pooler.dense.weight)
    assert torch.equal(merged.embeddings.LayerNorm.weight, a.embeddings.LayerNorm.weight)


def test_kinds_of_layers_follow_them(tmp_path):
    """A list with one entry a layer is stacked like the layers."""
    shape = {
        "vocab_size": 32,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    kinds = ["full_attention", "sliding_attention"]
    for name, order in (("a", kinds), ("b", kinds[::-1])):
        config = Qwen2Config(**shape, num_hidden_layers=2, layer_types=order, use_sliding_window=True)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    slices = [part(tmp_path / "a", 0, 2), part(tmp_path / "b", 0, 2), part(tmp_path / "b", 0, 1)]
    merge(slices=slices, method="passthrough", output=tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["layer_types"] == [*kinds, *kinds[::-1], kinds[1]]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 5


@pytest.mark.parametrize(
    ("tower", "depth", "before", "after"),
    [
        ("decoder", 2, {"num_layers": 2, "num_decoder_layers": 2}, {"num_layers": 2, "num_decoder_layers": 5}),
        ("encoder", 2, {"num_layers": 2, "num_decoder_layers": 2}, {"num_layers": 5, "num_decoder_layers": 2}),
        ("h", 3, {"n_layer": 3, "n_head": 3}, {"n_layer": 5, "n_head": 3}),
        ("m", 2, {"text_config": {"num_hidden_layers": 2}}, {"text_config": {"num_hidden_layers": 5}}),
    ],
)
def test_the_configuration_names_the_new_depth(tmp_path, tower, depth, before, after):
    from lit_wsl.merging.stacked_config import restack_config

    stack = Stack(MemoryReader({f"{tower}.layers.{i}.weight": torch.ones(1) for i in range(depth)}))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(before))
    restack_config(config, SlicedState([(stack, 0, 1)] * 5))
    assert json.loads(config.read_text()) == after


def test_a_tower_can_be_named(tmp_path):
    names = [f"{tower}.layers.{i}.weight" for tower in ("encoder", "decoder") for i in range(2)]
    file = str(save_state(tmp_path / "m/model.safetensors", {name: torch.ones(1) * i for i, name in enumerate(names)}))
    with pytest.raises(MergeError, match=r"2 towers of one height; name one by `tower:`"):
        merge_state_dict(slices=[part(file, 0, 1)], method="passthrough")
    merged = merge_state_dict(slices=[part(file, 1, 2) | {"tower": "dec*"}], method="passthrough")
    assert {name: tensor.item() for name, tensor in merged.items()} == {
        "encoder.layers.0.weight": 0,
        "encoder.layers.1.weight": 1,
        "decoder.layers.0.weight": 3,
    }


@pytest.mark.parametrize(
    ("slices", "told"),
    [
        ([{"sources": [{"model": "A", "layers": [0, 2]}, {"model": "A", "layers": [1, 2]}]}], "must have one length"),
        ([{"sources": [{"model": "A", "layers": [2, 1]}]}], r"start < stop, got \[2, 1\]"),
        ([{"sources": [{"model": "A", "layers": [0, 1, 2]}]}], r"must be \[start, stop\]"),
        ([{"sources": [{"model": "A", "layer": [0, 1]}]}], "Did you mean 'layers'"),
        ([{"sources": []}], "`sources` of a slice must be a list"),
        ([part("A", 0, 1), part("A", 0, 1) | {"tower": "x"}], "must be of one tower"),
        (
            [part("A", 0, 1), pair(("A", 0, 1), ("A", 1, 2))],
            r"same number of sources \(without the base\), got \[1, 2\]",
        ),
    ],
)
def test_slices_that_say_nonsense_are_refused(slices, told):
    with pytest.raises(ConfigError, match=told) as caught:
        MergeSpec(slices=slices, method="linear")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["adapters", "models", "deltas"])
def test_slices_go_with_no_other_sources(field):
    with pytest.raises(ConfigError, match="`slices` name their models themselves"):
        MergeSpec(slices=[part("A", 0, 1)], method="linear", **{field: ["x"]})


def test_a_base_must_be_found_in_every_slice():
    with pytest.raises(ConfigError, match=r"Slice 2 has the base 'A' 0 times among its sources"):
        MergeSpec(slices=[pair(("A", 0, 1), ("B", 0, 1)), pair(("B", 0, 1), ("C", 0, 1))], base="A", method="ties")


def test_what_models_do_not_have_is_refused(llamas, tmp_path):
    (a, _), _ = llamas
    flat = str(save_state(tmp_path / "flat.safetensors", {"weight": torch.ones(2)}))
    other = str(save_state(tmp_path / "other.safetensors", {"model.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}))
    strange = str(
        save_state(
            tmp_path / "strange.safetensors", {"blocks.0.conv": torch.ones(2, 2), "blocks.1.conv": torch.ones(1)}
        )
    )
    cases = {
        r"has no layer 3 \(it has 3 in 'model.layers'\); a slice asks for \[2, 4\]": [part(a, 2, 4)],
        r"has no numbered layers": [part(flat, 0, 1)],
        r"cannot be stacked: 'mlp.up_proj.weight' has different shapes": [part(a, 0, 1), part(other, 0, 1)],
        r"cannot be stacked: they have no parameter in common": [part(a, 0, 1), part(strange, 0, 1)],
        r"merges exactly 1 source, got 2": [pair((a, 0, 1), (a, 1, 2))],
        r"has no tower 'vision'": [part(a, 0, 1) | {"tower": "vision"}],
    }
    for told, slices in cases.items():
        with pytest.raises(LitWslError, match=told):
            merge_state_dict(slices=slices, method="passthrough")


@pytest.mark.parametrize(("tower", "wanted"), [("text_model.*", (5, 2)), ("vision_model.*", (2, 5))])
def test_the_configuration_of_another_tower_of_the_same_height_stays(tmp_path, tower, wanted):
    from lit_wsl.merging.stacked_config import restack_config

    names = [f"{kind}_model.encoder.layers.{i}.weight" for kind in ("text", "vision") for i in range(2)]
    stack = Stack(MemoryReader(dict.fromkeys(names, torch.ones(1))), tower)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({f"{kind}_config": {"num_hidden_layers": 2} for kind in ("text", "vision")}))
    restack_config(config, SlicedState([(stack, 0, 1)] * 5))
    found = json.loads(config.read_text())
    assert tuple(found[f"{kind}_config"]["num_hidden_layers"] for kind in ("text", "vision")) == wanted
