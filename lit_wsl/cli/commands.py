"""The plain commands. Only names and options stand here; the work is imported when a command runs."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from lit_wsl.cli.comparing import (
    configure_analyze,
    configure_compare,
    configure_extract,
    run_analyze,
    run_compare,
    run_extract,
)
from lit_wsl.cli.evaluating import (
    configure_evaluate,
    configure_merge_evaluation,
    evaluate_after_merge,
    merge_evaluation,
    run_evaluate,
)
from lit_wsl.cli.finding import with_found_parameters
from lit_wsl.cli.inspecting import INSPECT_COMMANDS
from lit_wsl.cli.mapping import configure_map, run_map
from lit_wsl.cli.merge_config import (
    DERIVED,
    LISTS,
    Split,
    add_lists,
    configure_migrate,
    direct_merge,
    merge_options,
    run_migrate,
)
from lit_wsl.cli.parser import CommandParser
from lit_wsl.cli.renaming import configure_rename, run_rename
from lit_wsl.cli.reporting import configure_report, run_report
from lit_wsl.cli.runs import RUN_COMMANDS
from lit_wsl.cli.sweeping import configure_sweep, run_merge_sweep
from lit_wsl.merging.config import MergeConfig


@dataclass(frozen=True)
class Command:
    """A word (or two) on the command line, its options, and what it does."""

    name: str
    summary: str
    configure: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]


def _configure_merge(parser: ArgumentParser) -> None:
    if isinstance(parser, CommandParser):
        parser.translate = merge_options
    parser.add_argument("--list_methods", action="store_true", help="List the merge methods and leave.")
    add_lists(parser)
    parser.add_argument("--split", type=Split | None, default=None, help="Rows to evaluate on; default `test`.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier output.")
    parser.add_argument("--dry_run", action="store_true", help="Say what would be merged, read and written, and leave.")
    configure_merge_evaluation(parser)
    parser.add_class_arguments(MergeConfig, skip={*LISTS, *DERIVED, "overwrite"}, as_group=False)


def _run_merge(options: Namespace) -> int:
    if options.list_methods:
        return _list_methods()
    from lit_wsl.cli.progress import progress_bar
    from lit_wsl.cli.tables import merge_summary
    from lit_wsl.merging.ranks import is_launched, leads_launch
    from lit_wsl.merging.run import merge

    values: dict[str, Any] = {f.name: options.as_dict()[f.name] for f in fields(MergeConfig)}
    values["method_params"] = values["method_params"] or {}
    config = with_found_parameters(MergeConfig(**values), options)
    spec = direct_merge(config)
    if options.dry_run:
        from lit_wsl.cli.tables import merge_preview

        return merge_preview(spec)
    evaluated = merge_evaluation(config, options) if options.evaluate else None
    if evaluated is not None and not spec.output:
        return evaluate_after_merge(evaluated, options, None)
    with progress_bar("merging") if leads_launch() else nullcontext() as progress:
        report = merge(spec, progress=progress, distributed=is_launched())
    if not leads_launch():
        return 0
    code = merge_summary(report)
    return code if evaluated is None else evaluate_after_merge(evaluated, options, report.output)


def _list_methods() -> int:
    from lit_wsl.cli.tables import method_table

    return method_table()


def _configure_prepare(parser: ArgumentParser) -> None:
    parser.add_argument("tasks", nargs="*", help="Built-in tasks; all when none is named.")
    parser.add_argument(
        "--cache", type=str, default=None, help="Cache directory; default $LIT_WSL_CACHE, or ~/.cache/lit_wsl."
    )


def _run_prepare(options: Namespace) -> int:
    from lit_wsl.training.tasks import TASKS, prepare_tasks

    cache = Path(options.cache).expanduser() if options.cache else None
    for task in prepare_tasks(options.tasks or list(TASKS), cache):
        sys.stdout.write(f"{task.name}: {len(task.labels)} classes, {task.directory}\n")
    return 0


def _configure_demo(parser: ArgumentParser) -> None:
    parser.add_argument("--output", type=str, default="artifacts/demo", help="Directory for everything it makes.")
    parser.add_argument(
        "--tasks", nargs="+", type=str, default=["intent", "tweets", "sentiment"], help="Tasks to train."
    )
    parser.add_argument("--threads", type=int, default=0, help="Threads to compute with; 0 takes one per core.")
    parser.add_argument("--limit_train", type=int, default=None, help="Train on so many rows a task only.")


def _run_demo(options: Namespace) -> int:
    from lit_wsl.cli.demo import Demo, DemoSettings

    Demo(DemoSettings(Path(options.output).expanduser(), options.tasks, options.threads, options.limit_train)).run()
    return 0


def _configure_export(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=str, help="Checkpoint; for `safetensors` any file of weights.")
    parser.add_argument("--output", type=str, required=True, help="Directory to write.")
    parser.add_argument(
        "--format",
        type=Literal["hf", "adapter", "safetensors"],
        default="hf",
        help="A transformers directory with adapters folded in, a PEFT directory of the adapters, or the state dict.",
    )
    parser.add_argument("--base", type=str | None, default=None, help="The base model; default `model` of the run.")
    parser.add_argument("--backbone", type=str | None, default=None, help="Which backbone, where there are several.")
    parser.add_argument(
        "--dtype",
        type=Literal["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="Stored dtype; `auto` keeps each tensor's.",
    )
    parser.add_argument("--shard_size", type=str, default="5GB", help="Largest file, for instance 500MB.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier output.")
    parser.add_argument("--verify", type=bool, default=True, help="Read everything back and compare.")


def _run_export(options: Namespace) -> int:
    from lit_wsl.state.sizes import read_size

    shard_bytes = read_size(options.shard_size)
    from lit_wsl.cli.checkpoints import export_summary, quiet_transformers
    from lit_wsl.cli.progress import progress_bar
    from lit_wsl.models.export import export_checkpoint

    quiet_transformers()
    with progress_bar("exporting") as progress:
        report = export_checkpoint(
            options.checkpoint,
            options.output,
            format=options.format,
            base=options.base,
            backbone=options.backbone,
            dtype=options.dtype,
            shard_bytes=shard_bytes,
            overwrite=options.overwrite,
            verify=options.verify,
            progress=progress,
        )
    return export_summary(report)


def _configure_completion(parser: ArgumentParser) -> None:
    parser.add_argument("shell", type=Literal["bash", "zsh"], help="The shell that will run the script.")


def _run_completion(options: Namespace) -> int:
    from lit_wsl.cli.completion import completion_script, trainer_options

    known = {name: _option_names(command) for name, command in COMMANDS.items()}
    trainer = {name: trainer_options(name) for name in TRAINER_COMMANDS}
    sys.stdout.write(completion_script(options.shell, {**trainer, **known}))
    return 0


def _option_names(command: Command) -> list[str]:
    parser = CommandParser(prog=command.name)
    command.configure(parser)
    return sorted({option for action in parser._actions for option in action.option_strings if option.startswith("--")})


TRAINER_COMMANDS = {
    "fit": "train a LightningModule",
    "validate": "run the validation loop",
    "test": "run the test loop",
    "predict": "run the prediction loop",
    "gather": "gather what merging by fisher or regmean needs of a tuned model",
}

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("merge", "merge LoRA adapters or full models on one base", _configure_merge, _run_merge),
        Command("merge-sweep", "search the parameters of a merge", configure_sweep, run_merge_sweep),
        Command("migrate-config", "rewrite a former merge configuration", configure_migrate, run_migrate),
        Command("evaluate-merged", "measure a merge on tasks, in memory or saved", configure_evaluate, run_evaluate),
        Command("export", "write a checkpoint for transformers, PEFT or safetensors", _configure_export, _run_export),
        *(Command(*one) for one in INSPECT_COMMANDS),
        Command("map", "find which weights of one model make those of another, and apply it", configure_map, run_map),
        Command("compare", "say what changed between two models, and where", configure_compare, run_compare),
        Command("extract-lora", "take an adapter out of a fine-tuned model", configure_extract, run_extract),
        Command("analyze", "show what an earlier comparison found", configure_analyze, run_analyze),
        Command("rename", "give the tensors of a checkpoint other names", configure_rename, run_rename),
        Command("data prepare", "fetch and prepare the built-in text tasks", _configure_prepare, _run_prepare),
        *(Command(*one) for one in RUN_COMMANDS),
        Command("report", "put runs side by side on one page of HTML", configure_report, run_report),
        Command("completion", "print a completion script for bash or zsh", _configure_completion, _run_completion),
        Command("demo", "train three adapters, merge them, measure every task", _configure_demo, _run_demo),
    )
}
