"""Checkpoints of a Trainer load into every configuration, and the same one goes on bit by bit."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

import lit_wsl
from lit_wsl.callbacks.universal_checkpoint import UniversalCheckpointCallback
from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.sidecar import SIDECAR_KEY
from tests.models.universal.build import CONFIGURATIONS, adapted, llama, logits, shake
from tests.training.build import Plain, Universal, batches, train, trainer

ADAPTED = [name for name in CONFIGURATIONS if name != "standard"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of every configuration after one epoch, and what the model then computed."""
    folder, made = tmp_path_factory.mktemp("saved"), {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            module = Universal(name)
            (folder / name).mkdir()
            train(folder / name, module, epochs=1)
            made[name] = (folder / name / "last.ckpt", logits(module.model))
        return made[name]

    return get


@pytest.mark.parametrize("target", CONFIGURATIONS)
@pytest.mark.parametrize("source", CONFIGURATIONS)
def test_every_configuration_resumes_in_every_other(saved, tmp_path, source, target):
    path, expected = saved(source)
    loaded = []
    module = Universal(target)
    module.on_train_start = lambda: loaded.append(logits(module.model))
    runner = train(tmp_path, module, epochs=2, ckpt_path=path)
    torch.testing.assert_close(loaded[0], expected, rtol=0, atol=2e-5)
    assert (runner.current_epoch, runner.global_step, len(module.losses)) == (2, 10, 5)
    assert np.isfinite(module.losses).all()


@pytest.mark.parametrize("source", CONFIGURATIONS)
def test_a_checkpoint_is_a_plain_state_dict(saved, source):
    path, expected = saved(source)
    content = torch.load(path, weights_only=True)
    plain = llama()
    plain.load_state_dict({k.removeprefix("model."): v for k, v in content["state_dict"].items()}, strict=True)
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_same_configuration_goes_on_bit_by_bit(tmp_path, name):
    torch.manual_seed(3)
    whole = Universal(name)
    checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    train(tmp_path, whole, epochs=2, callbacks=[checkpoint], enable_checkpointing=True)
    torch.manual_seed(99)
    resumed = Universal(name)
    train(tmp_path / "resumed", resumed, epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert resumed.losses == whole.losses[5:]
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key


def test_saving_leaves_the_running_model_alone(tmp_path):
    module, again = Universal("dora"), Universal("dora")
    again.load_state_dict(module.state_dict())
    torch.manual_seed(1)
    train(tmp_path, module, epochs=2)
    torch.manual_seed(1)
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    train(tmp_path, again, epochs=2, callbacks=[checkpoint], enable_checkpointing=True)
    assert len(list(tmp_path.glob("epoch*.ckpt"))) == 10
    assert module.losses == again.losses


def test_a_rank_change_says_what_it_keeps(saved, tmp_path, caplog):
    logging.getLogger("lightning.pytorch").propagate = True
    with caplog.at_level(logging.INFO), pytest.warns(UserWarning, match="0 of 16 parameters fit"):
        train(tmp_path, Universal("r32"), epochs=2, ckpt_path=saved("r16")[0])
    assert "Optimizer: restored 0 of 16 parameters" in caplog.text
    assert "adapters of 8 layers start fresh" in caplog.text


def test_what_did_not_change_keeps_its_optimizer_state(saved, tmp_path):
    """Two of the layers have the same adapter in both configurations: only these go on with their moments."""
    path, _ = saved("fewer")
    module, states = Universal("r16"), {}

    def remember():
        optimizer = module.optimizers().optimizer
        names = {id(p): n for n, p in module.named_parameters()}
        states.update({names[id(p)]: s["exp_avg"].clone() for p, s in optimizer.state.items()})

    module.on_train_batch_start = lambda *_: remember() if not module.losses else None
    train(tmp_path, module, epochs=2, ckpt_path=path)
    content = torch.load(path, weights_only=True)
    theirs = {i: s["exp_avg"] for i, s in content["optimizer_states"][0]["state"].items()}
    names = content["optimizer_states"][0]["param_groups"][0]["param_names"]
    assert set(states) == set(names)
    assert all("q_proj" in name for name in states)
    for number, name in enumerate(names):
        assert torch.equal(states[name], theirs[number])


def test_the_schedule_goes_on_although_the_groups_differ(saved, tmp_path):
    class TwoGroups(Universal):
        def configure_optimizers(self):
            trained = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
            groups = [{"params": trained[:4]}, {"params": trained[4:], "lr": 4e-2}]
            optimizer = torch.optim.AdamW(groups, lr=2e-2)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 0.5**step] * 2)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class OneGroup(Universal):
        def configure_optimizers(self):
            optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    train(tmp_path, OneGroup("r16"), epochs=1)
    module, rates = TwoGroups("r16"), []
    module.on_train_batch_start = lambda *_: rates.append([g["lr"] for g in module.optimizers().param_groups])
    train(tmp_path, module, epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert rates[0] == pytest.approx([2e-2 * 0.5**5, 4e-2 * 0.5**5])
    assert rates[1] == pytest.approx([2e-2 * 0.5**6, 4e-2 * 0.5**6])


def test_weights_only_checkpoints_are_universal_too(tmp_path):
    module = Universal("r16")
    runner = train(tmp_path, module, epochs=1)
    runner.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    fresh = Universal("r32")
    train(tmp_path, fresh, epochs=2, ckpt_path=tmp_path / "weights.ckpt")
    plain = llama()
    content = torch.load(tmp_path / "weights.ckpt", weights_only=True)
    plain.load_state_dict({k.removeprefix("model."): v for k, v in content["state_dict"].items()})
    torch.testing.assert_close(logits(plain), logits(module.model), rtol=0, atol=2e-5)


@pytest.mark.parametrize("target", ["r16", "r32", "standard"])
def test_averaged_weights(tmp_path, target):
    module = Universal("r16")
    averaging = EMAWeightAveraging(decay=0.5)
    checkpoint = ModelCheckpoint(tmp_path, filename="averaged")
    live = []
    module.on_train_epoch_end = lambda: live.append(logits(module.model))
    train(tmp_path, module, epochs=1, callbacks=[averaging, checkpoint], enable_checkpointing=True)
    content = torch.load(tmp_path / "averaged.ckpt", weights_only=True)
    for key, expected in (("current_model_state", live[0]), ("state_dict", logits(module.model))):
        plain = llama()
        plain.load_state_dict({k.removeprefix("model."): v for k, v in content[key].items()}, strict=True)
        torch.testing.assert_close(logits(plain), expected, rtol=0, atol=2e-5)
    resumed, seen = Universal(target), []
    resumed.on_train_start = lambda: seen.append(logits(resumed.model))
    again = EMAWeightAveraging(decay=0.5)
    train(tmp_path / "next", resumed, epochs=2, ckpt_path=tmp_path / "averaged.ckpt", callbacks=[again])
    torch.testing.assert_close(seen[0], live[0], rtol=0, atol=2e-5)


def test_a_compiled_submodule(saved, tmp_path):
    path, expected = saved("r16")
    for target in ("r16", "r32"):
        module = Universal(target)
        module.model = torch.compile(module.model, backend="eager")
        seen = []
        module.on_train_start = lambda m=module, s=seen: s.append(logits(m.model))
        train(tmp_path, module, epochs=2, ckpt_path=path)
        torch.testing.assert_close(seen[0], expected, rtol=0, atol=2e-5)
        keys = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
        assert set(keys) == set(torch.load(path, weights_only=True)["state_dict"])


@pytest.mark.parametrize("target", ["standard", "r16", "r32"])
def test_the_callback_does_the_same_for_any_module(tmp_path, target):
    class Own(Plain):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = [1, 2]

        def on_load_checkpoint(self, checkpoint):
            self.mine = checkpoint["mine"]

    module = Own("r16")
    train(tmp_path, module, epochs=1, callbacks=[UniversalCheckpointCallback()])
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not any("lora_" in key for key in content["state_dict"])
    resumed, seen = Own(target), []
    resumed.on_train_start = lambda: seen.append(logits(resumed.model))
    runner = train(
        tmp_path, resumed, epochs=2, ckpt_path=tmp_path / "last.ckpt", callbacks=[UniversalCheckpointCallback()]
    )
    torch.testing.assert_close(seen[0], logits(module.model), rtol=0, atol=2e-5)
    assert resumed.mine == [1, 2]
    runner.validate(resumed, batches(), ckpt_path=tmp_path / "last.ckpt", verbose=False)


def test_the_callback_configures_the_mixin(tmp_path):
    train(tmp_path, Universal("r16"), epochs=1, callbacks=[UniversalCheckpointCallback("factors", "float32")])
    packed = torch.load(tmp_path / "last.ckpt", weights_only=True)[SIDECAR_KEY]
    assert packed["sidecar"] == "factors"
    assert set(packed["layers"]["state_dict"]) == {"signatures", "containers", "adapters", "norms", "sums"}


def test_fitting_the_same_module_twice(tmp_path):
    module = Universal("r16")
    train(tmp_path, module, epochs=1)
    train(tmp_path, module, epochs=2, ckpt_path=tmp_path / "last.ckpt")
    runner = train(tmp_path, module, epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert runner.global_step == 15
    assert len(module.losses) == 15


@pytest.mark.parametrize("named", [True, False])
def test_old_checkpoints_go_on_as_before(tmp_path, named, caplog):
    """A checkpoint of the same adapters that was saved without the mixin: raw keys, no side-car."""
    old = Plain("r16")
    train(tmp_path, old, epochs=1)
    if not named:
        content = torch.load(tmp_path / "last.ckpt", weights_only=True)
        content["optimizer_states"][0]["param_groups"][0].pop("param_names")
        torch.save(content, tmp_path / "last.ckpt")
    resumed, seen = Universal("r16"), []
    resumed.on_train_start = lambda: seen.append(logits(resumed.model))
    logging.getLogger("lightning.pytorch").propagate = True
    with caplog.at_level(logging.INFO):
        runner = train(tmp_path, resumed, epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(seen[0], logits(old.model))
    assert "restored 16 of 16" in caplog.text
    assert runner.global_step == 10


@pytest.mark.parametrize("form", ["state.pt", "state.safetensors", "directory", "container.bin"])
def test_ckpt_path_takes_foreign_weights(tmp_path, form):
    source, path = shake(llama()), tmp_path / form
    if form == "directory":
        source.save_pretrained(path)
    elif form == "state.safetensors":
        from safetensors.torch import save_file

        save_file(source.state_dict(), path)
    else:
        torch.save({"model": source.state_dict()} if "container" in form else source.state_dict(), path)
    module, seen = Universal("r16"), []
    module.on_train_start = lambda: seen.append(logits(module.model))
    runner = train(tmp_path, module, epochs=1, ckpt_path=path)
    torch.testing.assert_close(seen[0], logits(source), rtol=0, atol=2e-5)
    assert runner.global_step == 5


def test_hyperparameters_are_kept_as_plain_values(tmp_path):
    class Described(Universal):
        def __init__(self, name, folder, size, make):
            super().__init__(name)
            self.save_hyperparameters()

    module = Described("r16", Path("somewhere"), np.float32(2.5), torch.nn.ReLU)
    with pytest.warns(UserWarning, match="make cannot be kept"):
        train(tmp_path, module, epochs=1)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert kept == {"name": "r16", "folder": "somewhere", "size": 2.5}


def test_random_numbers_of_every_generator_are_restored(tmp_path):
    import random

    module, drawn = Universal("r16"), []
    train(tmp_path, module, epochs=1)
    expected = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())  # noqa: NPY002
    resumed = Universal("r16")
    resumed.on_fit_start = lambda: drawn.append((torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()))  # noqa: NPY002
    train(tmp_path, resumed, epochs=1, ckpt_path=tmp_path / "last.ckpt")
    assert drawn[0] == expected


def test_load_from_checkpoint(tmp_path):
    class Named(Universal):
        def __init__(self, name="r16"):
            super().__init__(name)
            self.save_hyperparameters()

    module = Named("r16")
    train(tmp_path, module, epochs=1)
    for name in ("r16", "r32", "standard"):
        again = Named.load_from_checkpoint(tmp_path / "last.ckpt", name=name)
        torch.testing.assert_close(logits(again.model), logits(module.model), rtol=0, atol=2e-5)


def test_load_universal_reads_checkpoints_exactly(saved):
    path, _ = saved("dora")
    one, other = adapted("dora"), Universal("dora")
    report = lit_wsl.load_universal(other, path)
    assert not report.fresh
    lit_wsl.load_universal(one, path)
    torch.testing.assert_close(logits(one), logits(other.model), rtol=0, atol=2e-5)


def test_a_wrong_architecture_is_refused(saved, tmp_path):
    module = Universal("r16")
    module.model = torch.nn.Linear(3, 4)
    with pytest.raises(CheckpointError, match=r"2 missing: model.weight, model.bias; 21 unexpected: .*lit-wsl map"):
        trainer(tmp_path, max_epochs=2).fit(module, batches(), ckpt_path=saved("r16")[0])


def test_tied_embeddings_adapted_alone_are_refused_before_training(tmp_path):
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.tiny_llama import tied_llama_config

    class Tied(Universal):
        def __init__(self):
            super().__init__("standard")
            self.model = inject_adapter_in_model(
                LoraConfig(r=2, target_modules=["embed_tokens"]), LlamaForCausalLM(LlamaConfig(**tied_llama_config()))
            )

    module = Tied()
    with pytest.raises(CheckpointError, match="tied tensor.*untie_embeddings"):
        trainer(tmp_path, max_epochs=1).fit(module, batches())
    assert not module.losses


def test_a_diverged_adapter_is_refused_by_name(tmp_path):
    module = Universal("r16")
    runner = train(tmp_path, module, epochs=1)
    with torch.no_grad():
        module.model.model.layers[1].self_attn.q_proj.lora_B["default"].weight[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj.*not finite"):
        runner.save_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "bad.ckpt").exists()


@pytest.mark.parametrize("by_callback", [False, True])
def test_a_folder_that_can_hold_no_checkpoint_is_refused_before_the_first_step(tmp_path, by_callback):
    (tmp_path / "file").write_text("mine")
    module = Plain("r16") if by_callback else Universal("r16")
    callbacks = [ModelCheckpoint(tmp_path / "file"), *([UniversalCheckpointCallback()] if by_callback else [])]
    runner = trainer(tmp_path, max_epochs=1, callbacks=callbacks, enable_checkpointing=True)
    with pytest.raises(CheckpointError, match="/file is a file; choose another"):
        runner.fit(module, batches())
    assert module.losses == []


def test_fresh_adapters_of_the_same_shape_take_no_optimizer_state(tmp_path):
    first = Universal("r16")
    first.sidecar = "none"
    train(tmp_path, first, epochs=1)
    with pytest.warns(UserWarning, match=r"0 of \d+ parameters fit"):
        train(tmp_path, Universal("r16"), epochs=2, ckpt_path=tmp_path / "last.ckpt")
