"""One scale rule for adapters, and writing what PEFT reads back."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_wsl.errors import CheckpointError
from lit_wsl.state.adapter_files import write_adapter
from lit_wsl.state.adapters import Adapter, AdapterConfig, read_adapter_config
from lit_wsl.tensors.lora import LoraFactors, fold


@pytest.mark.parametrize(
    ("settings", "module", "scale"),
    [
        ({}, "a.q", 16 / 8),
        ({"use_rslora": True}, "a.q", 16 / 8**0.5),
        ({"rank_pattern": {"q": 4}}, "a.q", 16 / 4),
        ({"rank_pattern": {"q": 4}}, "a.xq", 16 / 8),
        ({"rank_pattern": {"q": 4}}, "q.a", 16 / 8),
        ({"alpha_pattern": {r"layers\.\d+\.q": 3}}, "m.layers.12.q", 3 / 8),
        ({"alpha_pattern": {"^q": 3}}, "a.q", 16 / 8),
        ({"alpha_pattern": {"^q": 3}}, "q", 3 / 8),
        ({"rank_pattern": {"q": 4, "a.q": 2}}, "a.q", 16 / 4),
        ({"rank_pattern": {"q": 4}, "alpha_pattern": {"q": 1}, "use_rslora": True}, "q", 1 / 2),
    ],
    ids=str,
)
def test_the_scale_rule(settings, module, scale):
    """A1.2, A1.3"""
    assert AdapterConfig(r=8, lora_alpha=16, **settings).scale(module) == pytest.approx(scale)


def test_a_pattern_for_each_layer_of_a_large_model_is_compiled_once(monkeypatch):
    """``re`` keeps 512 patterns; a checkpoint's adapters have one for each layer."""
    patterns = {rf"^layers\.{n}\.q": n + 1 for n in range(600)}
    config = AdapterConfig(r=1, lora_alpha=1.0, rank_pattern=patterns, alpha_pattern=patterns)
    compiled = []
    compile_pattern = re.compile
    monkeypatch.setattr(re, "compile", lambda *given: compiled.append(given) or compile_pattern(*given))
    for _ in range(3):
        assert config.scale("layers.599.q") == 1.0
    assert len(compiled) == 600


def factors(shape, rank, **settings):
    d_out, d_in = (shape[1], shape[0]) if settings.get("transposed") else (shape[0], torch.Size(shape[1:]).numel())
    return LoraFactors(torch.randn(rank, d_in), torch.randn(d_out, rank), 0.7, shape, **settings)


def test_what_is_written_is_read_back(tmp_path):
    updates = {
        "layer.1.q": (factors((6, 4), 2), False),
        "encoder.layer.1.q": (factors((6, 4), 2), False),
        "encoder.layer.10.q": (factors((6, 4), 3), False),
        "conv": (factors((5, 3, 2, 2), 2), False),
        "words": (factors((9, 4), 2, transposed=True), True),
    }
    write_adapter(tmp_path, updates, base_model="org/base", task_type="SEQ_CLS")
    adapter = Adapter(tmp_path)
    assert (adapter.config.base_model_name_or_path, adapter.config.task_type) == ("org/base", "SEQ_CLS")
    for module, (part, _) in updates.items():
        read = adapter.factors(f"{module}.weight", part.shape)
        assert (read.rank, read.shape) == (part.rank, part.shape)
        torch.testing.assert_close(fold(read), fold(part), rtol=1e-6, atol=1e-6)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {r"10\.q": 3}
    assert config["target_modules"] == sorted(updates)


def edit(directory, **changes):
    weights = load_file(directory / "adapter_model.safetensors")
    save_file({**weights, **changes}, directory / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model.model.q.lora_B.weight": torch.ones(6, 3)}, "do not fit"),
        ({"base_model.model.q.lora_B.weight": torch.ones(6)}, "do not fit"),
        (
            {
                "base_model.model.q.lora_A.weight": torch.ones(3, 4),
                "base_model.model.q.lora_B.weight": torch.ones(6, 3),
            },
            "rank 3",
        ),
    ],
    ids=["ranks", "vector", "rank of the configuration"],
)
def test_factors_that_do_not_fit_are_refused(tmp_path, changes, words):
    write_adapter(tmp_path, {"q": (factors((6, 4), 2), False)}, task_type=None)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=words):
        Adapter(tmp_path).factors("q.weight")


@pytest.mark.parametrize("name", ["base_model.model.q.lora_C.weight", "base_model.model.q.lora_A.other.weight"])
def test_a_tensor_that_is_not_understood_is_named(tmp_path, name):
    write_adapter(tmp_path, {"q": (factors((6, 4), 2), False)}, task_type=None)
    edit(tmp_path, **{name: torch.ones(2)})
    with pytest.raises(CheckpointError, match=name.removeprefix("base_model.model.")):
        Adapter(tmp_path)


def test_a_tensor_under_two_names_is_refused(tmp_path):
    write_adapter(tmp_path, {"q": (factors((6, 4), 2), False)}, task_type=None)
    edit(tmp_path, **{"base_model.model.q.lora_A.default.weight": torch.ones(2, 4)})
    with pytest.raises(CheckpointError, match="are one tensor; remove one"):
        Adapter(tmp_path)


def test_a_factor_of_another_base_is_refused(tmp_path):
    write_adapter(tmp_path, {"q": (factors((6, 4), 2), False)}, task_type=None)
    with pytest.raises(CheckpointError, match=r"base \(7, 4\).*another base"):
        Adapter(tmp_path).factors("q.weight", (7, 4))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "[" * 100_000, '{"r": 4, "lora_alpha": NaN}', '{"lora_alpha": 3}']
)
def test_a_damaged_configuration_is_refused(tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="adapter_config.json"):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"r": "8"}, {"r": True}, {"rank_pattern": [1]}, {"rank_pattern": {"q": "2"}}, {"alpha_pattern": {"q": None}}],
    ids=str,
)
def test_a_configuration_of_wrong_types_is_refused(tmp_path, change):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 8, **change}))
    with pytest.raises(CheckpointError, match="adapter_config.json"):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "only LORA can be folded"),
        ({"use_qalora": True}, "`use_qalora` cannot be folded"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights: pissa` changed the base weights"),
        ({"use_dora": 1}, "`use_dora` cannot be 1"),
        ({"bias": []}, "`bias` cannot be"),
        ({"modules_to_save": "head"}, "`modules_to_save` must be a list of names"),
        ({"target_parameters": [1]}, "`target_parameters` must be a list of names"),
        ({"rank_pattern": {"(": 4}}, "no regular expression"),
        ({"rank_pattern": {"q": 0}}, "`rank > 0` must hold"),
        ({"r": 0}, "`rank > 0` must hold"),
        ({"r": -1}, "`rank > 0` must hold"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_folded_are_named(tmp_path, change, words):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 8, **change}))
    with pytest.raises(CheckpointError, match=re.escape(words)):
        read_adapter_config(tmp_path)


def test_a_directory_without_a_configuration_is_no_adapter(tmp_path):
    with pytest.raises(CheckpointError, match="adapter_config.json is missing"):
        read_adapter_config(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_adapter_config(tmp_path / "gone")
