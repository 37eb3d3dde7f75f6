"""Checkpoints in the middle of an epoch go on bit by bit: the same shuffle, no batch twice, none left out."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from lit_wsl.errors import ConfigError, DataError
from lit_wsl.models.lora import LoraSpec
from lit_wsl.training.classification import SequenceClassificationModule
from lit_wsl.training.resumable import resumable_loader
from lit_wsl.training.text import TextClassificationData
from tests.training.build import Universal, trainer


def loader(rows=10, **options):
    return resumable_loader(torch.arange(rows), batch_size=2, shuffle=True, **options)


def lists(batches):
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("used", [0, 1, 3, 5])
def test_another_loader_goes_on(used, workers):
    torch.manual_seed(1)
    first = loader(num_workers=workers)
    epoch = lists(first)
    running = iter(first)
    second = [next(running).tolist() for _ in range(used)]
    state = first.state_dict()
    second += lists(running)
    third = lists(first)
    torch.manual_seed(2)
    again = loader(num_workers=workers)
    again.load_state_dict(state)
    if used < 5:
        if used:
            assert lists(again) == second[used:]
        else:
            assert lists(again) == second
    assert lists(again) == third
    assert sorted(sum(epoch, [])) == list(range(10))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    lists(loader())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("settings", [{"max_epochs": 2}, {"max_steps": 10, "max_epochs": -1}], ids=["epochs", "steps"])
@pytest.mark.parametrize("step", [2, 5, 7, 9])
def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path, step, settings):
    def data():
        return resumable_loader((torch.arange(10 * 8).reshape(10, 8) * 5) % 256, batch_size=2, shuffle=True)

    torch.manual_seed(3)
    whole = Universal("r16")
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, callbacks=[every], enable_checkpointing=True, **settings).fit(whole, data())
    torch.manual_seed(99)
    resumed = Universal("r16")
    trainer(tmp_path, **settings).fit(resumed, data(), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert resumed.losses == whole.losses[step:]
    assert all(torch.equal(t, resumed.state_dict()[k]) for k, t in whole.state_dict().items())


@pytest.mark.parametrize("step", [2, 6, 8])
def test_the_text_task_goes_on_too(bert_dir, opinions, tmp_path, step):
    def pair():
        data = TextClassificationData(str(bert_dir), task=str(opinions), batch_size=8)
        lora = LoraSpec(rank=2, dropout=0.2)
        return SequenceClassificationModule(str(bert_dir), lora, labels=data.labels, prompts=data.prompts), data

    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, data = pair()
    trainer(tmp_path, max_epochs=2, callbacks=[every], enable_checkpointing=True).fit(whole, data)
    torch.manual_seed(99)
    resumed, data = pair()
    trainer(tmp_path, max_epochs=2).fit(resumed, data, ckpt_path=tmp_path / f"step={step}.ckpt")
    assert all(torch.equal(t, resumed.state_dict()[k]) for k, t in whole.state_dict().items())


@pytest.mark.parametrize("limit", [None, 3])
def test_a_run_goes_on_at_the_end_of_an_epoch(tmp_path, limit):
    """Lightning hands the state to loaders in the middle of an epoch only."""

    def data():
        return resumable_loader((torch.arange(10 * 8).reshape(10, 8) * 5) % 256, batch_size=2, shuffle=True)

    settings = {"max_epochs": 3} | ({"limit_train_batches": limit} if limit else {})
    torch.manual_seed(3)
    whole = Universal("r16")
    every = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(tmp_path, callbacks=[every], enable_checkpointing=True, **settings).fit(whole, data())
    torch.manual_seed(99)
    resumed = Universal("r16")
    trainer(tmp_path, **settings).fit(resumed, data(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert resumed.losses == whole.losses[-len(resumed.losses) :]
    assert all(torch.equal(t, resumed.state_dict()[k]) for k, t in whole.state_dict().items())


def test_other_batches_in_the_middle_of_an_epoch_are_refused():
    first = loader()
    next(iter(first))
    state = first.state_dict()
    for other in (loader(rows=12), resumable_loader(torch.arange(10), batch_size=5, shuffle=True)):
        with pytest.raises(DataError, match="in the middle of an epoch of 10 examples in batches of 2"):
            other.load_state_dict(state)
    resumable_loader(torch.arange(10), batch_size=5).load_state_dict({**state, "finished": True})


def test_a_batch_whose_step_failed_is_not_lost(tmp_path):
    class Fails(Universal):
        seen = ()

        def training_step(self, batch, index):
            if len(self.losses) == 3 and not self.seen:
                self.seen = batch.tolist()
                raise ValueError("no luck")
            return super().training_step(batch, index)

    def data():
        return resumable_loader((torch.arange(10 * 8).reshape(10, 8) * 5) % 256, batch_size=2, shuffle=True)

    module = Fails("r16")
    keep = OnExceptionCheckpoint(tmp_path, "failed")
    with pytest.raises(ValueError, match="no luck"):
        trainer(tmp_path, max_epochs=1, callbacks=[keep], enable_checkpointing=True).fit(module, data())
    resumed, batches = Universal("r16"), []
    resumed.on_train_batch_start = lambda batch, _: batches.append(batch.tolist())
    trainer(tmp_path, max_epochs=1).fit(resumed, data(), ckpt_path=tmp_path / "failed.ckpt")
    assert batches[0] == module.seen
    assert len(batches) == 2


def test_a_sampler_needs_a_generator_of_its_own():
    with pytest.raises(ConfigError, match="RandomSampler without a generator"):
        resumable_loader(range(4), sampler=torch.utils.data.RandomSampler(range(4)))


def test_persistent_workers(tmp_path):
    first = loader(num_workers=1, persistent_workers=True)
    lists(first)
    running = iter(first)
    second = [next(running).tolist() for _ in range(2)]
    state = first.state_dict()
    second += lists(running)
    again = loader(num_workers=1, persistent_workers=True)
    again.load_state_dict(state)
    assert lists(again) == second[2:]
