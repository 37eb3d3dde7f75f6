"""Early stopping and the best coefficients: rows A7.31 to A7.33."""

from types import SimpleNamespace

import pytest
import torch

from lit_wsl.errors import ConfigError
from lit_wsl.learning.learner import CoefficientLearner, StepRecord
from lit_wsl.learning.stopping import Plateau


class Numbers(CoefficientLearner):
    """A learner without a merge: its one number is the update that it is at."""

    name = "numbers"

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.number, self.latest = 0, None

    def task_loss(self, outputs):
        raise NotImplementedError

    def remember(self):
        return {"number": torch.tensor(self.number)}

    def restore(self, numbers):
        self.number = int(numbers["number"])


def _run(plateau, objectives, *, accumulate=1, first=0, learner=None):
    """Let a callback see objectives, one a micro step; returns where it stopped, and the learner."""
    learner, trainer = learner or Numbers(), SimpleNamespace(global_step=first, should_stop=False)
    for step, objective in enumerate(objectives, start=1):
        plateau.on_train_batch_start(trainer, learner, None, 0)
        learner.latest = StepRecord(objective, {}, torch.zeros(1, 1))
        if step % accumulate == 0:
            trainer.global_step += 1
            learner.number = trainer.global_step
        plateau.on_train_batch_end(trainer, learner, None, None, 0)
        if trainer.should_stop:
            break
    return trainer, learner


def test_patience_counts_updates_without_a_fall_of_the_rolling_mean_a7_31():
    """A7.31: means over two updates 5, 4.5, 4, 4, 4.5, ...: the best at 3, the third update without a fall is 6."""
    trainer, _ = _run(Plateau(window=2, patience=3), [5, 4, 4, 4, 5, 5, 5, 5])
    assert trainer.global_step == 6


def test_a_fall_must_exceed_the_threshold_a7_31():
    falls = [5.0, 4.95, 4.9, 4.85, 4.8, 4.75, 4.7]
    assert _run(Plateau(window=1, patience=2), falls)[0].should_stop is False
    strict, _ = _run(Plateau(window=1, patience=2, threshold=0.2), falls)
    assert strict.global_step == 3


def test_warm_up_and_least_updates_a7_32():
    """A7.32: patience starts behind the warm-up, the best is tracked in it; and nothing ends before so many updates."""
    flat = [1.0] + [2.0] * 30
    assert _run(Plateau(window=1, patience=3), flat)[0].global_step == 4
    late = Plateau(window=1, patience=3, warmup=10)
    assert _run(late, flat)[0].global_step == 13
    assert (late.best, late.best_update) == (1.0, 1)
    assert _run(Plateau(window=1, patience=3, min_updates=20), flat)[0].global_step == 20


def test_the_best_coefficients_are_those_that_the_best_objective_was_taken_at_a7_33():
    plateau = Plateau(window=1, restore_best=True)
    trainer, learner = _run(plateau, [3.0, 1.0, 2.0, 2.0])
    plateau.on_fit_end(trainer, learner)
    assert learner.number == 1, "update 2 had the best objective, before it stepped"
    kept = Plateau(window=1)
    trainer, learner = _run(kept, [3.0, 1.0, 2.0, 2.0])
    kept.on_fit_end(trainer, learner)
    assert learner.number == 4


def test_accumulated_steps_count_as_one_update_of_their_mean_a7_26():
    plateau = Plateau(window=1)
    _run(plateau, [1.0, 3.0, 5.0, 7.0], accumulate=2)
    assert (plateau.best, plateau.best_update) == (2.0, 1)


def test_a_resumed_run_stops_where_the_uninterrupted_one_does_a7_45():
    objectives = [5, 4, 4, 4, 5, 5, 5, 5]
    first = Plateau(window=2, patience=3, restore_best=True)
    _, learner = _run(first, objectives[:4])
    second = Plateau(window=2, patience=3, restore_best=True)
    second.load_state_dict(first.state_dict())
    trainer, learner = _run(second, objectives[4:], first=4, learner=learner)
    assert trainer.global_step == second.stopped_at == 6
    second.on_fit_end(trainer, learner)
    assert learner.number == 2


@pytest.mark.parametrize("fault", [{"window": 0}, {"patience": -1}, {"threshold": -0.1}, {"warmup": -1}])
def test_faults_are_refused_a7_31(fault):
    with pytest.raises(ConfigError):
        Plateau(**fault)
