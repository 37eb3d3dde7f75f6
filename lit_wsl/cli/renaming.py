"""The `rename` command: other names for the tensors of a checkpoint."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from lit_wsl.errors import CheckpointError, ConfigError, WrongUsage

if TYPE_CHECKING:
    from lit_wsl.mapper.renamer import WeightRenamer


def configure_rename(parser: ArgumentParser) -> None:
    """Options of the command, in the order in which the renamings are done."""
    parser.add_argument(
        "checkpoint",
        nargs="?",
        type=str | None,
        default=None,
        help="Safetensors or torch file, model directory, or index; it stands before `--list`.",
    )
    parser.add_argument(
        "--output", type=str | None, default=None, help="A .safetensors file, or a directory that keeps the shards."
    )
    parser.add_argument("--map", nargs="+", type=str, default=[], metavar="OLD=NEW", help="Names and new names.")
    parser.add_argument("--map_file", type=str | None, default=None, help="JSON of old and new names, or a weight map.")
    parser.add_argument("--remove_prefix", type=str, default="", help="Take this from the names that begin with it.")
    parser.add_argument("--replace", nargs=2, type=str, default=[], metavar=("OLD", "NEW"), help="Text in all names.")
    parser.add_argument("--add_prefix", type=str, default="", help="Put this in front of every name.")
    parser.add_argument(
        "--list",
        nargs="?",
        const="",
        default=None,
        type=str | None,
        metavar="PATTERN",
        help="List the names as they would be, or those that match a regular expression, and leave.",
    )
    parser.add_argument("--dry_run", action="store_true", help="Say what would be renamed, and leave.")
    parser.add_argument("--backup", action="store_true", help="When the output is the input, keep the old file.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier output, or the input itself.")


def run_rename(options: Namespace) -> int:
    """Rename, list, or say what would be renamed."""
    if options.checkpoint is None:
        where = f" before `--list`, which took {options.list!r} as a pattern" if options.list else ""
        raise WrongUsage(f"Name the checkpoint{where}.")
    mapping = _mapping(options.map, options.map_file)
    asked = bool(mapping or options.remove_prefix or options.replace or options.add_prefix)
    if options.list is None and not asked:
        raise WrongUsage("Nothing to rename; pass `--map`, `--remove_prefix`, `--add_prefix`, `--replace` or `--list`.")
    if options.list is None and not options.dry_run and options.output is None:
        raise WrongUsage("Nowhere to write; pass `--output`, or look first with `--dry_run`.")
    from lit_wsl.mapper.renamer import WeightRenamer

    renamer = WeightRenamer(options.checkpoint)
    _rename(renamer, mapping, options)
    if options.list is not None:
        return _list(renamer, options.list)
    if not options.dry_run:
        return _save(renamer, options)
    renamer.print_summary()
    return 0


def _rename(renamer: "WeightRenamer", mapping: dict[str, str], options: Namespace) -> None:
    renamer.rename_keys(mapping, backup=options.backup)
    if options.remove_prefix:
        renamer.remove_prefix(options.remove_prefix)
    if options.replace:
        old, new = options.replace
        found = {name: name.replace(old, new) for name in renamer.list_keys() if old and old in name}
        if not found:
            raise CheckpointError(f"{renamer.path}: no name holds {old!r}; `--list` shows the names.")
        renamer.rename_keys(found)
    if options.add_prefix:
        renamer.add_prefix(options.add_prefix)


def _list(renamer: "WeightRenamer", pattern: str) -> int:
    found = renamer.search_keys(pattern)
    if not found:
        raise CheckpointError(f"{renamer.path}: none of {len(renamer.list_keys())} names matches {pattern!r}.")
    width = max(map(len, found))
    for name in found:
        info = renamer.info(name)
        sys.stdout.write(f"{name:{width}}  {str(info.dtype).removeprefix('torch.')} {list(info.shape)}\n")
    return 0


def _save(renamer: "WeightRenamer", options: Namespace) -> int:
    from lit_wsl.cli.progress import progress_bar
    from lit_wsl.state.publish import check_writable

    if renamer.is_in_place(options.output) and not options.overwrite:
        raise CheckpointError(f"Output {options.output} is the input; choose another, or pass `--overwrite`.")
    check_writable(Path(options.output).parent)
    count, total = len(renamer.renamed), len(renamer.list_keys())
    with progress_bar("renaming") as progress:
        output = renamer.save(options.output, overwrite=options.overwrite, progress=progress)
    sys.stdout.write(f"{output}: {total} tensors, {count} renamed\n")
    return 0


def _mapping(pairs: list[str], file: str | None) -> dict[str, str]:
    """Old name to new name, from the command line and from a file."""
    mapping = _read_mapping(Path(file)) if file is not None else {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise WrongUsage(f"--map: {pair!r} is no pair; write OLD=NEW.")
        if mapping.get(old, new) != new:
            raise WrongUsage(f"--map: {old!r} is given two names, {mapping[old]!r} and {new!r}; choose one.")
        mapping[old] = new
    return mapping


def _read_mapping(file: Path) -> dict[str, str]:
    """The pairs of a JSON object, or of a weight map that only renames."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--map_file {file} cannot be read ({error.strerror}); check the path.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f'--map_file {file} is no JSON ({error}); write {{"old": "new"}}.') from error
    if isinstance(content, dict) and isinstance(content.get("entries"), list):
        return _pairs_of_map(file)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
        raise ConfigError(f'--map_file {file} is no object of old and new names; write {{"old": "new"}}.')
    if not content:
        raise ConfigError(f'--map_file {file} holds no pair; write {{"old": "new"}}.')
    return content


def _pairs_of_map(file: Path) -> dict[str, str]:
    from lit_wsl.state.remap import WeightMap

    pairs: dict[str, str] = {}
    for entry in WeightMap.load(file):
        if entry.operations or len(entry.sources) != 1 or len(entry.targets) != 1 or entry.sources[0] in pairs:
            what = ", ".join(entry.targets)
            raise ConfigError(f"--map_file {file} does more than rename, at {what}; use `lit-wsl map --apply`.")
        pairs[entry.sources[0]] = entry.targets[0]
    return pairs
