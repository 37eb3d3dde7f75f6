"""A side-car gives its layers back bit by bit, and only to layers that mean the same."""

import copy

import pytest
import torch

from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.api import check_adapters, load_universal
from lit_wsl.models.universal.fold import fold_state
from lit_wsl.models.universal.sidecar import SIDECAR_KEY, VERSION, pack, unpack
from tests.models.universal.build import CONFIGURATIONS, adapted, logits, shake
from tests.models.universal.layers import NETS, output

FOUR = ["q_proj", "k_proj", "v_proj", "o_proj"]


def checkpoint(model, kind="exact"):
    layout = check_adapters(model)
    folded = fold_state(model.state_dict(), layout)
    packed = {"version": VERSION, "layers": {"state_dict": pack(folded, layout, kind)}}
    return {"state_dict": folded.state, SIDECAR_KEY: packed}


@pytest.mark.parametrize(
    ("target", "restored", "fresh"),
    [
        ({"target_modules": ["q_proj"]}, {"q_proj"}, set()),
        ({"target_modules": [*FOUR, "up_proj"]}, set(FOUR), {"up_proj"}),
        ({"rank_pattern": {"k_proj": 4}, "target_modules": FOUR}, {"q_proj", "v_proj", "o_proj"}, {"k_proj"}),
        ({"alpha_pattern": {"v_proj": 1}, "target_modules": FOUR}, {"q_proj", "k_proj", "o_proj"}, {"v_proj"}),
        ({"target_modules": FOUR, "use_dora": True}, set(), set(FOUR)),
        ({"target_modules": FOUR, "init_lora_weights": False}, set(FOUR), set()),
    ],
    ids=["fewer", "more", "one of another rank", "one of another scale", "another form", "random"],
)
@pytest.mark.parametrize("kind", ["exact", "factors"])
def test_layers_of_the_same_configuration_go_on_and_others_start_anew(kind, target, restored, fresh):
    trained = shake(adapted({"r": 16, "lora_alpha": 16, "target_modules": FOUR}))
    model = adapted({"r": 16, "lora_alpha": 16} | target)
    report = load_universal(model, checkpoint(trained, kind))
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=2e-5)
    assert {name.rpartition(".")[2] for name in report.restored} == restored
    assert {name.rpartition(".")[2] for name in report.fresh} == fresh
    ours, theirs = model.state_dict(), trained.state_dict()
    for name in report.restored:
        for key in (key for key in ours if key.startswith(f"{name}.")):
            if kind == "exact" or "lora_" in key:
                assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["r16", "dora", "pissa"])
def test_a_16_bit_model_gets_every_bit_back(name, dtype):
    if name == "pissa":
        trained, model = adapted(name).to(dtype), adapted(name).to(dtype)
    else:
        trained, model = adapted(name, dtype), adapted(name, dtype)
    load_universal(model, checkpoint(shake(trained)))
    assert all(torch.equal(model.state_dict()[key], t) for key, t in trained.state_dict().items())


@pytest.mark.parametrize("dialect", NETS)
@pytest.mark.parametrize("kind", ["exact", "factors", "none"])
def test_every_dialect_goes_on(dialect, kind):
    trained, model = NETS[dialect](3).double(), NETS[dialect](3).double()
    report = load_universal(model, checkpoint(trained, kind))
    torch.testing.assert_close(output(model), output(trained), rtol=0, atol=1e-10)
    assert bool(report.fresh) == (kind == "none")
    if kind == "exact":
        assert all(torch.equal(model.state_dict()[key], t) for key, t in trained.state_dict().items())


def test_a_file_keeps_its_sidecar(tmp_path):
    trained, model = shake(adapted("r16+embedding")), adapted("r16+embedding")
    torch.save(checkpoint(trained), tmp_path / "last.ckpt")
    report = load_universal(model, tmp_path / "last.ckpt")
    assert not report.fresh
    assert all(torch.equal(model.state_dict()[key], t) for key, t in trained.state_dict().items())


@pytest.mark.parametrize("lost", ["lora_A", "lora_B", "lora_magnitude_vector"])
def test_a_sidecar_with_a_gap_restores_nothing_of_that_layer(lost):
    """Half an adapter on the base weight would be another function."""
    trained, model = shake(adapted("dora")), adapted("dora")
    saved = checkpoint(trained)
    adapters = saved[SIDECAR_KEY]["layers"]["state_dict"]["adapters"]
    gap = next(key for key in adapters if lost in key)
    del adapters[gap]
    report = load_universal(model, saved)
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=2e-5)
    assert report.fresh == {gap.partition(".lora_")[0]}


@pytest.mark.parametrize("field", ["base", "norms"])
def test_a_sidecar_without_base_or_norms_still_gives_the_function(field):
    trained, model = shake(adapted("dora")), adapted("dora")
    saved = checkpoint(trained)
    saved[SIDECAR_KEY]["layers"]["state_dict"][field] = {}
    assert not load_universal(model, saved).fresh
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=2e-5)


def test_an_adapter_of_another_shape_that_is_not_active_stays():
    def two(rank):
        model = adapted({"r": 4, "target_modules": ["q_proj"]})
        config = copy.deepcopy(model.peft_config["default"])
        config.r = rank
        for name, module in list(model.named_modules()):
            if name.endswith("q_proj"):
                module.update_layer("second", rank, lora_alpha=4, config=config)
        return model

    trained, model = shake(two(2)), two(3)
    report = load_universal(model, checkpoint(trained))
    assert not report.fresh
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=2e-5)


def test_a_newer_sidecar_is_refused():
    with pytest.raises(CheckpointError, match="version '99'.*upgrade lit_wsl"):
        unpack({SIDECAR_KEY: {"version": "99"}})


@pytest.mark.parametrize("name", [n for n in CONFIGURATIONS if n != "standard"])
def test_training_resumes_with_equal_steps(name):
    """The factors restored are those that the next step starts from."""
    trained, model = shake(adapted(name)), adapted(name)
    load_universal(model, checkpoint(trained))
    tokens = torch.arange(16).reshape(2, 8)
    losses = []
    for one in (trained, model):
        optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            loss = one(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[:3] == losses[3:]
