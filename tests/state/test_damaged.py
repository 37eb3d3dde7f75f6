"""What can be read of a damaged checkpoint, and why the rest cannot."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lit_wsl.errors import CheckpointError
from lit_wsl.state.damaged import open_readable
from lit_wsl.state.reader import open_state

INDEX = "model.safetensors.index.json"


def tensors(numbers):
    return {f"layers.{n}.weight": torch.full((4, 8), float(n)) for n in numbers}


@pytest.fixture
def sharded(tmp_path):
    """Six tensors in three shards, two in each."""
    homes = {}
    for at in range(3):
        file = f"model-0000{at + 1}-of-00003.safetensors"
        save_file(tensors((2 * at, 2 * at + 1)), tmp_path / file)
        homes |= dict.fromkeys(tensors((2 * at, 2 * at + 1)), file)
    write_index(tmp_path, homes)
    return tmp_path


def write_index(directory, homes):
    (directory / INDEX).write_text(json.dumps({"weight_map": homes}))


def homes_of(directory):
    return json.loads((directory / INDEX).read_text())["weight_map"]


def shard(directory, number):
    return directory / f"model-0000{number}-of-00003.safetensors"


def rewrite_header(path, change):
    """Change the header of a safetensors file, and nothing else."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def check(source, lost, words):
    """Exactly the lost tensors have a reason, which holds the words; the others are whole."""
    reader, damaged = open_readable(source)
    names = set(tensors(range(6)))
    lost = {f"layers.{n}.weight" for n in lost}
    assert set(damaged) == lost
    assert set(reader.keys()) == names - lost
    assert all(words in reason for reason in damaged.values()), damaged
    for name in reader.keys():
        assert (reader.read(name) == float(name.split(".")[1])).all()


def test_a_whole_checkpoint_has_nothing_damaged(sharded):
    check(sharded, [], "")
    check(sharded / INDEX, [], "")


@pytest.mark.parametrize("spec", ["", INDEX])
def test_a_truncated_shard_loses_the_tensors_behind_the_cut(sharded, spec):
    file = shard(sharded, 2)
    file.write_bytes(file.read_bytes()[:-8])
    check(sharded / spec, [3], "truncated")


@pytest.mark.parametrize("size", [0, 5, 40])
def test_a_shard_without_a_header_loses_all_of_its_tensors(sharded, size):
    file = shard(sharded, 2)
    file.write_bytes(file.read_bytes()[:size])
    check(sharded, [2, 3], file.name)


def test_a_missing_shard(sharded):
    shard(sharded, 3).unlink()
    check(sharded, [4, 5], "is missing")


@pytest.mark.parametrize("file", ["../elsewhere.safetensors", "/etc/passwd"])
def test_a_shard_outside_the_directory_is_not_opened(sharded, file):
    save_file(tensors([5]), sharded.parent / "elsewhere.safetensors")
    write_index(sharded, homes_of(sharded) | {"layers.4.weight": file})
    reader, damaged = open_readable(sharded)
    assert set(damaged) == {"layers.4.weight"}
    assert "outside its own directory" in damaged["layers.4.weight"]
    assert len(reader.keys()) == 6


def test_a_tensor_that_only_the_index_names(sharded):
    write_index(sharded, homes_of(sharded) | {"layers.9.weight": shard(sharded, 1).name})
    reader, damaged = open_readable(sharded)
    assert damaged == {"layers.9.weight": f"{shard(sharded, 1).name} lacks it, although the index names it"}
    assert len(reader.keys()) == 6


def test_an_unknown_dtype(sharded):
    rewrite_header(shard(sharded, 1), lambda header: header["layers.1.weight"].update(dtype="F4_FUTURE"))
    check(sharded, [1], "unknown dtype 'F4_FUTURE'")


@pytest.mark.parametrize(
    "change",
    [{"shape": [4, 9]}, {"shape": "4"}, {"data_offsets": [0]}, {"data_offsets": [10**9, 10**9 + 128]}],
    ids=str,
)
def test_an_entry_that_lies(sharded, change):
    rewrite_header(shard(sharded, 1), lambda header: header["layers.1.weight"].update(change))
    check(sharded, [1], "layers.1.weight")


def test_a_damaged_shard_does_not_spare_the_next_one_its_checks(sharded):
    """Overlapping tensors of the second shard are lost, whatever became of the first."""
    shard(sharded, 1).write_bytes(shard(sharded, 1).read_bytes()[:-8])
    rewrite_header(shard(sharded, 2), lambda header: header["layers.3.weight"].update(data_offsets=[64, 192]))
    _, damaged = open_readable(sharded)
    assert set(damaged) == {"layers.1.weight", "layers.2.weight", "layers.3.weight"}
    assert "overlaps" in damaged["layers.3.weight"]


def test_several_faults_at_once(sharded):
    shard(sharded, 1).write_bytes(shard(sharded, 1).read_bytes()[:-8])
    shard(sharded, 3).unlink()
    check(sharded, [1, 4, 5], "")


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors"])
@pytest.mark.parametrize("is_named", [True, False])
def test_a_truncated_single_file(tmp_path, name, is_named):
    save_file(tensors(range(6)), tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-200])
    check(tmp_path / name if is_named else tmp_path, [4, 5], "truncated")


def test_only_the_file_that_a_reader_would_open_is_looked_at(tmp_path):
    save_file(tensors(range(6)), tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-8])
    save_file({"other": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    check(tmp_path, [5], "truncated")


def test_a_reader_that_cannot_choose_a_file_is_not_helped_to_one(tmp_path):
    save_file(tensors([0]), tmp_path / "a.safetensors")
    torch.save(tensors([1]), tmp_path / "b.pt")
    for read in (open_state, open_readable):
        with pytest.raises(CheckpointError, match="2 weight files but no index"):
            read(tmp_path)


def nothing(directory):
    pass


def text(directory):
    (directory / "model.safetensors").write_text("not found")


def empty(directory):
    (directory / "model.safetensors").write_bytes(b"")


def first_tensor(directory):
    save_file(tensors([0]), directory / "model.safetensors")
    (directory / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes()[:-8])


def torch_file(directory):
    torch.save(tensors([0]), directory / "pytorch_model.bin")
    (directory / "pytorch_model.bin").write_bytes((directory / "pytorch_model.bin").read_bytes()[:-80])


def torch_shard(directory):
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "a.bin"}}))
    (directory / "a.bin").write_bytes(b"PK\x03\x04")


@pytest.mark.parametrize("make", [nothing, text, empty, first_tensor, torch_file, torch_shard])
def test_where_nothing_can_be_read_the_plain_error_is_raised(tmp_path, make):
    make(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        open_readable(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError):
        open_readable(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", "3", '{"weight_map": [1]}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}', "[" * 100_000],
    ids=["empty", "open", "list", "object", "number", "listed", "numbered", "nobody", "deep"],
)
def test_an_index_that_is_none(tmp_path, content):
    save_file(tensors([0]), tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=INDEX):
        open_readable(tmp_path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "pipe"])
def test_an_index_that_is_no_file(tmp_path, make):
    make(tmp_path / INDEX)
    for opened in (open_readable, open_state):
        with pytest.raises(CheckpointError, match="is no regular file"):
            opened(tmp_path)
