"""The `merge-sweep` command: search the parameters of a merge."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

from lit_wsl.cli.evaluating import merge_evaluation
from lit_wsl.cli.merge_config import DERIVED, LISTS, Split, add_lists, merge_options
from lit_wsl.cli.parser import CommandParser
from lit_wsl.errors import ConfigError, WrongUsage
from lit_wsl.merging.config import MergeConfig

if TYPE_CHECKING:
    from lit_wsl.sweep.records import Record
    from lit_wsl.sweep.run import Progress, SweepResult

_FLAGS = {"overwrite": "Replace an earlier `output`.", "save_merged": "Merge at the best point and write it."}
_Search = Literal["grid", "bayes", "tpe", "cmaes", "random", "nsga2"]
MOST_SHOWN = 10


def configure_sweep(parser: ArgumentParser) -> None:
    """Options of `merge-sweep`: those of the configuration, and short ones for its search."""
    if isinstance(parser, CommandParser):
        parser.translate = merge_options
    add_lists(parser)
    for name, text in _FLAGS.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--split", type=Split | None, default=None, help="Rows to measure on; default `validation`.")
    parser.add_argument(
        "--grid", action="append", type=str, default=[], metavar="NAME=V1,V2", help="Values to try; give it repeatedly."
    )
    parser.add_argument("--search_type", type=_Search | None, default=None, help="How points are chosen.")
    parser.add_argument("--budget", type=int | None, default=None, help="Points to measure, by all processes together.")
    parser.add_argument("--seed", type=int | None, default=None, help="Seed of the search.")
    parser.add_argument("--workers", type=int | None, default=None, help="Processes of this command; default one.")
    parser.add_argument("--storage", type=str | None, default=None, help="Where the study lives: a file, or a URL.")
    parser.add_argument("--allow_negative", action="store_true", help="A task may fall below the base.")
    parser.add_argument("--artifacts_dir", type=str, default="artifacts", help="Folder of all outputs.")
    parser.add_argument("--no_report", action="store_true", help="Draw no plots and no page.")
    skipped = {*LISTS, *DERIVED, *_FLAGS}
    parser.add_class_arguments(MergeConfig, skip=skipped, as_group=False)


def run_merge_sweep(options: Namespace) -> int:
    """Search, or take a search up again, and say what was found."""
    config = sweep_config(options.as_dict())
    from lit_wsl.cli.checkpoints import quiet_transformers

    quiet_transformers()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # the same for further workers
    config = merge_evaluation(config, Namespace(eval_split=None))
    from lit_wsl.runs.layout import RunLayout
    from lit_wsl.sweep.run import run_sweep

    layout = RunLayout(Path(options.artifacts_dir))
    result = run_sweep(config, layout=layout, workers=options.workers, watch=tell_points, report=not options.no_report)
    return sweep_summary(result)


def sweep_config(options: dict[str, Any]) -> MergeConfig:
    """The configuration that the options describe.

    Raises:
        WrongUsage: If sources or a search are missing, or two options contradict each other.
    """
    values = {one.name: options[one.name] for one in fields(MergeConfig)}
    values["method_params"] = values["method_params"] or {}
    if not any(values[name] for name in ("adapters", "models", "deltas", "slices")):
        raise WrongUsage("A sweep needs `--config FILE`, or `--adapters A B --method NAME --grid lambda=0.3,0.5`.")
    values["search"] = _search(values["search"], options)
    if options["allow_negative"]:
        values["constraint_nonnegative"] = False
    return MergeConfig(**values)


def _search(given: Any, options: dict[str, Any]) -> dict[str, Any] | None:
    """The search of the configuration, changed by the short options."""
    search = dict(given or {})
    grid = dict(_grid_entry(text) for text in options["grid"])
    kind = options["search_type"] or search.get("type") or "grid"
    if grid and kind != "grid":
        raise WrongUsage(f"The search is of type {kind!r}, which has no grid; pass `--search_type grid`.")
    if grid:
        search["grid"] = {**(search.get("grid") or {}), **grid}
    changes = {name: options[name] for name in ("budget", "seed", "storage") if options[name] is not None}
    if not search and not changes and options["search_type"] is None:
        return None
    return {**search, **changes, "type": kind}


def _grid_entry(text: str) -> tuple[str, list[Any]]:
    """One `NAME=V1,V2` of the command line."""
    name, equals, values = text.partition("=")
    if not name.strip() or not equals or not values.strip():
        raise WrongUsage(f"`--grid` takes NAME=V1,V2, such as `lambda=0.3,0.5`, got {text!r}.")
    return name.strip(), [_number_or_text(value.strip()) for value in values.split(",") if value.strip()]


def _number_or_text(text: str) -> Any:
    """A whole number; a float where there is a point or an exponent; else the text."""
    try:
        return float(text) if any(sign in text.lower() for sign in ".e") else int(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)


def with_searched_parameters(config: MergeConfig, options: Namespace) -> MergeConfig:
    """The configuration of a direct merge; where its optimizer is `bayes`, with the parameters that a search finds.

    Args:
        config: Of `lit-wsl merge`.
        options: Its options; with `--dry_run` nothing is searched.

    Raises:
        ConfigError: If several processes were launched.
        MergeError: If the search finds nothing.
    """
    if config.optimizer is None or config.optimizer.type != "bayes":
        return config
    if options.dry_run:
        return replace(config, optimizer=None)
    from lit_wsl.cli.checkpoints import quiet_transformers
    from lit_wsl.merging.ranks import is_launched
    from lit_wsl.runs.layout import RunLayout
    from lit_wsl.sweep.direct import optimise_merge
    from lit_wsl.sweep.paths import at_point

    if is_launched():
        raise ConfigError("A merge of several processes cannot search; find the parameters with `lit-wsl merge-sweep`.")
    quiet_transformers()
    searched = merge_evaluation(config, Namespace(eval_split=None))
    _, result = optimise_merge(searched, layout=RunLayout(Path(options.artifacts_dir)), watch=tell_points)
    sys.stdout.write(f"{_status(result)}\n{result.path}\n")
    assert result.best_params is not None
    return at_point(config, result.best_params)


def tell_points(progress: "Progress") -> None:
    """Write a line for each point that ended."""
    first = progress.finished - len(progress.new) + 1
    whole = "" if progress.budget in (None, float("inf")) else f" of {progress.budget:.0f}"
    for at, one in enumerate(progress.new, first):
        best = "" if progress.best is None else f", best {progress.best.score:.4f}"
        sys.stderr.write(f"point {max(at, 1)}{whole}: {_outcome(one)}{best}; {_params(one)}\n")


def _outcome(one: "Record") -> str:
    if one.score is None:
        return f"failed ({one.error})"
    return f"{one.score:.4f}" if one.feasible else f"{one.score:.4f} (a task is below the base)"


def _params(one: "Record") -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in one.params.items()) or "no parameters"


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def sweep_summary(result: "SweepResult") -> int:
    """Print what a sweep found; returns the exit code."""
    from lit_wsl.sweep.records import ordinals

    scored = [one for one in result.records if one.score is not None]
    if scored:
        _table(scored, result.best, ordinals(result.records))
    sys.stdout.write(f"{_status(result)}\n{result.path}\n")
    if result.report is not None:
        sys.stdout.write(f"{result.report}\n")
    for line in _follow_ups(result):
        sys.stdout.write(f"{line}\n")
    if result.failed:
        sys.stderr.write(f"lit-wsl: {len(result.failed)} points failed, first: {result.failed[0].error}\n")
    if result.status == "interrupted":
        return 130
    merged = result.summary.get("merged") or {}
    return 1 if merged.get("error") or (result.failed and not scored) else 0


def _table(scored: Sequence["Record"], best: "Record | None", places: Mapping[int, int]) -> None:
    from rich.table import Table

    from lit_wsl.cli.console import table_console

    tasks = list(dict.fromkeys(task for one in scored for task in one.deltas))
    table = Table("point", "parameters", "lowest", "mean", *tasks, title="Interference deltas, the best points first")
    for column in table.columns[2:]:
        column.justify = "right"
    for one in sorted(scored, key=lambda one: (one.feasible, one.rank), reverse=True)[:MOST_SHOWN]:
        deltas = [one.deltas.get(task) for task in tasks]
        cells = [_delta(value) for value in (one.score, one.mean, *deltas)]
        is_best = best is not None and one.number == best.number
        style = "bold" if is_best else None if one.feasible else "dim"
        table.add_row(str(places[one.number]), _params(one), *cells, style=style)
    table_console(markup=False).print(table)


def _delta(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _status(result: "SweepResult") -> str:
    told = {
        "complete": "Complete",
        "early_stopped": f"Stopped early: {result.reason}",
        "interrupted": "Interrupted; the same command continues it",
        "running": "Points are still measured elsewhere; what measures the last one finishes the sweep",
    }[result.status]
    if result.best is None:
        return f"{told}. No point may be chosen: each failed or left a task below the base (see `--allow_negative`)."
    return f"{told}. Best: {_params(result.best)}, lowest {result.best.score:.4f}, mean {_delta(result.best.mean)}."


def _follow_ups(result: "SweepResult") -> list[str]:
    lines = []
    elsewhere, merged = result.summary.get("post_sweep_eval"), result.summary.get("merged")
    if elsewhere:
        told = elsewhere["error"] or f"lowest {_delta(elsewhere['score'])}, mean {_delta(elsewhere['mean'])}"
        lines.append(f"The best point on {elsewhere['split']}: {told}")
    if merged:
        lines.append(f"Merged: {merged['output']}" + (f" failed: {merged['error']}" if merged.get("error") else ""))
    return lines
