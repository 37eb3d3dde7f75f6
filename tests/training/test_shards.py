import pickle

import pytest
import torch
from torch.distributed import checkpoint as dcp

from lit_wsl.errors import CheckpointError
from lit_wsl.models.universal.sidecar import SIDECAR_KEY, VERSION
from lit_wsl.training.shard_index import check_runs_no_code
from lit_wsl.training.shards import read_shards

RAN = []


class Evil:
    def __reduce__(self):
        return RAN.append, (1,)


@pytest.fixture
def shards(tmp_path):
    """A sharded checkpoint of one process."""
    path = tmp_path / "last.ckpt"
    values = {"state_dict": {"a": torch.arange(300.0).bfloat16()}, "optimizer_0": {"betas": (0.9, 0.99), "lr": None}}
    dcp.save(values, checkpoint_id=path, no_dist=True)
    torch.save({"epoch": 1}, path / "meta.pt")
    return path


def test_tensors_are_read_whole(shards):
    found = read_shards(shards)
    assert (found["epoch"], found["optimizer_states"]) == (1, [])
    torch.testing.assert_close(found["state_dict"], {"a": torch.arange(300.0).bfloat16()})
    check_runs_no_code(shards)


def test_an_index_runs_no_code(shards):
    (shards / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match=r"\.metadata would run code"):
        read_shards(shards)
    assert not RAN


def test_a_value_of_an_optimizer_runs_no_code(shards):
    dcp.save({"optimizer_0": {"betas": Evil()}}, checkpoint_id=shards, no_dist=True)
    with pytest.raises(CheckpointError, match=r"'optimizer_0.betas' is damaged or would run code"):
        check_runs_no_code(shards)
    assert not RAN


def test_a_shard_outside_of_the_directory_is_not_read(shards):
    index = pickle.loads((shards / ".metadata").read_bytes())
    for info in index.storage_data.values():
        info.relative_path = "../other.distcp"
    (shards / ".metadata").write_bytes(pickle.dumps(index))
    (shards.parent / "other.distcp").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"has no file '../other.distcp'"):
        read_shards(shards)


@pytest.mark.parametrize(
    ("name", "kept", "message"),
    [
        (".metadata", 0.5, "is damaged"),
        (".metadata", None, "cannot be read"),
        ("__0_0.distcp", 0.5, "its shards cannot be read"),
        ("__0_0.distcp", None, "has no file '__0_0.distcp'"),
    ],
)
def test_damage_is_one_line(shards, name, kept, message):
    file = shards / name
    content = file.read_bytes()
    file.unlink()
    if kept is not None:
        file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=message) as caught:
        read_shards(shards)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("optimizers", ["{", "[1]", '[{"names": 1, "other": 2}]'])
def test_a_damaged_side_car_is_told(shards, optimizers):
    side_car = {"version": VERSION, "sidecar": "none", "layers": {}, "optimizers": optimizers}
    torch.save({SIDECAR_KEY: side_car}, shards / "meta.pt")
    with pytest.raises(CheckpointError, match="side-car is damaged"):
        read_shards(shards)
