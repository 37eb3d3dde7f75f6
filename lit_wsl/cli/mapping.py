"""The `map` command: which tensors of one model make which of another, shown, saved, proven and applied."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

from lit_wsl.errors import ConfigError, WrongUsage
from lit_wsl.state.sizes import read_size

if TYPE_CHECKING:
    from lit_wsl.cli.named_model import NamedModel
    from lit_wsl.mapper.result import MappingResult
    from lit_wsl.state.remap import WeightMap

_MODEL = "a checkpoint, a model directory, its config.json, `package.module:Class`, or `timm:NAME`"
_REPORTS = (".json", ".html", ".htm")
_NOT_WRITTEN = (".pt", ".pth", ".bin", ".ckpt", ".json", ".gguf", ".npz", ".h5", ".onnx")


def configure_map(parser: ArgumentParser) -> None:
    """Options of the command: what is mapped, how, and what is made of it."""
    parser.add_argument(
        "source", nargs="?", type=str | None, default=None, help=f"The model with the weights: {_MODEL}."
    )
    parser.add_argument("target", nargs="?", type=str | None, default=None, help="The model that shall have them.")
    parser.add_argument("--tree", action="store_true", help="Show the model, or both, as a tree, and leave.")
    parser.add_argument(
        "--buffer_matching_mode",
        type=Literal["exclude", "lenient", "strict"],
        default="exclude",
        help="Leave buffers out, map those that fit, or reject modules whose buffers do not fit.",
    )
    parser.add_argument("--threshold", type=float | None, default=None, help="Least score of a match; default 0.25.")
    parser.add_argument(
        "--strategy",
        type=Literal["optimal", "best_match", "greedy", "conservative", "shape_only"],
        default="optimal",
        help="`conservative` keeps matches from 0.75 only; `shape_only` counts no likeness of names.",
    )
    parser.add_argument("--verify", action="store_true", help="Run both models and compare what they return.")
    parser.add_argument(
        "--dummy_input",
        nargs="+",
        type=str,
        default=[],
        metavar="SPEC",
        help="Input for --verify: `int64[2,8]` or `input_ids:int64[2,8]`; guessed by default.",
    )
    parser.add_argument("--report", type=str | None, default=None, help="Write the mapping as .json or .html.")
    parser.add_argument("--save", type=str | None, default=None, help="Write the map as .json, for --map.")
    parser.add_argument("--map", type=str | None, default=None, help="Apply this saved map instead of finding one.")
    parser.add_argument("--inverse", action="store_true", help="Take the saved map the other way.")
    parser.add_argument(
        "--apply",
        type=str | None,
        default=None,
        help="Write the mapped weights: a .safetensors file, or a model directory where TARGET has a config.json.",
    )
    parser.add_argument(
        "--shard_size", type=str | None, default=None, help="Largest file of a directory, for instance 500MB."
    )
    parser.add_argument(
        "--min_coverage",
        type=float,
        default=0.5,
        help="Models are unrelated when less than this share of both sides is mapped.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace earlier outputs.")
    parser.add_argument("--dry_run", action="store_true", help="Write nothing; say what --apply would write.")


def run_map(options: Namespace) -> int:
    """Map, or apply a map that was saved."""
    _check_usage(options)
    if options.tree:
        return _show_trees(options)
    return _use_map(options) if options.map is not None else _find_map(options)


def _check_usage(options: Namespace) -> None:
    """Refuse options that do not go together, before anything is opened."""
    if not options.source:
        raise WrongUsage("Name a SOURCE and a TARGET, or a model with `--tree`.")
    if not options.target and not options.tree and options.map is None:
        raise WrongUsage("TARGET is missing; name the model that shall have the weights, or a saved `--map`.")
    if options.map is None and options.inverse:
        raise WrongUsage("--inverse needs a saved `--map`.")
    if options.map is not None and not (options.apply or options.save):
        raise WrongUsage("--map needs `--apply OUT`, or `--save` for its inverse.")
    if options.map is not None and (options.verify or options.report):
        raise WrongUsage("--map takes no --verify and no --report; they go with SOURCE and TARGET.")
    if options.map is not None and Path(options.map).suffix.lower() != ".json":
        raise WrongUsage(
            f"--map {options.map}: name a .json file that `--save` wrote; checkpoints are SOURCE and TARGET."
        )
    if options.dummy_input and not options.verify:
        raise WrongUsage("--dummy_input goes with --verify.")
    endings = (("save", (".json",)), ("report", _REPORTS))
    for name, suffixes in endings:
        if options[name] is not None and Path(options[name]).suffix.lower() not in suffixes:
            raise WrongUsage(f"--{name} {options[name]}: name a file that ends in {' or '.join(suffixes)}.")
    if options.apply is not None and Path(options.apply).suffix.lower() in _NOT_WRITTEN:
        raise WrongUsage(f"--apply {options.apply}: name a file that ends in .safetensors, or a directory.")
    if options.shard_size is not None and not _is_directory(options):
        raise WrongUsage("--shard_size goes with a directory as `--apply OUT`.")
    if options.shard_size is not None:
        read_size(options.shard_size)
    if not 0.0 <= options.min_coverage <= 1.0:
        raise WrongUsage(f"`0 <= min_coverage <= 1` must hold, got {options.min_coverage}.")


def _as_stored(recipes: "WeightMap", source: "NamedModel") -> "WeightMap":
    """A saved map in the names of the source's files, where it has those of the module that they become."""
    from lit_wsl.state.reader import open_state

    if source.weights is None or source.build is None:
        return recipes
    reader, needed = open_state(source.weights), set(recipes.sources())
    if needed.issubset(reader.keys()) or not needed.issubset((module := source.on_meta()).state_dict()):
        return recipes
    from lit_wsl.cli.stored_names import StoredNames

    return StoredNames.of(module, reader).as_sources(recipes)


def _in_names_of_files(result: "MappingResult", source: "NamedModel", target: "NamedModel") -> "WeightMap":
    """The recipes in the names of files, where a model that was run has files.

    Raises:
        CheckpointError: If it is not certain how transformers makes a tensor of the model from the file.
    """
    from lit_wsl.cli.stored_names import StoredNames
    from lit_wsl.state.reader import open_state

    recipes = result.recipes
    if result.source_module is not None and source.weights is not None:
        recipes = StoredNames.of(result.source_module, open_state(source.weights)).as_sources(recipes)
    if result.target_module is not None and target.weights is not None:
        recipes = StoredNames.of(result.target_module, open_state(target.weights)).as_targets(recipes)
    return recipes


def _is_directory(options: Namespace) -> bool:
    return options.apply is not None and Path(options.apply).suffix != ".safetensors"


def _show_trees(options: Namespace) -> int:
    from lit_wsl.cli.named_model import find_model
    from lit_wsl.mapper.inventory import take_inventory
    from lit_wsl.mapper.tables import print_hierarchy

    models = [find_model(text) for text in (options.source, options.target) if text]
    for model in models:
        print_hierarchy(take_inventory(model.weights or model.on_meta(), model.text))
    return 0


def _use_map(options: Namespace) -> int:
    """Apply or turn a saved map."""
    from lit_wsl.cli.applying import check_outputs, lacking, tell_lacking, write_weights
    from lit_wsl.cli.named_model import find_model
    from lit_wsl.mapper.inventory import take_inventory
    from lit_wsl.state.remap import WeightMap

    source = find_model(options.source)
    target = find_model(options.target) if options.target else None
    _check_apply(source, target, options)
    check_outputs(options, [model for model in (source, target) if model is not None])
    recipes = WeightMap.load(options.map)
    recipes = _as_stored(recipes.inverse() if options.inverse else recipes, source)
    if options.save and not options.dry_run:
        recipes.save(options.save)
    if options.apply:
        write_weights(recipes, (source, target), options, f"the map {options.map}")
        if target is not None:
            wanted = take_inventory(target.weights or target.on_meta(), target.text)
            tell_lacking(lacking(recipes, wanted), wanted)
    return 0


def _find_map(options: Namespace) -> int:
    from lit_wsl.cli.applying import check_outputs
    from lit_wsl.cli.named_model import find_model
    from lit_wsl.mapper.tables import print_analysis, print_mapping

    source, target = find_model(options.source), find_model(options.target)
    _check_apply(source, target, options)
    check_outputs(options, [source, target])
    result, proof = _verified(source, target, options) if options.verify else (_plain(source, target, options), None)
    print_mapping(result)
    print_analysis(result)
    if options.report and not options.dry_run:
        from lit_wsl.mapper.report import write_report

        write_report(result, Path(options.report))
    _check_related(result, options)
    if proof is not None:
        _check_proven(proof)
    if proof is None:
        _warn_ambiguous(result, [model.text for model in (source, target) if model.build is None])
    return _use_result(result, source, target, options)


def _use_result(result: "MappingResult", source: "NamedModel", target: "NamedModel", options: Namespace) -> int:
    """Save the map and apply it."""
    from lit_wsl.cli.applying import lacking, tell_lacking, warn_of_buffers, write_weights
    from lit_wsl.mapper.inventory import take_inventory

    recipes = _in_names_of_files(result, source, target) if options.save or options.apply else result.recipes
    if options.save and not options.dry_run:
        recipes.save(options.save)
    if options.apply:
        write_weights(recipes, (source, target), options, "the map")
        wanted = take_inventory(result.target_module or target.weights or "", target.text)
        left = lacking(result.recipes, wanted)
        tell_lacking(left, wanted)
        if options.buffer_matching_mode == "exclude":
            warn_of_buffers(source, left)
    return 0


def _check_apply(source: "NamedModel", target: "NamedModel | None", options: Namespace) -> None:
    """Refuse to apply where there are no weights, or nothing that describes the directory."""
    if options.apply and source.weights is None:
        raise WrongUsage(f"--apply needs weights, and {source.text} has none; save the map, and apply it with `--map`.")
    if _is_directory(options) and (target is None or target.config is None):
        why = f"{target.text} has none" if target is not None else "none is named"
        raise WrongUsage(
            f"--apply {options.apply}: a directory needs a TARGET with a config.json, and {why}; name a file that ends "
            "in .safetensors."
        )


def _plain(source: "NamedModel", target: "NamedModel", options: Namespace) -> "MappingResult":
    """The mapping from headers, or from modules without memory."""
    from lit_wsl.mapper.mapper import WeightMapper

    sides: dict[str, Any] = {}
    for side, model in (("source", source), ("target", target)):
        if model.weights is not None:
            sides[f"{side}_params"] = model.weights
        else:
            sides[f"{side}_module"] = model.on_meta()
    mapper = WeightMapper(**sides, buffer_matching_mode=options.buffer_matching_mode)
    return mapper.suggest_mapping(options.threshold, strategy=options.strategy)


def _verified(source: "NamedModel", target: "NamedModel", options: Namespace) -> tuple["MappingResult", Any]:
    """The mapping of two modules in memory, and what running them showed."""
    for model in (source, target):
        if model.build is None:
            raise WrongUsage(
                f"--verify runs both models, and {model.text} holds weights only; give its class, save the map, and "
                "apply it with `--map`."
            )
    from lit_wsl.cli.dummy_input import described_input, guessed_input
    from lit_wsl.mapper.mapper import WeightMapper

    modules = source.in_memory(), target.in_memory()
    dummy = described_input(options.dummy_input) if options.dummy_input else guessed_input(*modules)
    mapper = WeightMapper(*modules, buffer_matching_mode=options.buffer_matching_mode, dummy_input=dummy)
    proof = mapper.suggest_mapping(options.threshold, strategy=options.strategy).verify(dummy)
    return proof.result, proof


def _check_related(result: "MappingResult", options: Namespace) -> None:
    """Refuse to go on with models that have little in common.

    Raises:
        ConfigError: If nothing, or too little of both sides is mapped.
    """
    used, made = len(set(result.recipes.sources())), len(result.recipes.targets())
    sides = f"{used} of {len(result.source.weights)} source and {made} of {len(result.target.weights)} target tensors"
    if not used:
        raise ConfigError(f"No tensor of {result.source.where} is mapped to {result.target.where}; there is no map.")
    if max(result.coverage, result.target_coverage) < options.min_coverage:
        raise ConfigError(
            f"These models seem unrelated: {sides} are mapped, so no map was saved or applied; lower the bar with "
            "`--min_coverage 0`."
        )


def _check_proven(proof: Any) -> None:
    readings = f"{proof.tried} reading{'s' if proof.tried != 1 else ''} run"
    if proof.is_proven:
        sys.stdout.write(f"Proven: both models return the same, relative error {proof.error:.1e}, {readings}.\n")
        return
    where = f", first at {proof.first_divergence}" if proof.first_divergence else ""
    raise ConfigError(
        f"Not proven: the models differ by {proof.error:.1e}{where}, {readings}; no map was saved or applied."
    )


def _warn_ambiguous(result: "MappingResult", without_class: list[str]) -> None:
    """Say what is ambiguous, and how it may be settled: models can be run, mere weights cannot."""
    doubtful = [match for match in result.matches if match.is_ambiguous]
    if not doubtful:
        return
    first = ", ".join(f"{match.entry.sources[0]} → {match.entry.targets[0]}" for match in doubtful[:2])
    settle = "settle them with `--verify`"
    if without_class:
        settle += (
            f", for which {' and '.join(without_class)} must be named as a model (a directory with a config.json, or "
            "`package.module:Class`)"
        )
    sys.stderr.write(
        f"Warning: {len(doubtful)} of {len(result.matches)} recipes are ambiguous, first {first}; {settle}, or drop "
        "them with a higher `--threshold`.\n"
    )
