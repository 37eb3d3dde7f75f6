"""Publishing a directory leaves alone what is not ours."""

import threading
from pathlib import Path

import pytest

from lit_wsl.errors import CheckpointError
from lit_wsl.state import publish as publish_module
from lit_wsl.state import published_directory
from lit_wsl.state.publish import MARKER, check_writable, locked, published_file


def write(target, text, **settings):
    with published_directory(target, **settings) as directory:
        (directory / "content").write_text(text)


def test_published_directory_appears_whole_and_replaces_its_own_kind(tmp_path):
    write(tmp_path / "out", "first")
    write(tmp_path / "out", "second", overwrite=True)
    assert (tmp_path / "out/content").read_text() == "second"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_an_error_keeps_the_earlier_output(tmp_path):
    write(tmp_path / "out", "first")
    with pytest.raises(RuntimeError), published_directory(tmp_path / "out", overwrite=True) as directory:
        (directory / "content").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out/content").read_text() == "first"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_partial_work_of_the_same_fingerprint_is_taken_up(tmp_path):
    with pytest.raises(KeyboardInterrupt), published_directory(tmp_path / "out", fingerprint="a") as directory:
        (directory / "half").write_text("done")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), published_directory(tmp_path / "out", fingerprint="a") as directory:
        assert (directory / "half").read_text() == "done"
        raise KeyboardInterrupt
    with published_directory(tmp_path / "out", fingerprint="b") as directory:
        assert not (directory / "half").exists()


@pytest.mark.parametrize("suffix", [".partial", ".replaced"])
def test_a_stranger_under_a_working_name_survives(tmp_path, suffix):
    stranger = tmp_path / f"out{suffix}"
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("years of work")
    if suffix == ".partial":
        with pytest.raises(CheckpointError, match="in the way"):
            write(tmp_path / "out", "first")
    else:
        write(tmp_path / "out", "first")
        with pytest.raises(CheckpointError):
            write(tmp_path / "out", "second", overwrite=True)
        assert (tmp_path / "out/content").read_text() == "first"
    assert (stranger / "thesis.txt").read_text() == "years of work"


def test_a_failing_last_rename_puts_the_earlier_output_back(tmp_path, monkeypatch):
    write(tmp_path / "out", "first")
    rename = Path.rename

    def refuse_the_new(self, target):
        if self.name == "out.partial":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises(CheckpointError, match="nothing was published"):
        write(tmp_path / "out", "second", overwrite=True)
    assert (tmp_path / "out/content").read_text() == "first"


@pytest.mark.parametrize("earlier", [False, True])
def test_a_failed_write_speaks_of_an_earlier_file_only_if_there_is_one(tmp_path, earlier):
    target = tmp_path / "out"
    if earlier:
        target.write_text("first")
    message = r"out could not be written \(No space left\)"
    with pytest.raises(CheckpointError, match=message) as error, published_file(target) as partial:
        partial.write_text("half")
        raise OSError(28, "No space left")
    assert ("earlier file is untouched" in str(error.value)) is earlier
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out", "first")] * earlier


def test_a_file_that_cannot_be_read_in_the_block_is_named(tmp_path):
    gone = tmp_path / "gone"
    message = r"/gone could not be read \(No such file"
    with pytest.raises(CheckpointError, match=message), published_file(tmp_path / "a"):
        gone.read_text()
    with pytest.raises(CheckpointError, match=message), published_directory(tmp_path / "b"):
        gone.read_text()
    assert list(tmp_path.iterdir()) == []


def test_threads_that_write_one_file_have_their_own_scratch(tmp_path):
    with published_file(tmp_path / "out") as mine:
        mine.write_text("first")
        thread = threading.Thread(target=_write, args=(tmp_path / "out", "second"))
        thread.start()
        thread.join()
        assert mine.read_text() == "first"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out", "first")]


def _write(target, text):
    with published_file(target) as partial:
        partial.write_text(text)


@pytest.mark.parametrize("publish", [_write, write])
def test_a_rename_reaches_the_disk_where_folders_can_be_synced(tmp_path, monkeypatch, publish):
    synced = []

    def sync(path):
        synced.append((path, [one.name for one in tmp_path.iterdir() if one.name == "out"]))
        if path.is_dir():
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(publish_module, "_sync", sync)
    publish(tmp_path / "out", "first")
    assert synced[-1] == (tmp_path, ["out"])


def test_a_lock_can_be_waited_for(tmp_path):
    entered = []

    def second():
        with locked(tmp_path / "run", wait=True):
            entered.append(1)

    with locked(tmp_path / "run"):
        thread = threading.Thread(target=second)
        thread.start()
        with pytest.raises(CheckpointError, match="Another process is writing"), locked(tmp_path / "run"):
            pass
        thread.join(0.2)
        assert not entered
    thread.join(30)
    assert entered


def test_a_parent_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="out could not be written"), published_file(tmp_path / "file" / "out"):
        pass
    with pytest.raises(CheckpointError, match="/file cannot be used: .*/file is a file; choose another"):
        check_writable(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_under_the_working_name_survives(tmp_path):
    (tmp_path / "out.partial").write_text("years of work")
    with pytest.raises(CheckpointError, match="in the way"):
        write(tmp_path / "out", "first")
    assert (tmp_path / "out.partial").read_text() == "years of work"


@pytest.mark.parametrize("files", ["3", "null", "[[]]", '{"content": 1}'])
def test_a_damaged_list_of_what_was_published_replaces_nothing(tmp_path, files):
    write(tmp_path / "out", "first")
    (tmp_path / "out" / MARKER).write_text(f'{{"files": {files}}}')
    (tmp_path / "out/stranger").write_text("years of work")
    with pytest.raises(CheckpointError, match="choose another"):
        write(tmp_path / "out", "second", overwrite=True)
    assert (tmp_path / "out/stranger").read_text() == "years of work"


def test_a_folder_is_no_file_to_write(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="no regular file"):
        _write(tmp_path / "out", "first")


def test_a_file_is_no_folder_to_write(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file; name a directory"):
        write(tmp_path / "out", "first")
    with pytest.raises(CheckpointError, match="could not be written|cannot be written"):
        write(tmp_path / "out" / "inner", "first")
    with pytest.raises(CheckpointError, match="could not be written"):
        _write(tmp_path / "out" / "inner", "first")
    assert (tmp_path / "out").read_text() == "mine"


def test_an_output_with_a_damaged_list_of_its_files_is_left_alone(tmp_path):
    write(tmp_path / "out", "first")
    (tmp_path / "out" / MARKER).write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        write(tmp_path / "out", "second", overwrite=True)
    assert (tmp_path / "out/content").read_text() == "first"


def test_an_earlier_output_that_a_kill_left_aside_is_put_back(tmp_path):
    write(tmp_path / "out", "first")
    (tmp_path / "out").rename(tmp_path / "out.replaced")
    with pytest.raises(RuntimeError), published_directory(tmp_path / "out", overwrite=True):
        raise RuntimeError
    assert (tmp_path / "out/content").read_text() == "first"


@pytest.mark.parametrize("is_folder", [False, True])
def test_scratch_of_a_process_that_is_gone_is_removed(tmp_path, is_folder):
    name = f"out.{publish_module._HOST}.1.{2**22 + 1}.partial"  # no process has so high a number
    (tmp_path / name).mkdir() if is_folder else (tmp_path / name).write_text("half")
    _write(tmp_path / "out", "first")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_of_the_caller_leaves_no_scratch(tmp_path):
    with pytest.raises(RuntimeError), published_file(tmp_path / "out") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_scratch_beside_a_file_goes_with_its_block(tmp_path):
    with published_file(tmp_path / "out") as partial:
        partial.write_text("first")
        with publish_module.scratch_beside(partial) as scratch:
            (scratch / "part").write_text("half")
        assert not scratch.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
