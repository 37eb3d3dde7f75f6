import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.models.lora import LoraSpec, inject_lora, save_adapter
from lit_wsl.state.adapters import Adapter
from tests.tiny_bert import write_tiny_bert


@pytest.fixture(scope="module")
def bert_dir(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


def _adapted(bert_dir, spec):
    """A model whose adapters do something: B starts at zero."""
    model = BertModel.from_pretrained(bert_dir).eval()
    inject_lora(model, spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize(
    ("fields", "law"),
    [
        ({"rank": 0}, "rank >= 1"),
        ({"alpha": 0.0}, "alpha > 0"),
        ({"alpha": float("nan")}, "alpha > 0"),
        ({"dropout": 1.0}, "0 <= dropout < 1"),
        ({"target_modules": []}, "target_modules"),
        ({"init_lora_weights": "pissa"}, "could not be merged"),
    ],
)
def test_a_broken_law_is_named(fields, law):
    with pytest.raises(ConfigError, match=law):
        LoraSpec(**fields)


def test_scaling():
    assert LoraSpec(rank=4, alpha=8).scaling == 2
    assert LoraSpec(rank=4, alpha=8, use_rslora=True).scaling == 4


def test_only_adapters_train_and_the_function_is_the_base_at_first(bert_dir):
    base = BertModel.from_pretrained(bert_dir).eval()
    model = BertModel.from_pretrained(bert_dir).eval()
    inject_lora(model, LoraSpec(rank=2))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    ids = torch.tensor([[2, 4, 5, 3]])
    torch.testing.assert_close(model(ids).last_hidden_state, base(ids).last_hidden_state)


def test_an_unknown_layer_names_the_nearest(bert_dir):
    with pytest.raises(ConfigError, match="no layer 'querry'.*Did you mean 'query'"):
        inject_lora(BertModel.from_pretrained(bert_dir), LoraSpec(target_modules=["querry", "key"]))


def test_excluded_layers_get_no_adapter_and_absent_ones_do_not_matter(bert_dir, recwarn):
    model = BertModel.from_pretrained(bert_dir)
    inject_lora(model, LoraSpec(rank=2, exclude_modules=["pooler.dense", "output.dense", "no.such"]))
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {
        f"encoder.layer.{layer}.{end}"
        for layer in range(2)
        for end in ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense")
    }
    assert not [warning for warning in recwarn if "exclude" in str(warning.message)]


@pytest.mark.parametrize("target", ["no_such_.*", "("])
def test_a_pattern_without_match_is_an_error(bert_dir, target):
    with pytest.raises(ConfigError, match="target_modules"):
        inject_lora(BertModel.from_pretrained(bert_dir), LoraSpec(target_modules=target))


@pytest.mark.parametrize(
    "spec",
    [
        LoraSpec(rank=2),
        LoraSpec(rank=3, alpha=5.5, use_rslora=True, target_modules=["query"]),
        LoraSpec(rank=2, use_dora=True),
        LoraSpec(rank=2, target_modules="all-linear", init_lora_weights="gaussian"),
    ],
    ids=["plain", "rslora", "dora", "all-linear"],
)
def test_peft_loads_what_we_save(bert_dir, tmp_path, spec):
    model = _adapted(bert_dir, spec)
    save_adapter(model, spec, tmp_path / "out", str(bert_dir), {"weight": torch.ones(2, 16)}, {"head": "linear"})
    loaded = peft.PeftModel.from_pretrained(BertModel.from_pretrained(bert_dir), tmp_path / "out").eval()
    ids = torch.tensor([[2, 4, 5, 6, 3], [2, 9, 8, 7, 3]])
    torch.testing.assert_close(loaded(input_ids=ids).last_hidden_state, model(ids).last_hidden_state)


def test_layout(bert_dir, tmp_path):
    spec = LoraSpec(rank=2)
    model = _adapted(bert_dir, spec)
    for name in ("one", "two"):
        save_adapter(model, spec, tmp_path / name, "package:some/model", {"weight": torch.ones(2)}, {})
    keys = load_file(tmp_path / "one" / "adapter_model.safetensors").keys()
    assert "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight" in keys
    assert all(key.startswith("base_model.model.") for key in keys)
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "package:some/model"
    assert set(load_file(tmp_path / "one" / "head.safetensors")) == {"weight"}
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_the_merge_reader_sees_adapters_only(bert_dir, tmp_path):
    spec = LoraSpec(rank=2)
    save_adapter(_adapted(bert_dir, spec), spec, tmp_path / "out", str(bert_dir), {"weight": torch.ones(2)})
    sites = Adapter(tmp_path / "out").sites
    assert len(sites) == 2 * 6  # query, key, value and three dense a layer, but no pooler
    assert "weight" not in sites


def test_saving_replaces_an_earlier_adapter_but_nothing_else(bert_dir, tmp_path):
    spec = LoraSpec(rank=2)
    model = _adapted(bert_dir, spec)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="not written by lit-wsl"):
        save_adapter(model, spec, tmp_path / "mine", str(bert_dir))
    save_adapter(model, spec, tmp_path / "out", str(bert_dir), {"weight": torch.ones(2)})
    save_adapter(model, spec, tmp_path / "out", str(bert_dir))
    assert not (tmp_path / "out" / "head.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]
