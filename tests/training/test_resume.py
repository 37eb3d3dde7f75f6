"""Optimizers and schedules of a run that goes on with other parameters."""

import copy
import math

import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch.optim import lr_scheduler as schedules

from lit_wsl.callbacks.universal_checkpoint import UniversalCheckpointCallback
from lit_wsl.training.resume import ParameterNames, continue_schedule, match_state
from tests.models.universal.build import logits
from tests.training.build import Plain, Universal, batches, train, trainer


def optimizer_over(shapes, kind=torch.optim.AdamW, **options):
    return kind([torch.nn.Parameter(torch.zeros(shape)) for shape in shapes], **options)


def stepped(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def names(optimizer, *listed):
    shapes = [[list(p.shape) for p in optimizer.param_groups[0]["params"]]]
    return ParameterNames([list(listed)], shapes, [{}], type(optimizer).__name__, 0.1)


def test_a_part_that_fits_leaves_the_configured_options():
    old = optimizer_over([(2,), (3,)], lr=1e-5, weight_decay=0.3)
    new = optimizer_over([(2,), (4,)], lr=1e-3, weight_decay=0.0)
    matched = match_state(new, stepped(old), names(old, "head", "a"), names(new, "head", "b"))
    assert matched.kept == ["head"]
    assert not matched.same_groups
    new.load_state_dict(matched.state)
    assert (new.param_groups[0]["lr"], new.param_groups[0]["weight_decay"]) == (1e-3, 0.0)
    stepped(new)


def test_the_same_parameters_go_on_with_the_runs_options():
    old, new = optimizer_over([(2,)], lr=1e-5), optimizer_over([(2,)], lr=1e-3)
    matched = match_state(new, stepped(old), names(old, "a"), names(new, "a"))
    assert matched.same_groups
    assert matched.state["param_groups"][0]["lr"] == 1e-5


@pytest.mark.parametrize(
    ("before", "after"), [(torch.optim.SGD, torch.optim.AdamW), (torch.optim.AdamW, torch.optim.SGD)]
)
def test_another_kind_of_optimizer_starts_fresh(before, after):
    old, new = optimizer_over([(2,)], before, lr=0.1), optimizer_over([(2,)], after, lr=0.2)
    matched = match_state(new, stepped(old), names(old, "a"), names(new, "a"))
    assert matched.kept == []
    new.load_state_dict(matched.state)
    stepped(new)
    assert new.param_groups[0]["lr"] == 0.2


def test_one_history_for_all_is_kept_whole_or_not_at_all():
    old, new = optimizer_over([(2,), (3,)], torch.optim.LBFGS), optimizer_over([(2,), (4,)], torch.optim.LBFGS)
    saved = old.state_dict()
    saved["state"] = {0: {"al": [1.0] * 5}}
    matched = match_state(new, saved, names(old, "a", "b"), names(new, "a", "c"))
    assert (matched.kept, matched.state["state"]) == ([], {})


MADE = {
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 20),
    "lambda": lambda o: schedules.LambdaLR(o, lambda step: 0.9**step),
    "one cycle": lambda o: schedules.OneCycleLR(o, max_lr=0.1, total_steps=40),
    "restarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 5),
    "warm-up": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, total_iters=9), schedules.CosineAnnealingLR(o, 20)], [9]
    ),
    "after warm-up": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, total_iters=3), schedules.CosineAnnealingLR(o, 20)], [3]
    ),
    "chained": lambda o: schedules.ChainedScheduler(
        [schedules.ConstantLR(o, 0.5, 4), schedules.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "multiplicative": lambda o: schedules.MultiplicativeLR(o, lambda step: 0.95),
}


@pytest.mark.parametrize("name", MADE)
def test_a_schedule_goes_on_where_it_was(name):
    """With the same settings, a fresh optimizer sees the rates that the old one would have seen."""
    old = optimizer_over([(2,)], torch.optim.SGD, lr=0.1)
    schedule = MADE[name](old)
    for _ in range(7):
        old.step()
        schedule.step()
    new = optimizer_over([(2,), (3,)], torch.optim.SGD, lr=0.1)
    again = MADE[name](new)
    continue_schedule(again, schedule.state_dict(), 0.1)
    for _ in range(8):
        assert new.param_groups[0]["lr"] == pytest.approx(old.param_groups[0]["lr"], rel=1e-6)
        for optimizer, one in ((old, schedule), (new, again)):
            optimizer.step()
            one.step()


def test_settings_are_the_new_ones():
    old, new = (optimizer_over([(2,)], torch.optim.SGD, lr=0.1) for _ in range(2))
    schedule, longer = schedules.OneCycleLR(old, 0.1, total_steps=8), schedules.OneCycleLR(new, 0.2, total_steps=40)
    for _ in range(6):
        old.step()
        schedule.step()
    continue_schedule(longer, schedule.state_dict(), 0.1)
    for _ in range(33):
        new.step()
        longer.step()
    other = schedules.CosineAnnealingLR(optimizer_over([(2,)], torch.optim.SGD, lr=0.1), 100)
    continue_schedule(other, schedules.CosineAnnealingLR(old, 6).state_dict() | {"last_epoch": 6}, 0.1)
    assert other.get_last_lr()[0] == pytest.approx(0.05 * (1 + math.cos(math.pi * 6 / 100)))


def test_a_plateau_keeps_its_reductions():
    old = optimizer_over([(2,)], torch.optim.SGD, lr=0.1)
    schedule = schedules.ReduceLROnPlateau(old, factor=0.1, patience=0)
    for value in (1.0, 1.0, 1.0):
        schedule.step(value)
    new = optimizer_over([(2,)], torch.optim.SGD, lr=0.5)
    again = schedules.ReduceLROnPlateau(new, factor=0.1, patience=0)
    continue_schedule(again, schedule.state_dict(), 0.1)
    assert new.param_groups[0]["lr"] == pytest.approx(0.5 * old.param_groups[0]["lr"] / 0.1)
    assert again.best == schedule.best


def test_a_finished_run_that_is_saved_again_keeps_its_schedule(tmp_path):
    train(tmp_path, Universal("r16"), epochs=2)
    before = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for name in ("r16", "r32"):
        runner = train(tmp_path / name, Universal(name), epochs=2, ckpt_path=tmp_path / "last.ckpt")
        after = torch.load(tmp_path / name / "last.ckpt", weights_only=True)
        assert after["lr_schedulers"][0]["last_epoch"] == before["lr_schedulers"][0]["last_epoch"] == 10
        assert after["lr_schedulers"][0]["_last_lr"] == pytest.approx(before["lr_schedulers"][0]["_last_lr"])
        assert [type(callback).__name__ for callback in runner.callbacks] == []


@pytest.mark.parametrize("target", ["r16", "r32"])
def test_a_copy_of_a_bound_module_saves_its_own_state(tmp_path, target):
    """Folds of a cross-validation: the callback has seen the module before it was copied."""
    module, callbacks = Plain("r16"), [UniversalCheckpointCallback()]
    trainer(tmp_path, callbacks=callbacks).validate(module, batches(), verbose=False)
    fold = copy.deepcopy(module)
    train(tmp_path, fold, epochs=1, callbacks=callbacks)
    resumed, seen = Plain(target), []
    resumed.on_train_start = lambda: seen.append(logits(resumed.model))
    train(tmp_path / "next", resumed, epochs=2, ckpt_path=tmp_path / "last.ckpt", callbacks=callbacks)
    torch.testing.assert_close(seen[0], logits(fold.model), rtol=0, atol=2e-5)
    torch.save(fold, tmp_path / "module.pt")


@pytest.mark.parametrize("target", ["standard", "r16", "r32"])
def test_stochastic_weight_averaging(tmp_path, target):
    def averaging():
        return StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1, device=None)

    train(tmp_path, Universal("r16"), epochs=2, callbacks=[averaging()])
    module = Universal(target)
    train(tmp_path / "next", module, epochs=3, ckpt_path=tmp_path / "last.ckpt", callbacks=[averaging()])
    assert len(module.losses) == 5
