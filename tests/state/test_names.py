"""Names of many architectures, and finding a base's name for another save's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_wsl.state.formats import strip_wrappers
from lit_wsl.state.names import NameResolver, ParameterName, parse_name

NAMES = {
    "bert.encoder.layer.7.attention.self.query.weight": ("bert.encoder", 7, "attention.self.query.weight"),
    "bert.embeddings.word_embeddings.weight": ("", None, "bert.embeddings.word_embeddings.weight"),
    "transformer.h.11.attn.c_attn.weight": ("transformer", 11, "attn.c_attn.weight"),
    "h.0.ln_1.bias": ("", 0, "ln_1.bias"),
    "encoder.block.3.layer.1.DenseReluDense.wi.weight": ("encoder", 3, "layer.1.DenseReluDense.wi.weight"),
    "decoder.block.3.layer.2.layer_norm.weight": ("decoder", 3, "layer.2.layer_norm.weight"),
    "vit.encoder.layer.0.output.dense.bias": ("vit.encoder", 0, "output.dense.bias"),
    "blocks.5.attn.qkv.weight": ("", 5, "attn.qkv.weight"),
    "layers.2.blocks.1.mlp.fc1.weight": ("", 2, "blocks.1.mlp.fc1.weight"),
    "stages.3.blocks.0.conv.weight": ("", 3, "blocks.0.conv.weight"),
    "model.layers.31.self_attn.q_proj.weight": ("model", 31, "self_attn.q_proj.weight"),
    "model.language_model.layers.4.mlp.up_proj.weight": ("model.language_model", 4, "mlp.up_proj.weight"),
    "model.vision_tower.encoder.layers.4.mlp.fc1.weight": ("model.vision_tower.encoder", 4, "mlp.fc1.weight"),
    "visual.transformer.resblocks.9.attn.in_proj_weight": ("visual.transformer", 9, "attn.in_proj_weight"),
    "audio_tower.layers.0.fc1.weight": ("audio_tower", 0, "fc1.weight"),
    "model.layers.2.block_sparse_moe.experts.5.w1.weight": ("model", 2, "block_sparse_moe.experts.5.w1.weight"),
    "features.3.weight": ("features", 3, "weight"),
    "features.3": ("", None, "features.3"),
    "0.weight": ("", None, "0.weight"),
    "lm_head.weight": ("", None, "lm_head.weight"),
    "conv_1.weight": ("", None, "conv_1.weight"),
    "patch.0.layers.6.w": ("patch.0", 6, "w"),
}


@pytest.mark.parametrize("name", NAMES)
def test_tower_layer_and_role(name):
    """A4.3: any architecture, qualified by tower"""
    assert parse_name(name) == ParameterName(*NAMES[name])


@given(st.text(alphabet="ab.0123456789layersh", max_size=40))
def test_any_text_has_parts_and_loses_nothing_behind_the_layer(name):
    parts = parse_name(name)
    assert name.endswith(parts.role)
    assert (parts.layer is None) == (parts.role == name)


MAPPED = [
    ("encoder.q.weight", "encoder.q.weight", "exact"),
    ("base_model.model.model.layers.0.q.weight", "model.layers.0.q.weight", "PEFT's prefix before model."),
    ("base_model.model.layers.0.q.weight", "layers.0.q.weight", "PEFT's prefix"),
    ("base_model.model.layers.0.q.weight", "model.layers.0.q.weight", "PEFT's prefix, a base with model."),
    ("base_model.layers.0.q.weight", "layers.0.q.weight", "half a prefix"),
    ("model.model.model.layers.0.q.weight", "model.layers.0.q.weight", "three times"),
    ("model.model.layers.0.q.weight", "model.layers.0.q.weight", "twice"),
    ("model.layers.0.q.weight", "model.model.layers.0.q.weight", "once more"),
    ("model.layers.0.q.weight", "layers.0.q.weight", "too much"),
    ("layers.0.q.weight", "transformer.layers.0.q.weight", "an ending of the base's name"),
    ("bert.encoder.layer.0.q.weight", "encoder.layer.0.q.weight", "the base is saved without its outer prefix"),
]


@pytest.mark.parametrize(("wanted", "known", "how"), MAPPED, ids=[how for *_, how in MAPPED])
def test_the_mapping_of_names(wanted, known, how):
    """A1.7"""
    assert NameResolver([known, "other.bias", "k.weight"]).resolve([wanted]) == {wanted: known}


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        (["vision.layers.0.q.weight", "text.layers.0.q.weight"], "layers.0.q.weight"),
        (["a.b.weight"], "c.weight"),
        (["a.b.weight"], "ab.weight"),
        (["xlayers.0.q.weight"], "layers.0.q.weight"),
        ([], "a"),
        (["weight"], "classifier.weight"),
    ],
    ids=["two towers", "none", "part of a component", "inside a component", "empty base", "leaf alone"],
)
def test_no_name_or_several_is_none(known, wanted):
    assert NameResolver(known).resolve([wanted]) == {}


def test_an_exact_name_wins_over_a_rewrite():
    assert NameResolver(["model.x.weight", "x.weight"]).resolve(["model.x.weight"]) == {
        "model.x.weight": "model.x.weight"
    }


def test_a_rewrite_wins_over_an_ambiguous_ending():
    known = ["model.x.weight", "other.x.weight"]
    wanted = "base_model.model.model.x.weight"
    assert NameResolver(known).resolve([wanted]) == {wanted: "model.x.weight"}


def test_one_prefix_falls_away_for_the_whole_source():
    """Two towers never fall onto one."""
    resolver = NameResolver(["layers.0.q.weight", "layers.0.k.weight", "norm.weight"])
    text = [f"text.{name}" for name in ("layers.0.q.weight", "layers.0.k.weight", "norm.weight")]
    assert resolver.resolve([*text, "vision.layers.0.q.weight"]) == {name: name.removeprefix("text.") for name in text}
    assert resolver.resolve(["text.norm.weight", "vision.norm.weight"]) == {}


def test_wrappers_fall_away_wherever_they_stand():
    assert strip_wrappers("_orig_mod.a._fsdp_wrapped_module.b._checkpoint_wrapped_module.w") == "a.b.w"
    assert strip_wrappers("a_orig_mod.w") == "a_orig_mod.w"
