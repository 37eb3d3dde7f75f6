"""Any configuration into any other: the function stays, and the plain model takes the file as it is."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

import lit_wsl
from lit_wsl.models.universal.api import find_layout
from lit_wsl.models.universal.fold import fold_state
from lit_wsl.models.universal.sidecar import SIDECAR_KEY, VERSION, pack
from tests.models.universal.build import CONFIGURATIONS, adapted, llama, logits, shake


def checkpoint(model, kind="exact"):
    layout = find_layout(model)
    folded = fold_state(model.state_dict(), layout)
    return {
        "state_dict": folded.state,
        SIDECAR_KEY: {"version": VERSION, "layers": {"state_dict": pack(folded, layout, kind)}},
    }


@pytest.mark.parametrize("target", CONFIGURATIONS)
@pytest.mark.parametrize("source", CONFIGURATIONS)
def test_every_configuration_loads_into_every_other(source, target):
    trained, model = shake(adapted(source)), adapted(target)
    expected = logits(trained)
    saved = checkpoint(trained)
    plain = llama()
    plain.load_state_dict(saved["state_dict"], strict=True)
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=2e-5)
    report = lit_wsl.load_universal(model, saved)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=2e-5)
    assert (source == target) <= (not report.fresh)
    loss = model(input_ids=(tokens := torch.arange(16).reshape(2, 8)), labels=tokens).loss
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("name", [n for n in CONFIGURATIONS if n != "standard"])
@pytest.mark.parametrize(("kind", "exact"), [("exact", True), ("factors", False), ("none", False)])
def test_the_sidecar_restores_the_same_configuration(name, kind, exact):
    trained, model = shake(adapted(name)), adapted(name)
    report = lit_wsl.load_universal(model, checkpoint(trained, kind))
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=2e-5)
    assert bool(report.fresh) == (kind == "none")
    ours, theirs = model.state_dict(), trained.state_dict()
    if kind != "none":
        for key in theirs:
            limit = 0 if exact or "base_layer" not in key else 1e-6
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=limit, msg=key)


@pytest.mark.parametrize("name", [n for n in CONFIGURATIONS if n != "standard"])
def test_folding_equals_pefts_own_merge(name):
    model = get_peft_model(llama(), LoraConfig(**CONFIGURATIONS[name]))
    ours = lit_wsl.get_merged_state_dict(shake(model))
    theirs = copy.deepcopy(model).merge_and_unload().state_dict()
    assert set(ours) == set(theirs)
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=2e-6, msg=key)


def test_folding_changes_nothing():
    model = shake(adapted("dora"))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    lit_wsl.get_merged_state_dict(model)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["r16", "dora", "r16+embedding", "rslora"])
def test_weights_that_were_edited_after_saving_are_what_loads(name):
    """Someone averaged the plain weights and kept the rest of the file: the side-car is of another function."""
    saved, model, plain = checkpoint(shake(adapted(name))), adapted(name), llama()
    edited = {key: tensor * 1.01 for key, tensor in saved["state_dict"].items()}
    plain.load_state_dict(edited)
    with pytest.warns(UserWarning, match="changed after saving"):
        report = lit_wsl.load_universal(model, saved | {"state_dict": edited})
    assert not report.restored
    torch.testing.assert_close(logits(model), logits(plain), rtol=0, atol=2e-5)
