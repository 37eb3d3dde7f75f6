"""Publish a directory whole or not at all.

The work happens in a sibling ``NAME.partial``. Only when it is finished does a rename put it in place, so a
killed process leaves the old output or none, and the same command can take the partial work up again.
"""

import glob
import json
import os
import platform
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lit_wsl.errors import CheckpointError
from lit_wsl.state.locking import acquire_lock

MARKER = ".lit_wsl.json"
"""File in every published directory that lists the others; only what it lists may be overwritten."""
_HOST = re.sub(r"\W", "-", platform.node()) or "host"
FINGERPRINT = ".fingerprint"
"""File in a partial directory that says whose work it is."""


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse an output directory that cannot be made or holds something, before any work is done.

    Raises:
        CheckpointError: If ``target`` is a file, cannot be written, has content and ``overwrite`` is off, or
            has content that was not published from here.
    """
    if not os.path.lexists(target):
        check_writable(target)
        return
    if not target.is_dir():
        raise CheckpointError(f"Output {target} is a file; name a directory.")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(f"Output directory {target} is not empty; choose another, or pass `--overwrite`.")
    if not (target / MARKER).exists():
        raise CheckpointError(
            f"Output directory {target} was not written by lit-wsl and is left alone; choose another."
        )
    strangers = sorted(set(_files(target)) - set(_published_files(target)))
    if strangers:
        raise CheckpointError(
            f"Output directory {target} also holds {strangers[0]!r}, which lit-wsl did not write there; "
            "move it or choose another directory."
        )


def check_writable(target: Path) -> None:
    """Refuse a directory that could not be made or written, by looking at the nearest folder that exists.

    Raises:
        CheckpointError: If that is a file, or may not be written.
    """
    existing = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        fault = "cannot be written" if existing.is_dir() else "is a file"
        raise CheckpointError(f"Output directory {target} cannot be used: {existing} {fault}; choose another.")


def _files(directory: Path) -> list[str]:
    """Relative names of all files, our own notes aside."""
    found = (str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())
    return sorted(name for name in found if name not in (MARKER, FINGERPRINT))


def _published_files(directory: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads((directory / MARKER).read_text(encoding="utf-8"))["files"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{directory / MARKER} is damaged; choose another output directory.") from error


@contextmanager
def published_directory(target: Path, *, overwrite: bool = False, fingerprint: str = "") -> Iterator[Path]:
    """Yield a scratch directory; rename it to ``target`` only when the block ends well.

    An interrupted block (Ctrl-C, kill) leaves ``target.partial`` behind; the next call with the same
    ``fingerprint`` finds it again and may resume. An error removes it.

    Args:
        target: Directory to publish.
        overwrite: Whether an earlier output may be replaced.
        fingerprint: Identifies the work; partial work of another fingerprint is thrown away.

    Raises:
        CheckpointError: If the target may not be replaced, cannot be written, or another process writes it.
    """
    target = target.resolve()
    partial, replaced = target.with_name(target.name + ".partial"), target.with_name(target.name + ".replaced")
    with locked(partial):
        if (replaced / MARKER).exists() and not target.exists():  # killed between the two renames below
            replaced.rename(target)
        check_target(target, overwrite=overwrite)
        scratch = _scratch(partial, fingerprint)
        try:
            yield scratch
            note = {"fingerprint": fingerprint, "files": _files(scratch)}
            (scratch / MARKER).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
            check_target(target, overwrite=overwrite)
            _swap(scratch, target, replaced)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise CheckpointError(f"{_failed(target, error)}; nothing was published.") from error
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


@contextmanager
def locked(partial: Path, *, wait: bool = False) -> Iterator[None]:
    """The right to write ``partial``, held by this process alone.

    Args:
        partial: What is written.
        wait: Whether to wait for another holder.

    Raises:
        CheckpointError: If another process holds it and there is no waiting, or the folder cannot be written.
    """
    path = partial.with_name(partial.name + ".lock")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(path, wait=wait)
    except BlockingIOError:
        raise CheckpointError(
            f"Another process is writing {partial.with_suffix('')}; wait for it or choose another output."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{partial.parent} cannot be written ({error.strerror}); choose another.") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.close()


def _scratch(partial: Path, fingerprint: str) -> Path:
    """The partial directory, emptied unless it belongs to the same work."""
    note = partial / FINGERPRINT
    ours = note.exists() or (partial / MARKER).exists()  # killed just before the last rename, only the marker is left
    if os.path.lexists(partial) and not ours and (not partial.is_dir() or any(partial.iterdir())):
        raise CheckpointError(f"{partial} is in the way and was not made by lit-wsl; move it or choose another output.")
    if ours and (not note.exists() or note.read_text() != fingerprint):
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    note.write_text(fingerprint)
    return partial


def _swap(scratch: Path, target: Path, replaced: Path) -> None:
    (scratch / FINGERPRINT).unlink(missing_ok=True)
    earlier = target.exists() and any(target.iterdir())
    if earlier:
        if (replaced / MARKER).exists():
            shutil.rmtree(replaced)
        target.rename(replaced)
    try:
        scratch.rename(target)
    except OSError:
        if earlier:
            replaced.rename(target)
        raise
    sync_folder(target.parent)
    if earlier:
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def published_file(target: Path) -> Iterator[Path]:
    """Yield a scratch path beside ``target``; sync it and rename it over ``target`` only when the block ends well.

    A killed process or a power cut leaves the earlier file whole; its scratch file is removed by the next call. Of
    several processes or threads that write one file each writes its own; the last to finish wins.

    Raises:
        CheckpointError: If the file cannot be written, or another cannot be read in the block.
    """
    target = target.resolve()
    if target.exists() and not target.is_file():
        raise CheckpointError(f"{target} is no regular file and is left alone; choose another.")
    partial = target.with_name(f"{target.name}.{_HOST}.{threading.get_native_id()}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(target)
        yield partial
        _sync(partial)
        partial.replace(target)
    except OSError as error:
        with suppress(OSError):  # such as a parent that is a file
            partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"{_failed(target, error)}{untouched(target)}; check the disk and the directory, or choose another."
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def _failed(target: Path, error: OSError) -> str:
    """What failed: to write the target, or to read another file for it."""
    other, reason = error.filename, error.strerror or error
    if not isinstance(other, str | os.PathLike):
        return f"{target} could not be written ({reason})"
    path = Path(other).absolute()
    is_own = str(path).startswith(str(target)) or target.is_relative_to(path)
    return f"{target} could not be written ({reason})" if is_own else f"{path} could not be read ({reason})"


def untouched(target: Path) -> str:
    """Part of a message on a failed write that says what became of the earlier file; empty if there is none."""
    return "; the earlier file is untouched" if target.exists() else ""


@contextmanager
def scratch_beside(partial: Path) -> Iterator[Path]:
    """Yield an empty directory beside a path of :func:`published_file`; it goes when the block ends.

    After a kill it goes with the next call of :func:`published_file` on that target.
    """
    scratch = partial.with_name(f"{partial.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_left_behind(target: Path) -> None:
    """Remove scratch files and directories of processes of this machine that are gone."""
    for path in target.parent.glob(f"{glob.escape(target.name)}.{_HOST}.*.partial"):
        number = path.name.removesuffix(".partial").removesuffix(".partial").split(".")[-1]
        if number.isdigit() and not Path(f"/proc/{number}").exists() and Path("/proc/self").exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Let the bytes of a file, or the names in a folder, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder reach the disk, where the file system can; a rename in it has happened anyway."""
    with suppress(OSError):
        _sync(folder)
