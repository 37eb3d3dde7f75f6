"""Training checkpoints with merged weights and their adapters beside them, as models and as adapters."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from lit_wsl.errors import LitWslError
from lit_wsl.merging import merge, merge_state_dict
from lit_wsl.models.universal.api import check_adapters
from lit_wsl.models.universal.fold import fold_state
from lit_wsl.models.universal.sidecar import SIDECAR_KEY, VERSION, pack
from tests.merging.build import relative_gap
from tests.merging.opened import check_gives, opened, save
from tests.models.universal.build import CONFIGURATIONS, adapted, llama, shake
from tests.models.universal.layers import NETS
from tests.training.build import Universal, train


class Module(nn.Module):
    """A model under the name that a training module gives it, beside a head of its own."""

    def __init__(self, model):
        super().__init__()
        self.net = model
        self.classifier = nn.Linear(6, 3)


def save_checkpoint(model, path, kind="exact"):
    """A checkpoint as a module of ours saves it; returns the tensors of the base, and the merged ones by its names."""
    module = Module(model)
    layout = check_adapters(module)
    folded = fold_state(module.state_dict(), layout)
    packed = pack(folded, layout, kind) if kind else {}
    meta = {"version": VERSION, "sidecar": kind, "layers": {"state_dict": packed}}
    torch.save({"state_dict": folded.state, SIDECAR_KEY: meta, "epoch": 1}, path)
    merged = {name.removeprefix("net."): t.clone() for name, t in folded.state.items() if name.startswith("net.")}
    base = dict(merged)
    for raw, tensor in folded.base.items():
        base[layout.plain(raw).removeprefix("net.")] = tensor
    for name, tensor in module.state_dict().items():
        if ".original_module." in name:
            base[layout.plain(name.replace("original_module", "modules_to_save.default")).removeprefix("net.")] = tensor
    return base, merged


FIT = ["r16", "r16+embedding", "dora", "rslora", "random", "fewer", "saved head"]


@pytest.mark.parametrize("case", FIT)
@pytest.mark.parametrize("kind", ["exact", "factors"])
def test_a_checkpoint_gives_its_adapters(tmp_path, case, kind):
    """Factors stay factors, under the base's names; and as a model it gives the same tuned model."""
    base, merged = save_checkpoint(shake(adapted(case)), tmp_path / "run.ckpt", kind)
    base_file = save(base, tmp_path / "base.safetensors")
    for field in ("adapters", "models"):
        (source,), stored = opened(**{field: [str(tmp_path / "run.ckpt")]}, base=base_file)
        check_gives(source, stored, merged)
        assert set(source.heads()) == {"classifier.weight", "classifier.bias"}
    if case not in ("dora", "saved head"):  # which are dense updates
        merge(adapters=[str(tmp_path / "run.ckpt")], base=base_file, output=str(tmp_path / "out"))
        found = load_file(tmp_path / "out" / "adapter_model.safetensors")
        ranks = {len(tensor) for name, tensor in found.items() if "_A" in name}
        assert ranks == {CONFIGURATIONS[case]["r"]}


@pytest.mark.parametrize("case", ["r16+embedding", "dora", "rslora", "saved head", "standard"])
def test_a_checkpoint_of_a_real_run_gives_the_tuned_model(tmp_path, case):
    """What the trainer saved, with optimizer and loops in it; its model is called ``model.model…``."""
    torch.manual_seed(7)
    base_file = save(llama().state_dict(), tmp_path / "base.safetensors")
    torch.manual_seed(7)
    train(tmp_path, Universal(case), epochs=1)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    merged = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    for field in ("adapters", "models") if case != "standard" else ("models",):
        (source,), stored = opened(**{field: [str(tmp_path / "last.ckpt")]}, base=base_file)
        check_gives(source, stored, merged)
        assert source.renamed() == len(source.shapes)


@pytest.mark.parametrize("dialect", NETS)
def test_every_dialect_gives_its_adapters(tmp_path, dialect):
    """Fused projections, embeddings stored the other way round, layers that were never adapted."""
    base, merged = save_checkpoint(NETS[dialect](3), tmp_path / "run.ckpt")
    (source,), stored = opened(adapters=[str(tmp_path / "run.ckpt")], base=save(base, tmp_path / "base.safetensors"))
    check_gives(source, stored, merged)


def test_a_model_inside_of_peft_s_own_goes_by_its_plain_names(tmp_path):
    model = get_peft_model(llama(), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    base, merged = save_checkpoint(shake(model), tmp_path / "run.ckpt")
    assert not any("base_model" in name for name in base)
    (source,), stored = opened(adapters=[str(tmp_path / "run.ckpt")], base=save(base, tmp_path / "base.safetensors"))
    assert len(source.shapes) == 2 + 1
    check_gives(source, stored, merged)


def test_what_was_trained_beside_the_adapters_is_taken_over(tmp_path):
    model = shake(adapted("r16"))
    base, _ = save_checkpoint(model, tmp_path / "first.ckpt")
    with torch.no_grad():
        model.model.norm.weight += 0.25
    _, merged = save_checkpoint(model, tmp_path / "run.ckpt")
    (source,), stored = opened(adapters=[str(tmp_path / "run.ckpt")], base=save(base, tmp_path / "base.safetensors"))
    assert "model.norm.weight" in source.shapes
    assert "model.embed_tokens.weight" not in source.shapes
    check_gives(source, stored, merged)


def test_a_base_in_16_bits_differs_by_its_rounding_alone(tmp_path):
    base, _ = save_checkpoint(shake(adapted("r16")), tmp_path / "run.ckpt")
    halves = {name: tensor.bfloat16() for name, tensor in base.items()}
    (source,), _ = opened(adapters=[str(tmp_path / "run.ckpt")], base=save(halves, tmp_path / "base.safetensors"))
    assert all("proj" in name for name in source.shapes)


@pytest.mark.parametrize("case", ["pissa", "olora"])
@pytest.mark.parametrize("kind", ["exact", "factors"])
def test_factors_on_a_changed_base_are_refused(tmp_path, case, kind):
    """An initialisation that moves a part of the base into the factors: only the merged weights are told apart."""
    torch.manual_seed(0)
    original = llama()
    base_file = save(original.state_dict(), tmp_path / "base.safetensors")
    torch.manual_seed(0)
    _, merged = save_checkpoint(shake(adapted(case)), tmp_path / "run.ckpt", kind)
    with pytest.raises(LitWslError, match="trained on other weights.*--models"):
        opened(adapters=[str(tmp_path / "run.ckpt")], base=base_file)
    (source,), stored = opened(models=[str(tmp_path / "run.ckpt")], base=base_file)
    check_gives(source, stored, merged)


def test_checkpoints_without_factors_say_so(tmp_path):
    save_checkpoint(shake(adapted("r16")), tmp_path / "bare.ckpt", "none")
    save_checkpoint(llama(), tmp_path / "plain.ckpt", "exact")
    torch.save({"state_dict": llama().state_dict()}, tmp_path / "other.ckpt")
    words = {"bare": "keeps no factors.*sidecar: exact", "plain": "--models", "other": "carries no adapters"}
    for name, told in words.items():
        with pytest.raises(LitWslError, match=told):
            opened(adapters=[str(tmp_path / f"{name}.ckpt")])


def test_a_damaged_description_is_refused(tmp_path):
    save_checkpoint(shake(adapted("r16")), tmp_path / "run.ckpt")
    content = torch.load(tmp_path / "run.ckpt")
    layers = content[SIDECAR_KEY]["layers"]["state_dict"]
    name = next(iter(layers["signatures"]))
    whole = json.loads(layers["signatures"][name])
    [part] = whole["parts"]
    lacking = [json.dumps({k: v for k, v in whole.items() if k != lost}) for lost in whole if lost != "own"]
    odd = [json.dumps(whole | {"parts": [part | {key: None}]}) for key in ("A", "scale", "A_turned", "start", "shift")]
    for text in ("{", "{}", "[]", '{"name": "net"}', *lacking, *odd):
        layers["signatures"][name] = text
        torch.save(content, tmp_path / "bad.ckpt")
        with pytest.raises(LitWslError, match="damaged"):
            opened(adapters=[str(tmp_path / "bad.ckpt")])
    content = torch.load(tmp_path / "run.ckpt")
    adapters = content[SIDECAR_KEY]["layers"]["state_dict"]["adapters"]
    del adapters[next(iter(adapters))]
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(LitWslError, match="bad.ckpt lacks .*lora_A.* of the adapter of"):
        opened(adapters=[str(tmp_path / "bad.ckpt")])


def test_without_a_base_the_adapters_go_by_their_own_names(tmp_path):
    save_checkpoint(shake(adapted("saved head")), tmp_path / "run.ckpt")
    (source,), _ = opened(adapters=[str(tmp_path / "run.ckpt")])
    assert all(name.startswith("net.model.layers.") for name in source.shapes)
    assert set(source.heads()) == {"net.lm_head.weight"}


def test_checkpoints_merge_with_their_like(tmp_path):
    """The oracle is the sum in float64."""
    torch.manual_seed(1)
    base, first = save_checkpoint(shake(adapted("r16")), tmp_path / "a.ckpt")
    base_file = save(base, tmp_path / "base.safetensors")
    model = adapted("dora")
    model.load_state_dict({n: base.get(n.replace(".base_layer", ""), t) for n, t in model.state_dict().items()})
    for layer in (m for m in model.modules() if hasattr(m, "lora_magnitude_vector")):
        layer.lora_magnitude_vector["default"].weight.data = layer.base_layer.weight.norm(dim=1)
    again, second = save_checkpoint(shake(model), tmp_path / "b.ckpt")
    assert all(torch.equal(again[name], tensor) for name, tensor in base.items())
    merged = merge_state_dict(
        adapters=[str(tmp_path / "a.ckpt")],
        models=[str(tmp_path / "b.ckpt")],
        base=base_file,
        method="weighted_delta_n",
        method_params={"normalize_coefficients": False, "task_coefficients": [0.7, 0.5]},
    )
    for name, before in base.items():
        start = before.double()
        expected = start + 0.7 * (first[name].double() - start) + 0.5 * (second[name].double() - start)
        if torch.equal(first[name], before):
            expected = start  # only one source has it
        assert relative_gap(merged[name], expected) <= 1e-6, name
