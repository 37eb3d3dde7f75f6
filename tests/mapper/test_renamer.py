"""Renaming: names change, bytes do not; nothing is lost, and a broken run leaves the old file whole."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.mapper.renamer import WeightRenamer, rename_checkpoint_keys
from lit_wsl.state import open_state
from lit_wsl.state.remap import WeightMap

METADATA = {"format": "pt", "made by": "a test"}


def tensors():
    return {
        "model.enc.weight": torch.randn(4, 3),
        "model.enc.bias": torch.randn(3).bfloat16(),
        "model_ema.weight": torch.randn(2, 2),
        "head.weight": torch.arange(5),
        "head.scale": torch.tensor(2.5),
        "head.empty": torch.empty(0, 3),
    }


def same(one, other):
    assert set(one) == set(other)
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert torch.equal(one[name], other[name]), name


@pytest.fixture
def file(tmp_path):
    save_file(tensors(), tmp_path / "a.safetensors", METADATA)
    return tmp_path / "a.safetensors"


def write_sharded(folder, suffix="safetensors"):
    """Two shards, an index, a configuration."""
    folder.mkdir()
    state, weight_map = tensors(), {}
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    for number, names in enumerate((list(state)[:2], list(state)[2:]), start=1):
        shard = f"{stem}-{number:05d}-of-00002.{suffix}"
        part = {name: state[name] for name in names}
        if suffix == "safetensors":
            save_file(part, folder / shard, METADATA | {"number": str(number)})
        else:
            torch.save(part, folder / shard)
        weight_map.update(dict.fromkeys(names, shard))
    index = {"metadata": {"total_size": 1, "note": "kept"}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def sharded(tmp_path):
    return write_sharded(tmp_path / "sharded")


def read_all(path):
    reader = open_state(path)
    return {name: reader.read(name).clone() for name in reader.keys()}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_names_change_and_bytes_do_not(file, tmp_path):
    before = load_file(file)
    content = file.read_bytes()
    renamer = WeightRenamer(file).rename_keys({"head.weight": "classifier.weight"})
    assert renamer.save(tmp_path / "b.safetensors") == tmp_path / "b.safetensors"
    assert file.read_bytes() == content
    before["classifier.weight"] = before.pop("head.weight")
    same(load_file(tmp_path / "b.safetensors"), before)
    with safe_open(tmp_path / "b.safetensors", "pt") as written:
        assert written.metadata() == METADATA
    assert names_in(tmp_path) == ["a.safetensors", "b.safetensors"]


def test_there_and_back_gives_the_same_file(file, tmp_path):
    one = rename_checkpoint_keys(file, tmp_path / "1.safetensors")
    two = rename_checkpoint_keys(one, tmp_path / "2.safetensors", add_prefix="net.")
    three = rename_checkpoint_keys(two, tmp_path / "3.safetensors", remove_prefix="net.")
    assert three.read_bytes() == one.read_bytes() != two.read_bytes()


def test_prefix_laws(file):
    names = WeightRenamer(file).list_keys()
    assert WeightRenamer(file).add_prefix("x.").remove_prefix("x.").list_keys() == names
    removed = WeightRenamer(file).remove_prefix("model.")
    assert removed.renamed == {"model.enc.weight": "enc.weight", "model.enc.bias": "enc.bias"}
    assert "model_ema.weight" in removed.list_keys()
    moved = WeightRenamer(file).rename_with_prefix("model.enc.", "decoder.")
    assert moved.renamed == {"model.enc.weight": "decoder.weight", "model.enc.bias": "decoder.bias"}
    with pytest.raises(CheckpointError, match=r"no name begins with 'modle\.'\. Did you mean 'model\.'"):
        WeightRenamer(file).remove_prefix("modle.")
    with pytest.raises(ConfigError, match=r"write 'net\.'"):
        moved.add_prefix("net")


def test_names_change_places(file):
    swap = {"head.weight": "model_ema.weight", "model_ema.weight": "head.weight"}
    state = WeightRenamer(file).rename_keys(swap).state_dict
    assert torch.equal(state["model_ema.weight"], torch.arange(5))


def test_names_with_one_end_stay_apart(file):
    renamer = WeightRenamer(file).rename_keys({"head.weight": "weight"})
    assert renamer.renamed == {"head.weight": "weight"}
    assert {"model.enc.weight", "model_ema.weight"} <= set(renamer.list_keys())


@pytest.mark.parametrize(
    "mapping",
    [
        {"head.weight": "head.scale"},
        {"head.weight": "x", "head.scale": "x"},
        {"model.enc.weight": "weight", "head.weight": "weight"},
    ],
)
def test_collisions_are_refused(file, mapping):
    renamer = WeightRenamer(file)
    names = renamer.list_keys()
    with pytest.raises(CheckpointError, match="would both be named"):
        renamer.rename_keys(mapping)
    assert renamer.list_keys() == names


def test_a_prefix_that_makes_a_collision(tmp_path):
    save_file({"a.w": torch.ones(1), "w": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"'w'"):
        WeightRenamer(tmp_path / "a.safetensors").remove_prefix("a.")


def test_names_that_do_not_exist_list_the_nearest(file):
    with pytest.raises(CheckpointError, match=r"lacks key 'head\.weigt'\. Did you mean 'head\.weight'"):
        WeightRenamer(file).rename_keys({"head.weigt": "x"})
    with pytest.raises(CheckpointError, match=r"2 of 3 keys, first 'qqq'\. It has 6, such as"):
        WeightRenamer(file).rename_keys({"qqq": "x", "zzz": "y", "head.weight": "z"})


@pytest.mark.parametrize("new", ["", ".x", "x.", "a..b", "__metadata__", 3])
def test_what_is_no_name_is_refused(file, new):
    with pytest.raises(ConfigError, match=r"head\.weight"):
        WeightRenamer(file).rename_keys({"head.weight": new})


def test_unmapped_tensors_are_left_out_on_request_only(file, tmp_path):
    kept = WeightRenamer(file).rename_keys({"head.weight": "w"}, preserve_unmapped=False)
    assert kept.list_keys() == ["w"]
    assert len(kept.dropped) == 5
    kept.save(tmp_path / "b.safetensors")
    same(load_file(tmp_path / "b.safetensors"), {"w": torch.arange(5)})
    with pytest.raises(CheckpointError, match="no tensor would be left"):
        WeightRenamer(file).rename_keys({}, preserve_unmapped=False)
    assert WeightRenamer(file).rename_keys({}).renamed == {}


def test_search(file):
    renamer = WeightRenamer(file)
    assert renamer.search_keys(r"^head\.") == [n for n in renamer.list_keys() if n.startswith("head.")]
    assert set(renamer.search_keys("*.bias")) == {"model.enc.bias"}
    assert renamer.search_keys("nothing") == []
    with pytest.raises(ConfigError, match="no regular expression"):
        renamer.search_keys("(")


def test_the_state_dict_loads_into_a_model(tmp_path):
    model = torch.nn.Linear(3, 2)
    save_file({f"net.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "a.safetensors")
    other = torch.nn.Linear(3, 2)
    other.load_state_dict(WeightRenamer(tmp_path / "a.safetensors").remove_prefix("net.").state_dict)
    same(other.state_dict(), model.state_dict())


def test_in_place_with_a_backup(file):
    content, before = file.read_bytes(), load_file(file)
    file.chmod(0o640)
    renamer = WeightRenamer(file).rename_keys({"head.weight": "w"}, backup=True)
    renamer.save()
    assert file.stat().st_mode & 0o777 == 0o640
    assert "w" in load_file(file)
    assert renamer.renamed == {}, "the renamer goes on with the new file"
    with pytest.raises(CheckpointError, match="holds an earlier state"):
        renamer.rename_keys({"w": "v"}, backup=True)
    assert set(WeightRenamer(file).restore_backup().list_keys()) == set(before)
    assert file.read_bytes() == content
    assert names_in(file.parent) == ["a.safetensors"]
    with pytest.raises(CheckpointError, match="has no backup"):
        WeightRenamer(file).restore_backup()


def test_a_backup_before_saving_is_of_names(file):
    renamer = WeightRenamer(file)
    names = renamer.list_keys()
    renamer.rename_keys({"head.weight": "w"}, preserve_unmapped=False, backup=True)
    assert renamer.restore_backup().list_keys() == names


def test_shards_stay_shards(sharded, tmp_path):
    before = read_all(sharded)
    WeightRenamer(sharded).add_prefix("net.").save(tmp_path / "out")
    same(read_all(tmp_path / "out"), {f"net.{name}": tensor for name, tensor in before.items()})
    assert set(names_in(sharded)) <= set(names_in(tmp_path / "out"))
    old, new = (json.loads((d / "model.safetensors.index.json").read_text()) for d in (sharded, tmp_path / "out"))
    assert new["weight_map"] == {f"net.{name}": shard for name, shard in old["weight_map"].items()}
    total = sum(tensor.nbytes for tensor in before.values())
    assert new["metadata"] == {"total_size": total, "note": "kept"}
    with safe_open(tmp_path / "out" / "model-00002-of-00002.safetensors", "pt") as shard:
        assert shard.metadata()["number"] == "2"
    rename_checkpoint_keys(tmp_path / "out", tmp_path / "one.safetensors", remove_prefix="net.")
    same(load_file(tmp_path / "one.safetensors"), before)


@pytest.mark.parametrize("backup", [False, True])
def test_shards_in_place(sharded, backup):
    before, files = read_all(sharded), names_in(sharded)
    WeightRenamer(sharded).rename_keys({"head.weight": "w"}, backup=backup).save(sharded)
    assert len(names_in(sharded)) == len(files) + (3 if backup else 0)
    assert torch.equal(read_all(sharded)["w"], before["head.weight"])
    if backup:
        WeightRenamer(sharded).restore_backup()
    else:
        WeightRenamer(sharded / "model.safetensors.index.json").rename_keys({"w": "head.weight"}).save()
    assert names_in(sharded) == files
    same(read_all(sharded), before)


def test_a_shard_without_a_tensor_is_not_written(sharded, tmp_path):
    WeightRenamer(sharded).rename_keys({"head.weight": "w"}, preserve_unmapped=False).save(tmp_path / "out")
    assert list(read_all(tmp_path / "out")) == ["w"]
    assert "model-00001-of-00002.safetensors" not in names_in(tmp_path / "out")


def test_torch_files_in_safetensors_out(tmp_path):
    state = tensors()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    WeightRenamer(tmp_path / "last.ckpt").remove_prefix("model.").save(tmp_path / "b.safetensors")
    written = load_file(tmp_path / "b.safetensors")
    assert torch.equal(written["enc.bias"], state["model.enc.bias"])
    WeightRenamer(tmp_path / "last.ckpt").add_prefix("x.").save(tmp_path / "out")
    assert (tmp_path / "out" / "last.safetensors").exists()
    with pytest.raises(CheckpointError, match="is a torch file, which is not written"):
        WeightRenamer(tmp_path / "last.ckpt").save()


def test_torch_shards_in_safetensors_shards_out(tmp_path):
    folder = write_sharded(tmp_path / "torch", "bin")
    WeightRenamer(folder).add_prefix("x.").save(tmp_path / "out")
    same(read_all(tmp_path / "out"), {f"x.{name}": tensor for name, tensor in read_all(folder).items()})
    assert {"model-00001-of-00002.safetensors", "model.safetensors.index.json"} <= set(names_in(tmp_path / "out"))


def test_outputs_that_are_refused(file, sharded, tmp_path):
    renamer = WeightRenamer(file).add_prefix("x.")
    (tmp_path / "b.safetensors").write_text("precious")
    with pytest.raises(CheckpointError, match="exists"):
        renamer.save(tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_text() == "precious"
    renamer.save(tmp_path / "b.safetensors", overwrite=True)
    with pytest.raises(CheckpointError, match="no safetensors"):
        renamer.save(tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="is not empty"):
        renamer.save(sharded)
    with pytest.raises(CheckpointError, match="is a shard of the input"):
        WeightRenamer(sharded).save(sharded / "model-00001-of-00002.safetensors", overwrite=True)
    with pytest.raises(CheckpointError, match="could not be written"):
        renamer.save(file / "below" / "b.safetensors")
    (tmp_path / "link.safetensors").symlink_to(file)
    with pytest.raises(CheckpointError, match="is a link to"):
        WeightRenamer(tmp_path / "link.safetensors").save()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(file, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="could not be written"):
        WeightRenamer(file).save(tmp_path / "closed" / "b.safetensors")


def test_a_file_that_changed_since_is_refused(file, tmp_path):
    renamer = WeightRenamer(file).add_prefix("x.")
    save_file({"other": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match="has changed since it was opened"):
        renamer.save(tmp_path / "b.safetensors")


def test_damaged_and_hostile_files_are_one_line(file, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"w": torch.ones(1), "x": Hostile()}, tmp_path / "hostile.pt")
    with pytest.raises(CheckpointError, match="would run code") as caught:
        WeightRenamer(tmp_path / "hostile.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        WeightRenamer(file)
    for path in (tmp_path / "none.safetensors", tmp_path / "ran"):
        with pytest.raises(CheckpointError, match="does not exist"):
            WeightRenamer(path)


@pytest.mark.parametrize("at", ["file", "sharded"])
def test_an_error_in_the_middle_leaves_the_old_one(at, request, tmp_path):
    path = request.getfixturevalue(at)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def stop(done, total, name):
        if done > total / 2:
            raise KeyboardInterrupt

    for backup in (False, True):
        with pytest.raises(KeyboardInterrupt):
            WeightRenamer(path).rename_keys({"head.weight": "w"}, backup=backup).save(progress=stop)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


_SLOW = """
import sys, time
from lit_wsl.mapper.renamer import WeightRenamer
def slow(done, total, name):
    if done > total / 2:
        print(name, flush=True)
        time.sleep(60)
WeightRenamer(sys.argv[1]).rename_keys({"head.weight": "w"}, backup=True).save(progress=slow)
"""


@pytest.mark.parametrize("at", ["file", "sharded"])
def test_a_kill_in_the_middle_leaves_the_old_one(at, request):
    path = request.getfixturevalue(at)
    before = read_all(path)
    child = subprocess.Popen([sys.executable, "-c", _SLOW, path], stdout=subprocess.PIPE)
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    same(read_all(path), before)
    WeightRenamer(path).rename_keys({"head.weight": "w"}, backup=True).save()
    assert "w" in read_all(path)
    left = names_in(path if path.is_dir() else path.parent)
    assert len(left) == (7 if at == "sharded" else 2), "what the killed one left is removed"
    WeightRenamer(path).restore_backup()
    same(read_all(path), before)


def test_two_processes_do_not_rename_one_directory(sharded):
    first, second = (WeightRenamer(sharded).rename_keys({"head.weight": name}) for name in ("v", "w"))

    def meanwhile(done, total, name):
        with pytest.raises(CheckpointError, match="Another process is writing"):
            second.save()

    first.save(progress=meanwhile)
    with pytest.raises(CheckpointError, match="is gone"):
        second.save()
    assert "v" in read_all(sharded)


_MEASURE = """
import sys, threading
from pathlib import Path
from lit_wsl.mapper.renamer import WeightRenamer
def anonymous():
    status = Path("/proc/self/status").read_text()
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
peak = before = anonymous()
def look(done, total, name):
    global peak
    peak = max(peak, anonymous())
WeightRenamer(sys.argv[1]).add_prefix("x.").save(sys.argv[2], progress=look)
print(peak - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_memory_is_of_one_tensor(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    state = {f"w{i}": torch.ones(2 << 20) for i in range(16)}
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    command = [sys.executable, "-c", _MEASURE, path, tmp_path / "b.safetensors"]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 20e6, "the file has 134 MB, each tensor 8 MB"


def test_opening_reads_headers_only(tmp_path):
    save_file({f"w{i}": torch.ones(1 << 20) for i in range(64)}, tmp_path / "a.safetensors")
    began = time.perf_counter()
    WeightRenamer(tmp_path / "a.safetensors").add_prefix("x.")
    assert time.perf_counter() - began < 0.1


def test_the_weight_map_and_the_summary(file, tmp_path, capsys):
    renamer = WeightRenamer(file).add_prefix("x.")
    renamer.weight_map.save(tmp_path / "map.json")
    back = WeightMap.load(tmp_path / "map.json").inverse()
    same(back.apply(renamer.state_dict), load_file(file))
    renamer.print_summary()
    shown = capsys.readouterr().out
    assert re.search(r"6 tensors, .*\n6 renamed, 0 as they were, 0 left out", shown)
    assert "head.weight -> x.head.weight" in shown
