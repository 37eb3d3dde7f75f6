"""`lit-wsl map` on model directories of transformers: names of files and of modules, directories as output."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
)

from lit_wsl.cli.main import run
from lit_wsl.cli.stored_names import StoredNames
from lit_wsl.errors import CheckpointError
from lit_wsl.state.reader import open_state
from lit_wsl.state.remap import Entry, WeightMap, copies
from tests.cli.test_main import one_line
from tests.mapper.pairs.pair import randomise
from tests.mapper.pairs.vision_pairs import images, vit_hf, vit_timm

MODELS = """
from tests.mapper.pairs.vision_pairs import vit_timm

def vit():
    return vit_timm(True)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a ViT of transformers, one of another layout as a file, and a function that builds that one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vit_models", raising=False)
    Path("vit_models.py").write_text(MODELS)
    theirs, own = vit_hf(True).eval(), vit_timm(True).eval()
    randomise(theirs, seed=1)
    randomise(own, seed=2)
    theirs.save_pretrained("hf")
    save_file(own.state_dict(), "own.safetensors")
    return tmp_path


def _files(directory):
    return sorted(path.name for path in Path(directory).iterdir() if not path.name.startswith("."))


@torch.no_grad()
def _agree(theirs, own):
    x = images(24)
    torch.testing.assert_close(theirs.eval()(x).logits, own.eval()(x), rtol=1e-4, atol=1e-4)


def _own(path):
    model = vit_timm(True)
    model.load_state_dict(load_file(path))
    return model


def test_a_proven_map_is_applied_to_the_names_of_the_file(capsys, folder):
    assert "vit.encoder.layer.0.attention.attention.query.weight" in load_file("hf/model.safetensors"), (
        "not the module's"
    )
    argv = ["map", "hf", "vit_models:vit", "--verify", "--apply", "made.safetensors", "--save", "map.json"]
    assert run(argv) == 0
    assert "Proven" in capsys.readouterr().out
    _agree(AutoModelForImageClassification.from_pretrained("hf"), _own("made.safetensors"))
    assert run(["map", "hf", "--map", "map.json", "--apply", "again.safetensors"]) == 0
    assert Path("again.safetensors").read_bytes() == Path("made.safetensors").read_bytes()


def test_a_map_of_the_module_fits_the_directory(folder):
    assert run(["map", "hf/config.json", "vit_models:vit", "--verify", "--save", "map.json"]) == 0
    assert run(["map", "hf", "--map", "map.json", "--apply", "made.safetensors"]) == 0
    _agree(AutoModelForImageClassification.from_pretrained("hf"), _own("made.safetensors"))


@pytest.mark.parametrize("target", ["hf", "hf/config.json"])
@pytest.mark.parametrize("more", [[], ["--verify"]], ids=["plain", "verified"])
def test_a_directory_is_loaded_by_transformers(capsys, folder, target, more):
    source = "own.safetensors"
    if more:
        run(["map", "vit_models:vit", target, *more, "--save", "map.json"])
        more = ["--map", "map.json"]
    assert run(["map", source, target, *more, "--apply", "out"]) == 0
    assert "all" in capsys.readouterr().out
    assert _files("out") == ["config.json", "model.safetensors"]
    model, said = AutoModelForImageClassification.from_pretrained("out", output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    _agree(model, _own(source))
    if target == "hf":
        stored = load_file("hf/model.safetensors").keys()
        assert load_file("out/model.safetensors").keys() == stored, "the names of the target's file"


def test_shards_tokenizer_and_dtype(folder):
    Path("src").mkdir()
    save_file({name: t.bfloat16() for name, t in load_file("hf/model.safetensors").items()}, "src/model.safetensors")
    Path("src/config.json").write_text(Path("hf/config.json").read_text())
    Path("src/tokenizer.json").write_text("{}")
    Path("src/generation_config.json").write_text("{}")
    Path("hf/vocab.txt").write_text("a")
    assert run(["map", "src", "hf", "--apply", "out", "--shard_size", "50KB"]) == 0
    names = _files("out")
    assert "model.safetensors.index.json" in names
    assert sum(name.endswith(".safetensors") for name in names) > 1
    assert "tokenizer.json" in names
    assert not {"generation_config.json", "vocab.txt"} & set(names)
    assert json.loads(Path("out/config.json").read_text())["dtype"] == "bfloat16"
    AutoModel.from_pretrained("out")
    (folder / "src/tokenizer.json").unlink()
    assert run(["map", "src", "hf", "--apply", "out", "--overwrite"]) == 0
    assert _files("out") == ["config.json", "model.safetensors", "vocab.txt"], "the target's, where there is none"


def test_an_interrupted_directory_is_taken_up_again(folder, monkeypatch):
    calls, write = [], os.pwrite

    def interrupted(*arguments):
        calls.append(arguments[2])
        if len(calls) == 8:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", interrupted)
    argv = ["map", "own.safetensors", "hf", "--apply", "out"]
    assert run(argv) == 130
    assert not Path("out").exists()
    before = len(calls)
    assert run(argv) == 0
    assert len(calls) - before < 1 + len(load_file("out/model.safetensors")), "what was finished is not written again"
    _agree(AutoModelForImageClassification.from_pretrained("out"), _own("own.safetensors"))


def test_directories_that_are_refused(capsys, folder):
    argv = ["map", "own.safetensors"]
    one_line(capsys, 2, [*argv, "vit_models:vit", "--apply", "out"], "needs a TARGET with a config.json")
    one_line(capsys, 2, [*argv, "--map", "m.json", "--apply", "out"], "none is named")
    one_line(capsys, 2, [*argv, "hf", "--apply", "o.safetensors", "--shard_size", "1MB"], "goes with a directory")
    one_line(capsys, 1, [*argv, "hf", "--apply", "out", "--shard_size", "1QB"], "Size '1QB' is not understood")
    one_line(capsys, 1, [*argv, "hf", "--apply", "hf", "--overwrite"], "holds the input")
    Path("other").mkdir()
    Path("other/precious").touch()
    one_line(capsys, 1, [*argv, "hf", "--apply", "other", "--overwrite"], "not written by lit-wsl")
    one_line(capsys, 1, ["map", "own.safetensors", "hf", "--apply", "own.safetensors/out"], "is a file")
    assert _files("other") == ["precious"]


def test_old_names_of_layer_norms_and_tied_weights(tmp_path):
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    model = BertForSequenceClassification(config)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): t for name, t in model.state_dict().items()}
    old = {name.removeprefix("bert."): tensor.clone() for name, tensor in old.items()}
    save_file(old, tmp_path / "model.safetensors")
    names = StoredNames.of(model, open_state(tmp_path))
    recipes = names.as_sources(copies((name, name) for name in model.state_dict()))
    assert [entry.sources[0] for entry in recipes] == list(old)
    assert not names.unused


def test_experts_are_joined_as_transformers_does(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MixtralConfig(**sizes, intermediate_size=24, vocab_size=50, num_local_experts=11)
    model = MixtralForCausalLM(config)
    randomise(model, seed=3)
    model.save_pretrained(tmp_path)
    state, reader = model.state_dict(), open_state(tmp_path)
    names = StoredNames.of(model, reader)
    recipes = names.as_sources(copies((name, name) for name in state))
    made = recipes.apply(load_file(tmp_path / "model.safetensors"))
    assert all(torch.equal(made[name], tensor) for name, tensor in state.items())
    back = names.as_targets(copies((name, name) for name in state)).apply(state)
    stored = load_file(tmp_path / "model.safetensors")
    assert back.keys() == stored.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in stored.items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(
        loaded.state_dict()["model.layers.0.mlp.experts.gate_up_proj"], made["model.layers.0.mlp.experts.gate_up_proj"]
    )


def test_what_is_not_certain_is_refused(folder):
    model, stored = vit_hf(True), load_file("hf/model.safetensors")
    [name] = [name for name in model.state_dict() if name.endswith("layers.0.attention.q_proj.weight")]
    old = "vit.encoder.layer.0.attention.attention.query.weight"
    wanted = copies([(name, "made")])

    def names(state):
        save_file(state, "model.safetensors")
        return StoredNames.of(model, open_state("model.safetensors"))

    assert names(stored).as_sources(wanted).sources() == [old]
    with pytest.raises(CheckpointError, match="both take its place"):
        names(stored | {name: stored[old].clone()}).as_sources(wanted)
    with pytest.raises(CheckpointError, match="in the file"):
        names(stored | {old: torch.zeros(5)}).as_sources(wanted)
    with pytest.raises(CheckpointError, match="lacks 'vit.layers.0"):
        names({key: tensor for key, tensor in stored.items() if key != old}).as_sources(wanted)
    assert names(stored | {"more": torch.zeros(1)}).unused == ["more"]


def test_names_that_transformers_would_drop_are_refused(capsys, folder):
    WeightMap((Entry(("head.bias",), ("no.such.bias",)),)).save("map.json")
    argv = ["map", "own.safetensors", "hf", "--map", "map.json", "--apply", "out"]
    one_line(capsys, 1, argv, "transformers would not load 1 of 1 tensors, first 'no.such.bias'")
    assert not Path("out").exists()
