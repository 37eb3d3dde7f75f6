"""Write the weights that a map makes, and say what the target still lacks."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import Namespace

from lit_wsl.cli.model_output import write_model
from lit_wsl.cli.named_model import NamedModel
from lit_wsl.cli.progress import progress_bar
from lit_wsl.errors import CheckpointError
from lit_wsl.mapper.inventory import Inventory, Weight, take_inventory
from lit_wsl.state.publish import check_target, check_writable
from lit_wsl.state.reader import StateReader, open_state
from lit_wsl.state.remap import WeightMap
from lit_wsl.state.sizes import read_size

_NAMED = 3
"""How many names a message lists."""


def check_outputs(options: Namespace, models: Sequence[NamedModel]) -> None:
    """Refuse files that may not be written, before any work is done.

    Raises:
        CheckpointError: If one is an input, exists and ``--overwrite`` is off, is named twice, or cannot be written.
    """
    inputs = {file.resolve() for model in models for file in _files(model)}
    inputs |= {Path(options.map).resolve()} if options.map is not None else set()
    seen: dict[Path, str] = {}
    for name in ("apply", "save", "report"):
        if options[name] is None:
            continue
        path = Path(options[name])
        if name == "apply" and is_directory(path):
            _check_directory(path, inputs, overwrite=options.overwrite)
            continue
        if path.resolve() in inputs:
            raise CheckpointError(f"Output {path} of --{name} is an input; choose another.")
        if (other := seen.setdefault(path.resolve(), name)) != name:
            raise CheckpointError(f"--{other} and --{name} name one file, {path}; choose two.")
        if path.exists() and not path.is_file():
            raise CheckpointError(f"Output {path} of --{name} is no regular file; choose another.")
        if path.exists() and not options.overwrite:
            raise CheckpointError(f"Output {path} of --{name} exists; choose another, or pass `--overwrite`.")
        check_writable(path.parent)


def is_directory(output: Path) -> bool:
    """Whether ``--apply`` names a model directory rather than one file."""
    return output.suffix != ".safetensors"


def _check_directory(path: Path, inputs: set[Path], *, overwrite: bool) -> None:
    held = [file for file in inputs if path.resolve() in file.parents]
    if held:
        raise CheckpointError(f"Output {path} of --apply holds the input {held[0].name}; choose another.")
    check_target(path, overwrite=overwrite)


def _files(model: NamedModel) -> list[Path]:
    return open_state(model.weights).files() if model.weights is not None else []


def write_weights(
    recipes: WeightMap, sides: tuple[NamedModel, NamedModel | None], options: Namespace, what: str
) -> None:
    """Make the target's tensors from file to file, one recipe at a time.

    Raises:
        CheckpointError: If the source lacks a tensor, or the output cannot be written.
    """
    source, target = sides
    output = Path(options.apply)
    reader = open_state(source.weights or "")
    _check_sources(recipes, reader, what)
    total = sum(reader.info(name).nbytes for name in recipes.sources())
    if options.dry_run:
        sys.stdout.write(f"{output}: {len(recipes.targets())} tensors, {total / 1e6:.1f} MB would be written\n")
        return
    with progress_bar("mapping") as progress:
        tell = _counted(progress, total)
        if is_directory(output) and target is not None:
            limit = read_size(options.shard_size or "5GB")
            write_model(
                recipes, reader, (source, target), output, limit=limit, overwrite=options.overwrite, progress=tell
            )
        else:
            recipes.write(reader, output, progress=tell)
    sys.stdout.write(f"{output}: {len(recipes.targets())} tensors, {total / 1e6:.1f} MB\n")


def _check_sources(recipes: WeightMap, reader: StateReader, what: str) -> None:
    known = set(reader.keys())
    lost = [name for name in recipes.sources() if name not in known]
    if lost:
        raise CheckpointError(
            f"{reader.where} lacks {len(lost)} of {len(recipes.sources())} tensors that {what} reads, first "
            f"{lost[0]!r}; a map made for other names, or to be taken with `--inverse`, does not fit."
        )


def _counted(progress: Callable[[int, int, str], None], total: int) -> Callable[[int, str], None]:
    done = 0

    def tell(nbytes: int, name: str) -> None:
        nonlocal done
        done += nbytes
        progress(done, total, name)

    return tell


def lacking(recipes: WeightMap, target: Inventory) -> list[Weight]:
    """Tensors of the target that the map does not make, parameters first."""
    made = set(recipes.targets())
    left = [weight for weight in target.weights if weight.name not in made]
    return sorted(left, key=lambda weight: weight.kind != "parameter")


def tell_lacking(left: Sequence[Weight], target: Inventory) -> None:
    """Print which tensors of the target are not made."""
    if not left:
        sys.stdout.write(f"{target.where}: all {len(target.weights)} tensors are made.\n")
        return
    buffers = sum(weight.kind != "parameter" for weight in left)
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    of_these = f", {buffers} of them buffers" if buffers else ""
    sys.stdout.write(
        f"{target.where} still lacks {len(left)} of its {len(target.weights)} tensors{of_these}: "
        f"{', '.join(weight.name for weight in left[:_NAMED])}{more}.\n"
    )


def warn_of_buffers(source: NamedModel, left: Sequence[Weight]) -> None:
    """Warn of buffers of the source that were left out where the target lacks buffers."""
    weights = take_inventory(source.weights or "").weights
    count = sum(weight.kind != "parameter" for weight in weights)
    if count and any(weight.kind != "parameter" for weight in left):
        what = "1 buffer of the source was" if count == 1 else f"{count} buffers of the source were"
        sys.stderr.write(f"Warning: {what} left out; `--buffer_matching_mode lenient` maps what fits.\n")
