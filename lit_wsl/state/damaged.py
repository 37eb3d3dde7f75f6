"""Open a checkpoint of which some tensors cannot be read: what can be read is, the rest has a reason."""

from pathlib import Path

from lit_wsl.errors import CheckpointError
from lit_wsl.state.layout import index_of, read_index
from lit_wsl.state.reader import (
    SINGLE_NAMES,
    TORCH_SUFFIXES,
    SafetensorsReader,
    StateReader,
    open_state,
    shard_path,
)
from lit_wsl.state.safetensors import SafetensorsFile


def open_readable(source: Path) -> tuple[StateReader, dict[str, str]]:
    """A reader of all tensors that can be read, and the others with the reason of each.

    Only safetensors files are read in part: a torch file is whole or not at all.

    Raises:
        CheckpointError: If nothing can be read.
    """
    try:
        return open_state(source), {}
    except CheckpointError:
        damaged: dict[str, str] = {}
        shards = _shards(source, damaged)
        if not any(shard.infos for shard in shards):
            raise
        return SafetensorsReader(source, shards), damaged


def _shards(source: Path, damaged: dict[str, str]) -> list[SafetensorsFile]:
    """The safetensors files of a checkpoint, as far as their headers can be read."""
    index = index_of(source)
    if index is None:
        file = _single(source)
        return [SafetensorsFile(file, damaged)] if file is not None and file.suffix == ".safetensors" else []
    if not index.is_file():  # a pipe would be waited for
        return []
    try:
        homes = read_index(index)["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    if not isinstance(homes, dict) or not all(isinstance(file, str) for file in homes.values()):
        return []
    shards = []
    for file in dict.fromkeys(homes.values()):
        try:
            shards.append(SafetensorsFile(shard_path(index, file), damaged))
        except CheckpointError as error:
            damaged.update({name: str(error) for name, home in homes.items() if home == file})
    found = {name for shard in shards for name in shard.infos} | damaged.keys()
    damaged.update(
        {name: f"{file} lacks it, although the index names it" for name, file in homes.items() if name not in found}
    )
    return shards


def _single(source: Path) -> Path | None:
    """The only weight file of a checkpoint, as a reader finds it."""
    if not source.is_dir():
        return source if source.is_file() else None
    named = next((source / name for name in SINGLE_NAMES if (source / name).is_file()), None)
    found = [file for file in source.iterdir() if file.suffix in (".safetensors", *TORCH_SUFFIXES) and file.is_file()]
    return named or (found[0] if len(found) == 1 else None)
