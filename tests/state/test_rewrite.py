"""Writing a checkpoint under other names: bytes stay, and a fault leaves the old checkpoint whole."""

import errno
import json
import os
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from lit_wsl.errors import CheckpointError
from lit_wsl.state import open_state, rewrite
from lit_wsl.state.layout import Layout
from lit_wsl.state.rewrite import backup_of, check_no_backup, replace, restore, write_directory, write_file
from tests.state.sharded import STATE, equal, save_shards, save_single

NAMES = {f"x.{name}": name for name in STATE}
RENAMED = {new: STATE[old] for new, old in NAMES.items()}
BACK = {old: new for new, old in NAMES.items()}


def read(path):
    reader = open_state(path)
    return {name: reader.read(name).clone() for name in reader.keys()}


def files(folder):
    """What lies there, byte by byte; lock files aside."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.fixture(params=["file", "shards"])
def entry(request, tmp_path):
    """What a reader opens first."""
    return save_single(tmp_path) if request.param == "file" else save_shards(tmp_path)


@pytest.fixture
def broken(monkeypatch):
    """The disk is full at the second tensor."""

    def fail(layout, action):
        told = []

        def progress(nbytes, name):
            told.append(name)
            if len(told) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises((OSError, CheckpointError)):
            action(progress)

    return fail


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_become_one_file(tmp_path, suffix):
    save_shards(tmp_path, suffix)
    told = []
    write_file(Layout.of(tmp_path), NAMES, tmp_path / "one.safetensors", lambda *step: told.append(step))
    assert equal(load_file(tmp_path / "one.safetensors"), RENAMED)
    assert sorted(told) == sorted((tensor.nbytes, name) for name, tensor in RENAMED.items())
    with safe_open(tmp_path / "one.safetensors", "pt") as file:
        assert (file.metadata() or {}).get("part") == ("1" if suffix == "safetensors" else None)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_directory_keeps_its_shards_configuration_and_metadata(tmp_path, suffix):
    save_shards(tmp_path / "in", suffix)
    write_directory(Layout.of(tmp_path / "in"), NAMES, tmp_path / "out")
    assert equal(read(tmp_path / "out"), RENAMED)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in STATE.values()), "by": "hand"}
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert (tmp_path / "out/config.json").read_text() == '{"hidden_size": 4}'


def test_an_adapter_directory_stays_one(tmp_path):
    save_single(tmp_path / "in", "adapter_model.safetensors")
    (tmp_path / "in/adapter_config.json").write_text('{"r": 8}')
    write_directory(Layout.of(tmp_path / "in"), NAMES, tmp_path / "out")
    assert (tmp_path / "out/adapter_config.json").read_text() == '{"r": 8}'


def test_what_is_left_out_leaves_no_empty_shard(tmp_path):
    save_shards(tmp_path / "in")
    write_directory(Layout.of(tmp_path / "in"), {"only": "a.bias"}, tmp_path / "out")
    assert read(tmp_path / "out").keys() == {"only"}
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1


@pytest.mark.parametrize("backup", [False, True])
def test_in_place_and_back_again(entry, backup):
    before = files(entry.parent)
    entry.chmod(0o640)
    replace(Layout.of(entry), NAMES, backup=backup)
    assert equal(read(entry), RENAMED)
    assert backup_of(entry).exists() is backup
    if entry.suffix == ".safetensors":
        assert entry.stat().st_mode & 0o777 == 0o640
    if backup:
        with pytest.raises(CheckpointError, match="holds an earlier state"):
            replace(Layout.of(entry), BACK, backup=True)
        restore(entry)
        assert files(entry.parent) == before
    else:
        assert len(files(entry.parent)) == len(before)
        replace(Layout.of(entry), BACK)
        assert equal(read(entry), STATE)
    with pytest.raises(CheckpointError, match="has no backup"):
        restore(entry)


@pytest.mark.parametrize("backup", [False, True])
def test_a_full_disk_leaves_the_old_checkpoint(entry, broken, backup):
    before = files(entry.parent)
    layout = Layout.of(entry)
    broken(layout, lambda progress: replace(layout, NAMES, backup=backup, progress=progress))
    assert files(entry.parent) == before


def test_a_fault_after_the_rename_keeps_the_backup(tmp_path, monkeypatch):
    """The new file stands already, so what was kept is all that is left of the old one."""
    entry = save_single(tmp_path)

    def refuse(self, mode):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(PermissionError):
        replace(Layout.of(entry), NAMES, backup=True)
    monkeypatch.undo()
    restore(entry)
    assert equal(read(entry), STATE)


def test_a_disk_without_links_keeps_a_copy(entry, monkeypatch):
    def refuse(*paths):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    before = files(entry.parent)
    replace(Layout.of(entry), NAMES, backup=True)
    restore(entry)
    assert files(entry.parent) == before


def test_what_a_killed_rename_left_goes_with_the_next(tmp_path):
    """Shards that it noted and that no index names; others stay, such as those that somebody named like them."""
    index = save_shards(tmp_path)
    noted = ["model-00001-of-00003.r7.safetensors", "model-00001-of-00003.safetensors", "../own.r1.safetensors", 3]
    index.with_name(f"{index.name}.new").write_text(json.dumps(noted))
    own = "model-00002-of-00003.r7.safetensors"
    for name in (noted[0], own, "model-00009-of-00003.r1.safetensors", "model.rx.safetensors"):
        (tmp_path / name).write_bytes(b"half")
    replace(Layout.of(index), NAMES, backup=True)
    assert not (tmp_path / "model-00001-of-00003.r7.safetensors").exists()
    assert (tmp_path / own).read_bytes() == b"half"
    assert not index.with_name(f"{index.name}.new").exists()
    assert (tmp_path / "model-00009-of-00003.r1.safetensors").exists()
    assert (tmp_path / "model.rx.safetensors").exists()
    replace(Layout.of(index), BACK)
    restore(index)
    assert equal(read(index), STATE)


@pytest.mark.parametrize("note", ["", "{", "3", '{"a": 1}', "[" * 5000])
def test_a_damaged_note_of_a_killed_rename_removes_nothing(tmp_path, note):
    index = save_shards(tmp_path)
    index.with_name(f"{index.name}.new").write_text(note)
    (tmp_path / "model-00001-of-00003.r7.safetensors").write_bytes(b"mine")
    replace(Layout.of(index), NAMES)
    assert equal(read(index), RENAMED)
    assert (tmp_path / "model-00001-of-00003.r7.safetensors").read_bytes() == b"mine"


def test_a_rename_that_is_killed_in_the_middle_is_cleaned_up_by_the_next(tmp_path, monkeypatch):
    index = save_shards(tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr(rewrite, "_remove", lambda paths: None)  # nothing cleans up behind a kill
    monkeypatch.setattr(rewrite, "_write_index", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        replace(Layout.of(index), NAMES)
    monkeypatch.undo()
    assert len(files(tmp_path)) == len(before) + 4, "three shards and their note"
    replace(Layout.of(index), NAMES)
    assert equal(read(index), RENAMED)
    assert len(files(tmp_path)) == len(before)


def test_a_backup_that_is_the_file_itself_is_none(tmp_path):
    """A rename that was killed right behind the link has changed nothing."""
    entry = save_single(tmp_path)
    os.link(entry, backup_of(entry))
    check_no_backup(entry)
    assert not backup_of(entry).exists()


def test_a_backup_that_cannot_be_brought_back_is_named(entry, monkeypatch):
    replace(Layout.of(entry), NAMES, backup=True)

    def refuse(self, target):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(CheckpointError, match=r"could not be restored \(Permission denied\)"):
        restore(entry)
    monkeypatch.undo()
    assert equal(read(entry), RENAMED)


def test_torch_files_and_links_are_not_written_in_place(tmp_path):
    with pytest.raises(CheckpointError, match="is a torch file"):
        replace(Layout.of(save_single(tmp_path, "model.bin")), NAMES)
    target = save_single(tmp_path / "real")
    (tmp_path / "link.safetensors").symlink_to(target)
    with pytest.raises(CheckpointError, match="is a link to"):
        replace(Layout.of(tmp_path / "link.safetensors"), NAMES)
    assert equal(read(target), STATE)


def test_new_shards_take_names_that_nobody_has(tmp_path):
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "a.r1.safetensors").touch()
    wanted = [tmp_path / "a.safetensors", tmp_path / "b.r4.safetensors"]
    assert list(rewrite._free_names(wanted).values()) == [tmp_path / "a.r2.safetensors", tmp_path / "b.r2.safetensors"]
    assert rewrite._free_names([tmp_path / "c.bin"]) == {tmp_path / "c.bin": tmp_path / "c.safetensors"}


def test_shards_that_differ_in_a_mark_alone_keep_it(tmp_path):
    """Their names without the mark are one, so no number would ever tell the new ones apart."""
    wanted = [tmp_path / "m.r1.safetensors", tmp_path / "m.r2.safetensors"]
    for file in wanted:
        file.touch()
    made = [tmp_path / "m.r1.r1.safetensors", tmp_path / "m.r2.r1.safetensors"]
    assert list(rewrite._free_names(wanted).values()) == made


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}'])
@pytest.mark.parametrize("is_backup", [True, False], ids=["backup", "index"])
def test_a_damaged_index_is_not_restored(tmp_path, text, is_backup):
    index = save_shards(tmp_path)
    replace(Layout.of(index), NAMES, backup=True)
    (backup_of(index) if is_backup else index).write_text(text)
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match="is no index"):
        restore(index)
    assert files(tmp_path) == before
