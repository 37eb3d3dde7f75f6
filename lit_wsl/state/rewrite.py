"""Write a checkpoint again under other names: one file, a directory, or in the place of the old one.

Shards stay shards, with their index and their headers' metadata; each holds what it held.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from lit_wsl.errors import CheckpointError
from lit_wsl.state.formats import ADAPTER_CONFIG, carry_files
from lit_wsl.state.layout import Layout, named_files, read_index
from lit_wsl.state.publish import locked, published_directory, published_file, sync_folder
from lit_wsl.state.remap import copies
from lit_wsl.state.safetensors import SafetensorsFile

_VERSION = re.compile(r"\.r\d+$")

Progress = Callable[[int, str], None]
"""Takes the bytes and the name of a tensor that is written."""


def write_file(layout: Layout, names: Mapping[str, str], output: Path, progress: Progress | None = None) -> None:
    """Write all tensors into one safetensors file; an earlier one is replaced at the end.

    Args:
        layout: Opened checkpoint.
        names: New name to old name; what it leaves out is not written.
        output: File to write.
        progress: Told of each tensor.

    Raises:
        CheckpointError: If the file cannot be written.
    """
    metadata: dict[str, str] = {}
    for file in reversed(layout.shards):
        metadata.update(layout.metadata(file))
    pairs = ((old, new) for new, old in names.items())
    copies(pairs).write(layout.reader, output, metadata=metadata, progress=progress)


def write_directory(
    layout: Layout,
    names: Mapping[str, str],
    output: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a directory of the same shards, with the configuration files of a model directory.

    Raises:
        CheckpointError: If the directory may not be replaced, or cannot be written.
    """
    with published_directory(output, overwrite=overwrite, fingerprint=uuid.uuid4().hex) as scratch:
        weight_map = _write_shards(layout, names, layout.placed(scratch), scratch, progress)
        if layout.index is not None:
            _write_index(layout.index, weight_map, scratch / _index_name(layout.index))
        if layout.is_directory:
            carry_files(layout.folder, scratch, keep={ADAPTER_CONFIG})


def replace(
    layout: Layout, names: Mapping[str, str], *, backup: bool = False, progress: Progress | None = None
) -> None:
    """Rename in place, at once: a reader finds the old checkpoint or the new one.

    Args:
        layout: Opened safetensors file or sharded directory.
        names: New name to old name.
        backup: Whether the old files stay, for :func:`restore`.
        progress: Told of each tensor.

    Raises:
        CheckpointError: If a file cannot be written, or is no safetensors file; the old checkpoint is then whole.
    """
    if layout.is_torch:
        raise CheckpointError(f"{layout.entry} is a torch file, which is not written; name a `.safetensors` output.")
    if layout.entry.is_symlink():
        raise CheckpointError(f"{layout.entry} is a link to {layout.entry.resolve()}; name another output.")
    if backup:
        check_no_backup(layout.entry)
    if layout.index is None:
        _replace_file(layout, names, backup=backup, progress=progress)
        return
    with locked(layout.index.with_name(f"{layout.index.name}.partial")):
        layout.identities()  # another process may have renamed the shards in the meantime
        _replace_shards(layout, layout.index, names, backup=backup, progress=progress)


def backup_of(entry: Path) -> Path:
    """Where the file or the index before a change in place is kept."""
    return entry.with_name(f"{entry.name}.backup")


def check_no_backup(entry: Path) -> None:
    """Refuse to keep a second backup over the first.

    Raises:
        CheckpointError: If there is one.
    """
    kept = backup_of(entry)
    if kept.exists() and kept.samefile(entry):  # a killed rename kept what is still there
        kept.unlink()
    if os.path.lexists(kept):
        raise CheckpointError(f"{kept} holds an earlier state; restore it, move it, or rename without a backup.")


def restore(entry: Path) -> None:
    """Bring back the file, or the shards of the index, that a change in place kept.

    Raises:
        CheckpointError: If nothing was kept, it is damaged, or it cannot be put in place.
    """
    kept = backup_of(entry)
    if not kept.is_file():
        raise CheckpointError(f"{entry} has no backup {kept.name}; a rename in place with `backup=True` keeps one.")
    try:
        later = named_files(entry) - named_files(kept) if entry.suffix == ".json" else set()
        kept.replace(entry)
        sync_folder(entry.parent)
        for file in later:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{entry} could not be restored ({error.strerror}) from {kept}; try again.") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{entry} or its backup {kept} is no index ({error}); download one of them.") from error


def _replace_file(layout: Layout, names: Mapping[str, str], *, backup: bool, progress: Progress | None) -> None:
    before, mode = layout.identities(), layout.entry.stat().st_mode
    if backup:
        _keep(layout.entry)
    try:
        write_file(layout, names, layout.entry, progress)
        layout.entry.chmod(mode)
    except BaseException:
        if backup and layout.identities() == before:
            backup_of(layout.entry).unlink(missing_ok=True)
        raise


def _replace_shards(
    layout: Layout, index: Path, names: Mapping[str, str], *, backup: bool, progress: Progress | None
) -> None:
    """New shards stand beside the old ones until a new index names them."""
    note = _note_of(index)
    _remove_left_behind(layout, index)
    made = _free_names(list(layout.shards))
    with published_file(note) as partial:
        partial.write_text(
            json.dumps([file.relative_to(layout.folder).as_posix() for file in made.values()]), encoding="utf-8"
        )
    try:
        weight_map = _write_shards(layout, names, made, layout.folder, progress)
        for file in made:
            if made[file].exists():  # one that holds no tensor any more is not written
                made[file].chmod(file.stat().st_mode)
        if backup:
            _keep(index)
        _write_index(index, weight_map, index)
    except BaseException:
        if not named_files(index) & set(made.values()):
            _remove([*made.values(), *([backup_of(index)] if backup else []), note])
        raise
    note.unlink(missing_ok=True)
    if not backup:
        _remove(layout.shards)


def _keep(path: Path) -> None:
    """Keep a file by a second name for it, or by a copy where names cannot be shared."""
    kept = backup_of(path)
    try:
        os.link(path, kept)
    except OSError:
        with published_file(kept) as partial:
            shutil.copyfile(path, partial)


def _remove(files: Mapping[Path, list[str]] | list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _note_of(index: Path) -> Path:
    """Where the names of new shards stand until an index names them."""
    return index.with_name(f"{index.name}.new")


def _noted(index: Path) -> set[Path]:
    """The shards that a killed rename had begun; none where its note cannot be read."""
    try:
        names = json.loads(_note_of(index).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return set()
    return {index.parent / name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def _remove_left_behind(layout: Layout, index: Path) -> None:
    """Remove new shards of a killed rename: those that it noted, and that no index names."""
    named = named_files(index) | (named_files(backup_of(index)) if backup_of(index).is_file() else set())
    stems = {file.parent / stem for file, stem in _stems(list(layout.shards)).items()}
    for file in _noted(index) - named:
        if _VERSION.search(file.stem) and file.parent / _VERSION.sub("", file.stem) in stems:
            file.unlink(missing_ok=True)
    _note_of(index).unlink(missing_ok=True)


def _write_shards(
    layout: Layout, names: Mapping[str, str], made: Mapping[Path, Path], folder: Path, progress: Progress | None
) -> dict[str, str]:
    """Write each shard that keeps a tensor; returns new name to file name."""
    new_names = {old: new for new, old in names.items()}
    weight_map: dict[str, str] = {}
    for file, olds in layout.shards.items():
        pairs = [(old, new_names[old]) for old in olds if old in new_names]
        if pairs:
            copies(pairs).write(layout.reader, made[file], metadata=layout.metadata(file), progress=progress)
            weight_map.update({new: made[file].relative_to(folder).as_posix() for _, new in pairs})
    return weight_map


def _write_index(old: Path, weight_map: dict[str, str], path: Path) -> None:
    files = {path.parent / file for file in weight_map.values()}
    size = sum(info.nbytes for file in files for info in SafetensorsFile(file).infos.values())
    known = read_index(old).get("metadata")
    metadata = {**(known if isinstance(known, dict) else {}), "total_size": size}
    with published_file(path) as partial:
        partial.write_text(
            json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2) + "\n", encoding="utf-8"
        )


def _index_name(index: Path) -> str:
    return index.name.replace("pytorch_model", "model").replace(".bin.", ".safetensors.")


def _free_names(files: list[Path]) -> dict[Path, Path]:
    """Names beside the files, all marked alike, none of which is taken."""
    number = 0
    while True:
        mark = f".r{number}" if number else ""
        made = {file: file.with_name(f"{stem}{mark}.safetensors") for file, stem in _stems(files).items()}
        if not any(os.path.lexists(path) for path in made.values()):
            return made
        number += 1


def _stems(files: list[Path]) -> dict[Path, str]:
    """Names of files without suffix, and without the marks of earlier renames unless marks alone tell them apart."""
    plain = {file: _VERSION.sub("", file.stem) for file in files}
    is_told_apart = len({file.with_name(stem) for file, stem in plain.items()}) == len(files)
    return plain if is_told_apart else {file: file.stem for file in files}
