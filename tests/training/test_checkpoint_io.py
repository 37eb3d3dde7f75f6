"""Checkpoint files survive a kill at any moment, and never run code."""

import datetime
import errno
import multiprocessing
import os
import pickle
import shutil
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_wsl.errors import CheckpointError
from lit_wsl.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from tests.training.build import Plain, Universal, batches, train, trainer


def save_forever(path, progress):
    """Save checkpoints whose every value is the number of the save."""
    step = 0
    while True:
        step += 1
        state = {"w": torch.full((400_000,), step)}
        content = {"pytorch-lightning_version": "2.6.0", "global_step": step, "state_dict": state}
        AtomicCheckpointIO().save_checkpoint(content, path)
        progress.value = step


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    path, context = tmp_path / "last.ckpt", multiprocessing.get_context("fork")
    chance = torch.Generator().manual_seed(5)
    for _ in range(20):
        progress = context.Value("q", 0)
        process = context.Process(target=save_forever, args=(path, progress))
        process.start()
        while not progress.value:
            time.sleep(0.001)
        time.sleep(0.05 * torch.rand((), generator=chance).item())
        process.kill()
        process.join()
        content = read_checkpoint(path)
        assert progress.value <= content["global_step"] <= progress.value + 1
        assert (content["state_dict"]["w"] == content["global_step"]).all()


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"pytorch-lightning_version": "2.6.0", "state_dict": {"w": torch.ones(3)}}, path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def failing(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    def left(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=free))

    full_disk, other = "disk is full: .* bytes are free", "unexpected pos 64 vs 0"
    for function, free, reason in ((full, 2**40, full_disk), (failing, 100, full_disk), (failing, 2**40, other)):
        monkeypatch.setattr(torch, "save", function)
        left(free)
        with pytest.raises(CheckpointError, match=f"last.ckpt could not be written .*{reason}.*is untouched") as caught:
            io.save_checkpoint({"state_dict": {}}, path)
        assert "\n" not in str(caught.value)
        with pytest.raises(CheckpointError, match=f"new.ckpt could not be written .*{reason}") as caught:
            io.save_checkpoint({"state_dict": {}}, tmp_path / "new.ckpt")
        assert "untouched" not in str(caught.value)
    assert torch.equal(read_checkpoint(path)["state_dict"]["w"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_file_is_synced_before_it_replaces_the_other(tmp_path, monkeypatch):
    calls = []
    synced, replaced = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("sync"), synced(fd)))
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("replace"), replaced(*a)))
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "a.ckpt")
    assert calls == ["sync", "replace", "sync"]


class Malicious:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_a_malicious_pickle_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps({"state_dict": Malicious()}))
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0", "x": Malicious()}, tmp_path / "worse.ckpt")
    for name in ("bad.ckpt", "worse.ckpt"):
        with pytest.raises(CheckpointError, match="would run code|cannot be read") as caught:
            trainer(tmp_path, max_epochs=1).fit(Universal("r16"), batches(), ckpt_path=tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


def test_a_trusted_file_may_hold_anything(tmp_path):
    torch.save(
        {"state_dict": {}, "pytorch-lightning_version": "2.6.0", "kept": {1, 2}, "f": Plain}, tmp_path / "a.ckpt"
    )
    content = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert content["f"] is Plain


def test_a_refusal_names_the_way_out_for_a_trusted_file(tmp_path):
    runner = train(tmp_path, Universal("r16"), epochs=1)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    content["callbacks"]["Mine"] = {"when": datetime.datetime(2026, 1, 2), "best": np.float64(0.5)}  # noqa: DTZ001
    torch.save(content, tmp_path / "mine.ckpt")
    more = {"ckpt_path": tmp_path / "mine.ckpt"}
    with pytest.raises(
        CheckpointError, match=r"would run code.*`trainer\.fit\(\.\.\., weights_only=False\)`"
    ) as caught:
        trainer(tmp_path, max_epochs=2).fit(Universal("r16"), batches(), **more)
    assert "\n" not in str(caught.value)
    again = trainer(tmp_path, max_epochs=2)
    again.fit(Universal("r16"), batches(), weights_only=False, **more)
    assert again.global_step > runner.global_step


def test_a_checkpoint_that_is_not_there_is_called_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"^Checkpoint .*no\.ckpt does not exist; check `ckpt_path`") as caught:
        read_checkpoint(tmp_path / "no.ckpt")
    assert "hub" not in str(caught.value)
    torch.save({"pytorch-lightning_version": "2.6.0", "epoch": 3, "state_dict": {}}, tmp_path / "yes.ckpt")
    assert read_checkpoint(Path("~/yes.ckpt"))["epoch"] == 3


@pytest.mark.parametrize("fault", ["missing", "truncated", "empty"])
def test_damaged_files(tmp_path, fault):
    path = tmp_path / "a.ckpt"
    train(tmp_path, Universal("r16"), epochs=1)
    whole = (tmp_path / "last.ckpt").read_bytes()
    if fault != "missing":
        path.write_bytes(whole[: len(whole) // 2] if fault == "truncated" else b"")
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*(does not exist|cannot be read)") as caught:
        trainer(tmp_path, max_epochs=2).fit(Universal("r16"), batches(), ckpt_path=path)
    assert "\n" not in str(caught.value)


def test_a_plugin_of_the_users_own_stays(tmp_path):
    from lightning.fabric.plugins import TorchCheckpointIO

    class Own(TorchCheckpointIO):
        pass

    runner = train(tmp_path, Universal("r16"), epochs=1, plugins=[Own()])
    assert type(runner.strategy.checkpoint_io) is Own
    runner = train(tmp_path, Universal("r16"), epochs=1)
    assert type(runner.strategy.checkpoint_io) is AtomicCheckpointIO


def test_what_stands_at_the_path_is_kept_for_what_it_is(tmp_path):
    io, content = AtomicCheckpointIO(), {"pytorch-lightning_version": "2.6.0", "state_dict": {"w": torch.ones(2)}}
    (tmp_path / "link.ckpt").symlink_to(tmp_path / "real.ckpt")
    io.save_checkpoint(content, tmp_path / "link.ckpt")
    assert (tmp_path / "link.ckpt").is_symlink()
    assert read_checkpoint(tmp_path / "real.ckpt")["state_dict"]["w"].tolist() == [1, 1]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="no regular file"):
        io.save_checkpoint(content, tmp_path / "pipe")


def test_two_processes_may_write_one_path(tmp_path):
    path, context = tmp_path / "last.ckpt", multiprocessing.get_context("fork")
    progress = [context.Value("q", 0) for _ in range(2)]
    writers = [context.Process(target=save_forever, args=(path, one)) for one in progress]
    for writer in writers:
        writer.start()
    while min(one.value for one in progress) < 1:
        time.sleep(0.001)
    for _ in range(30):
        content = read_checkpoint(path)
        assert (content["state_dict"]["w"] == content["global_step"]).all()
    assert all(writer.is_alive() for writer in writers)
    for writer in writers:
        writer.kill()
        writer.join()
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)
    assert [one.name for one in tmp_path.iterdir()] == ["last.ckpt"]
