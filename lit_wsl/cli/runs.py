"""What evaluated merges left behind: `runs list`, `runs show`, `runs compare`, `runs best`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

from lit_wsl.errors import CheckpointError

if TYPE_CHECKING:
    from lit_wsl.runs.layout import RunLayout
    from lit_wsl.runs.listing import Run

_RUN = "a path, `METHOD/TASKS/RUN`, a run id or its beginning, `best` or `latest`"


def _configure(parser: ArgumentParser) -> None:
    """Options of all commands on runs."""
    parser.add_argument("--artifacts_dir", type=str, default="artifacts", help="Folder of all outputs.")
    parser.add_argument("--method", type=str | None, default=None, help="Among runs of this merge method.")
    parser.add_argument("--tasks", nargs="+", type=str, default=[], help="Among runs that merged these, in any order.")
    parser.add_argument("--json", action="store_true", help="Print JSON for programs.")


def _configure_split(parser: ArgumentParser) -> None:
    split = Literal["train", "validation", "test"] | None
    parser.add_argument("--split", type=split, default=None, help="Scores of this split; default test first.")
    parser.add_argument(
        "--subset", type=str | None, default=None, help="Scores of the subset with this tag; default the whole split."
    )


def configure_list(parser: ArgumentParser) -> None:
    """Options of `runs list`."""
    _configure(parser)
    parser.add_argument("--limit", type=int, default=0, help="Newest runs to list; 0 lists all.")


def configure_show(parser: ArgumentParser) -> None:
    """Options of `runs show`."""
    parser.add_argument("run", type=str, help=f"The run: {_RUN}.")
    _configure(parser)
    parser.add_argument("--check", action="store_true", help="Hash the sources again: are they what was merged?")


def configure_compare(parser: ArgumentParser) -> None:
    """Options of `runs compare`."""
    parser.add_argument("runs", nargs="+", type=str, help=f"Two runs or more, each {_RUN}.")
    _configure(parser)
    _configure_split(parser)


def configure_best(parser: ArgumentParser) -> None:
    """Options of `runs best`."""
    _configure(parser)
    _configure_split(parser)


def run_list(options: Namespace) -> int:
    """List runs, newest first."""
    from lit_wsl.cli.run_tables import list_table

    runs = _found(options)[::-1]
    runs = runs[: options.limit] if options.limit > 0 else runs
    if options.json:
        return _print([run.to_dict() for run in runs])
    if not runs:
        sys.stdout.write(f"No runs in {_layout(options).root / 'merged'}.\n")
        return 0
    return list_table(runs)


def run_show(options: Namespace) -> int:
    """Show one run."""
    from lit_wsl.cli.run_tables import show_run
    from lit_wsl.runs.repeating import changed_inputs, how_to_repeat

    run = _one(options, options.run)
    inputs = changed_inputs(run) if options.check else None
    if not options.json:
        return show_run(run, inputs)
    checked = {} if inputs is None else {"inputs_now": inputs}
    return _print(
        {
            **run.to_dict(),
            "repeat": how_to_repeat(run),
            "metadata": run.metadata,
            "results": run.results,
            **checked,
        }
    )


def run_compare(options: Namespace) -> int:
    """Compare runs with the first that is named."""
    from lit_wsl.cli.run_tables import comparison_tables
    from lit_wsl.runs.comparison import compare_runs
    from lit_wsl.runs.layout import results_key

    key = results_key(options.split or "test", options.subset or "") if options.split or options.subset else None
    comparison = compare_runs([_one(options, name) for name in options.runs], key)
    return _print(comparison.to_dict()) if options.json else comparison_tables(comparison)


def run_best(options: Namespace) -> int:
    """Print the path of the run with the highest score."""
    from lit_wsl.cli.run_tables import told_score
    from lit_wsl.runs.listing import best_run

    subset = options.subset if options.subset is not None or options.split is None else ""
    best = best_run(_found(options), options.split, subset)
    if best is None:
        raise CheckpointError(
            f"No run in {_layout(options).root / 'merged'} has a score to compare; "
            "evaluate one with `lit-wsl merge --evaluate`, or look with `lit-wsl runs list`."
        )
    run, score = best
    if options.json:
        return _print({**run.to_dict(), "score": score})
    sys.stdout.write(f"{run.path}\n{told_score(score)}\n")
    return 0


def _layout(options: Namespace) -> "RunLayout":
    from lit_wsl.runs.layout import RunLayout

    return RunLayout(Path(options.artifacts_dir))


def _found(options: Namespace) -> list["Run"]:
    from lit_wsl.runs.listing import list_runs

    return list_runs(_layout(options), options.method, options.tasks)


def _one(options: Namespace, name: str) -> "Run":
    from lit_wsl.runs.listing import read_run
    from lit_wsl.runs.resolve import resolve_run

    return read_run(resolve_run(_layout(options), name, method=options.method, tasks=options.tasks))


def _print(value: Any) -> int:
    from lit_wsl.runs.strict import strict_json

    sys.stdout.write(strict_json(value))
    return 0


RUN_COMMANDS: list[tuple[str, str, Callable[[ArgumentParser], None], Callable[[Namespace], int]]] = [
    ("runs list", "list evaluated merges", configure_list, run_list),
    ("runs show", "show one: settings, scores, how to repeat it", configure_show, run_show),
    ("runs compare", "put runs side by side: scores, and settings that differ", configure_compare, run_compare),
    ("runs best", "name the run with the highest score", configure_best, run_best),
]
"""Name, summary, options and what it does."""
