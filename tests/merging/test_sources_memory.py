"""Modules, state dicts and adapters in memory as sources."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel

from lit_wsl.errors import ConfigError, LitWslError, MergeError
from lit_wsl.merging import merge_state_dict
from lit_wsl.merging.memory import set_aside
from tests.merging.build import folded, save_adapter, save_bert, save_gpt2, save_tuned
from tests.merging.opened import check_gives, opened, updates
from tests.merging.test_identity import BERT_ADAPTERS, GPT2_ADAPTERS


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {"bert": save_bert(root / "bert"), "gpt2": save_gpt2(root / "gpt2")}


CASES = [*(("bert", case) for case in BERT_ADAPTERS), *(("gpt2", case) for case in GPT2_ADAPTERS)]


@pytest.mark.parametrize(("kind", "case"), CASES)
@pytest.mark.parametrize("field", ["adapters", "models"])
def test_a_live_peft_model_is_what_peft_folds(bases, tmp_path, kind, case, field):
    """A1.2-A1.4; every kind of adapter, as an adapter and in a list of models"""
    live = save_adapter(bases[kind], tmp_path / "a", **{**BERT_ADAPTERS, **GPT2_ADAPTERS}[case])
    (source,), base = opened(**{field: [live]}, base=str(bases[kind]))
    check_gives(source, base, folded(copy.deepcopy(live)))  # which changes its model in place


@pytest.mark.parametrize("name", ["default", "task"])
def test_an_adapter_of_any_name_is_the_same_as_the_saved_one(bases, tmp_path, name):
    """A1.4: also a module saved whole, and trained biases."""
    torch.manual_seed(5)
    config = LoraConfig(
        r=3, target_modules=["query"], init_lora_weights=False, modules_to_save=["pooler"], bias="lora_only"
    )
    live = get_peft_model(AutoModel.from_pretrained(bases["bert"]), config, adapter_name=name).eval()
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    live.save_pretrained(tmp_path)
    saved = tmp_path if name == "default" else tmp_path / name
    (here, there), base = opened(adapters=[live, str(saved)], base=str(bases["bert"]), check_bases=False)
    ours, theirs = updates(here, base), updates(there, base)
    for key in theirs:
        assert torch.equal(ours[key], theirs[key]), key
    assert "encoder.layer.0.attention.self.query.bias" in ours
    assert ours.keys() >= theirs.keys()


def test_a_pair_of_state_dict_and_configuration_is_an_adapter(bases, tmp_path):
    live = save_adapter(bases["bert"], tmp_path / "a", use_rslora=True)
    pair = (load_file(tmp_path / "a" / "adapter_model.safetensors"), live.peft_config["default"].to_dict())
    (source,), base = opened(adapters=[pair], base=AutoModel.from_pretrained(bases["bert"]))
    check_gives(source, base, folded(live))


def test_modules_and_state_dicts_are_models_and_bases(bases, tmp_path):
    """G8"""
    expected = save_tuned(bases["bert"], tmp_path / "t", seed=1)
    base_model, tuned = AutoModel.from_pretrained(bases["bert"]), AutoModel.from_pretrained(tmp_path / "t")
    prefixed = {f"_orig_mod.{name}": tensor for name, tensor in tuned.state_dict().items()}
    sources, base = opened(models=[tuned, prefixed, str(tmp_path / "t")], base=base_model)
    for source in sources:
        check_gives(source, base, expected)


def test_the_name_of_what_is_in_memory_follows_from_its_content(bases):
    """A killed merge goes on only with equal sources: the name is part of the fingerprint."""
    model = AutoModel.from_pretrained(bases["bert"])
    other = copy.deepcopy(model)
    first, _ = set_aside({"models": [model, other, "path"], "base": model.state_dict()})
    assert first["models"][0] == first["models"][1] == first["base"]
    assert first["models"][2] == "path"
    with torch.no_grad():
        next(other.parameters()).view(-1)[3] += 1e-6
    assert set_aside({"models": [other]})[0]["models"][0] != first["base"]
    renamed = {f"x.{name}": tensor for name, tensor in model.state_dict().items()}
    assert set_aside({"base": renamed})[0]["base"] != first["base"]


def test_the_name_is_the_same_in_every_process():
    """Sets, as of `target_modules`, have another order in each; and entries that change places do not go unseen."""
    code = (
        "import torch; from lit_wsl.merging.memory import set_aside; "
        "config = {'target_modules': set('abcdefgh'), 'r': 2}; "
        "print(set_aside({'adapters': [({'x': torch.arange(4.0)}, config)]})[0]['adapters'][0])"
    )
    names = set()
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True
        )
        assert run.returncode == 0, run.stderr
        names.add(run.stdout)
    assert len(names) == 1
    swapped = torch.arange(64.0)
    swapped[[2, 6]] = swapped[[6, 2]]
    assert set_aside({"base": {"x": swapped}})[0] != set_aside({"base": {"x": torch.arange(64.0)}})[0]


def test_settings_of_an_adapter_are_part_of_its_name(bases, tmp_path):
    live = save_adapter(bases["bert"], tmp_path / "a")
    config = live.peft_config["default"].to_dict()
    state = load_file(tmp_path / "a" / "adapter_model.safetensors")
    names = set_aside({"adapters": [(state, config), (state, {**config, "lora_alpha": 7})]})[0]["adapters"]
    assert len(set(names)) == 2


def test_what_a_live_model_does_not_say_is_refused(bases, tmp_path):
    live = save_adapter(bases["bert"], tmp_path / "a")
    state = load_file(tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(LitWslError, match="does not say its scale"):
        opened(adapters=[state])
    next(m for m in live.modules() if isinstance(m, LoraLayer)).scaling["default"] *= 2
    with pytest.raises(LitWslError, match="by 3, its configuration by 1.5"):
        opened(adapters=[live])
    injected = inject_adapter_in_model(LoraConfig(target_modules=["query"]), AutoModel.from_pretrained(bases["bert"]))
    if hasattr(injected, "peft_config"):
        del injected.peft_config
    with pytest.raises(LitWslError, match="get_merged_state_dict"):
        opened(models=[injected], base=str(bases["bert"]))


def test_two_active_adapters_are_refused(bases, tmp_path):
    live = save_adapter(bases["bert"], tmp_path / "a")
    live.add_adapter("other", LoraConfig(target_modules=["query"]))
    live.base_model.set_adapter(["default", "other"])
    with pytest.raises(LitWslError, match=r"2 active adapters \(default, other\)"):
        opened(adapters=[live])
    live.set_adapter("other")
    (source,), _ = opened(adapters=[live])
    assert {name.rpartition(".query")[1] for name in source.shapes} == {".query"}


@pytest.mark.parametrize("thing", [3, object(), ({}, 1), nn.Linear])
def test_other_things_are_refused(thing):
    with pytest.raises(ConfigError, match="takes a path, a module, a state dict"):
        set_aside({"models": [thing]})


def test_a_module_without_tensors_is_refused():
    with pytest.raises(LitWslError, match="A ReLU in `models` holds no state dict"):
        set_aside({"models": [nn.ReLU()]})


def test_transformers_models_with_adapters_give_their_factors(bases):
    model = AutoModel.from_pretrained(bases["bert"])
    model.add_adapter(LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    (source,), base = opened(adapters=[model], base=str(bases["bert"]))
    expected = {
        f"{path}.weight": module.get_delta_weight("default").detach()
        for path, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    found = updates(source, base)
    assert found.keys() == expected.keys()
    for name, update in expected.items():
        torch.testing.assert_close(found[name].float(), update, rtol=1e-5, atol=1e-6)


def test_a_tensor_of_one_entry_may_keep_any_stride():
    state = {"scale": torch.arange(10.0)[::5][1:]}
    merged = merge_state_dict(base=state, models=[state], method="uniform")
    assert merged["scale"].tolist() == [5.0]


def test_a_result_in_memory_that_does_not_fit_float16_is_refused():
    base = {"w": torch.full((2, 2), 60000.0, dtype=torch.float16)}
    tuned = {"w": base["w"] + 4000}
    with pytest.raises(MergeError, match="'w' do not fit float16; give the base in bfloat16"):
        merge_state_dict(base=base, models=[tuned, tuned], method="task_arithmetic")
