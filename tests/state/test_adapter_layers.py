"""Which modules an adapter changes, and the shortest patterns that say so: by what PEFT itself matches."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from lit_wsl.state.adapter_layers import guess_layers, module_targets, path_ends, rank_patterns, shortest_ends

paths = st.lists(st.sampled_from(["a", "b", "q", "1", "10"]), min_size=1, max_size=4).map(".".join)


def test_kinds_are_guessed_by_names_and_shapes():
    shapes = {
        "encoder.layer.0.query.weight": (4, 4),
        "encoder.layer.0.query.bias": (4,),
        "encoder.layer.0.norm.weight": (4,),
        "embeddings.word_embeddings.weight": (9, 4),
        "wte.weight": (9, 4),
        "conv.weight": (4, 3, 2),
        "scale": (1, 1),
    }
    layers = guess_layers(shapes)
    wanted = {
        "encoder.layer.0.query": "linear",
        "encoder.layer.0.norm": "other",
        "encoder.layer.0": "other",
        "embeddings.word_embeddings": "embedding",
        "wte": "embedding",
        "conv": "convolution",
        "nothing.of.that.name": "other",
    }
    assert {path: layers.kind(path) for path in wanted} == wanted
    assert layers.tensors["encoder.layer.0.query"] == tuple(list(shapes)[:2])
    assert layers.tensors["encoder"] == tuple(list(shapes)[:3])
    assert not layers.is_known


@settings(max_examples=150, deadline=None)
@given(names=st.sets(paths, min_size=1, max_size=6), others=st.sets(paths, max_size=6))
def test_an_end_is_the_shortest_that_no_other_path_has(names, others):
    for name, end in shortest_ends(names, others).items():
        fitting = [
            one for one in path_ends(name) if not any(other == one or other.endswith(f".{one}") for other in others)
        ]
        assert end == (fitting[0] if fitting else None)


@settings(max_examples=150, deadline=None)
@given(modules=st.sets(paths, min_size=1, max_size=8), data=st.data())
def test_peft_adapts_the_layers_that_were_named_and_no_other(modules, data):
    chosen = data.draw(st.sets(st.sampled_from(sorted(modules)), min_size=1))
    config = LoraConfig(target_modules=module_targets(chosen, modules))
    assert {name for name in modules if check_target_module_exists(config, name)} == chosen


@settings(max_examples=150, deadline=None)
@given(ranks=st.dictionaries(paths, st.integers(1, 3), min_size=1, max_size=8))
def test_peft_gives_every_layer_its_rank(ranks):
    usual, patterns = rank_patterns(ranks)
    for name, rank in ranks.items():
        assert patterns.get(get_pattern_key(list(patterns), name), usual) == rank


@pytest.mark.parametrize("layers", [["a.b"], ["b", "a.b"]], ids=str)
def test_a_path_that_ends_another_takes_a_pattern(layers):
    """`b` ends `x.b` too, so that only its whole name tells it apart."""
    targets = module_targets(["b"], ["b", "x.b"])
    assert targets == "b"
    assert re.fullmatch(targets, "x.b") is None
    assert module_targets(layers, [*layers, "a.c"]) == ["b"]


def test_peft_takes_the_targets(tmp_path):
    """A model of two layers, of which one is adapted."""
    import peft

    model = torch.nn.ModuleDict({"q": torch.nn.Linear(3, 3), "x": torch.nn.ModuleDict({"q": torch.nn.Linear(3, 3)})})
    model.forward = lambda inputs: model["q"](inputs)
    targets = module_targets(["q"], [name for name, _ in model.named_modules() if name])
    adapted = peft.inject_adapter_in_model(LoraConfig(target_modules=targets), model)
    assert [name for name, _ in adapted.named_modules() if name.endswith("lora_A")] == ["q.lora_A"]
