"""Merges that several processes of one launch share: the bytes of one process, whatever their number."""

import errno
import hashlib
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.merging import merge
from lit_wsl.merging.ranks import Ranks
from lit_wsl.state.reader import TensorInfo
from tests.merging.build import random_states, save_adapter, save_bert

ROOT = Path(__file__).parents[2]
FABRIC = """
import sys
from lightning.fabric import Fabric
import lit_wsl
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
base, out, *tuned = sys.argv[1:]
report = lit_wsl.merge(models=tuned, base=base, method="ties", output=out, distributed=True)
print(fabric.global_rank, len(report.merged))
"""


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).glob("*.safetensors*")}


def launch(processes, arguments):
    """Run `lit-wsl` as torchrun does; returns exit codes and what each process told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    local = {"LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lit_wsl", *map(str, arguments)]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **common, **local, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(processes)
    ]
    told = [process.communicate(timeout=240) for process in started]
    return [process.returncode for process in started], told


@pytest.mark.parametrize("more", [["--shard_size", "1KB"], ["--output_format", "delta"], []], ids=str)
@pytest.mark.parametrize("method", ["uniform", "ties"])
def test_two_processes_write_the_bytes_of_one(tmp_path, method, more):
    base, *tuned = random_states(tmp_path, 2)
    argv = ["merge", "--models", *tuned, "--base", base, "--method", method, *more]
    codes, told = launch(2, [*argv, "--output", tmp_path / "two"])
    assert codes == [0, 0], told
    assert told[0][0].count("parameters merged") == 1
    assert told[1][0] == ""
    launch(1, [*argv, "--output", tmp_path / "one"])
    assert digests(tmp_path / "two") == digests(tmp_path / "one") != {}
    assert not list(tmp_path.glob("two.*"))


def test_two_processes_share_an_adapter(tmp_path):
    save_bert(tmp_path / "base")
    for seed in (1, 2):
        save_adapter(tmp_path / "base", tmp_path / f"t{seed}", seed, bias="none")
    argv = ["merge", "--adapters", tmp_path / "t1", tmp_path / "t2", "--method", "ties", "--rank", "3"]
    codes, told = launch(2, [*argv, "--output", tmp_path / "two", "--verify", "true"])
    assert codes == [0, 0], told
    merge(adapters=[tmp_path / "t1", tmp_path / "t2"], method="ties", rank=3, output=tmp_path / "one")
    assert digests(tmp_path / "two") == digests(tmp_path / "one") != {}


def test_a_process_of_fabric_shares_a_merge(tmp_path):
    base, *tuned = random_states(tmp_path, 2)
    script = tmp_path / "script.py"
    script.write_text(FABRIC)
    command = [sys.executable, script, base, tmp_path / "two", *tuned]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    merge(models=tuned, base=base, method="ties", output=tmp_path / "one")
    assert digests(tmp_path / "two") == digests(tmp_path / "one") != {}


def test_a_fault_of_one_process_ends_all_and_leaves_nothing(tmp_path):
    base, good, bad = random_states(tmp_path, 2)
    state = load_file(bad)
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_file(state, bad)
    codes, told = launch(
        2, ["merge", "--models", good, bad, "--base", base, "--method", "ties", "--output", tmp_path / "o"]
    )
    assert codes == [1, 1], told
    assert any("NaN" in errors for _, errors in told)
    assert all(errors.count("\n") == 1 for _, errors in told), told
    assert not list(tmp_path.glob("o*"))


def test_alone_there_is_no_launch(tmp_path):
    base, *tuned = random_states(tmp_path, 2)
    with pytest.raises(ConfigError, match="torchrun"):
        merge(models=tuned, base=base, output=tmp_path / "out", distributed=True)


def test_shares_are_whole_files_of_about_one_size():
    infos = {f"t{n}": TensorInfo((n + 1,), torch.float32) for n in range(6)}
    shards = [["t0", "t1"], ["t2"], ["t3"], ["t4", "t5"]]
    shares = [Ranks(rank, 2).share(shards, infos) for rank in range(2)]
    assert shares[0] | shares[1] == infos.keys()
    assert not shares[0] & shares[1]
    assert all(set(shard) <= share or not set(shard) & share for shard in shards for share in shares)
    single = [Ranks(rank, 2).share([list(infos)], infos) for rank in range(2)]
    loads = [sum(infos[name].nbytes for name in share) for share in single]
    assert abs(loads[0] - loads[1]) <= 8


def test_the_others_hear_of_an_output_that_cannot_be_published(tmp_path, monkeypatch):
    base, *tuned = random_states(tmp_path, 2)
    heard = []

    class Leading(Ranks):
        def collected(self, value):
            heard.append(value)
            return [value]

    @contextmanager
    def launched(*, distributed):
        yield Leading()

    def refuse(*paths):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("lit_wsl.merging.run.launched_ranks", launched)
    monkeypatch.setattr("lit_wsl.state.publish._swap", refuse)
    with pytest.raises(CheckpointError, match="could not be written"):
        merge(models=tuned, base=base, method="linear", output=tmp_path / "out")
    assert "could not be written" in heard[-1]
