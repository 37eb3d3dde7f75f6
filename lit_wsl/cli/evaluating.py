"""`evaluate-merged`: measure a merge, in memory or saved, on tasks; and `merge --evaluate`."""

import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from lit_wsl.cli.learning import configure_replay, replayed
from lit_wsl.cli.merge_config import LISTS, Split, add_lists, direct_merge, merge_options
from lit_wsl.cli.parser import CommandParser
from lit_wsl.cli.resources import config_file
from lit_wsl.errors import ConfigError, WrongUsage
from lit_wsl.merging.config import MergeConfig
from lit_wsl.state.yaml_text import read_yaml

if TYPE_CHECKING:
    from lit_wsl.evaluation import Evaluator, MergeEvaluation
    from lit_wsl.runs.layout import RunLayout

_OWN = ("tasks", "split", "output", "overwrite", "save_merged", "search", "post_sweep_eval")
"""Fields of a configuration that are spelled otherwise here, or that measuring leaves aside."""
REGISTRY = "merge/tasks.yaml"
"""The registry that ships with the package: the tasks of the demo."""


def evaluation_options(config: str) -> str | None:
    """Options of ``evaluate-merged`` as YAML, from a configuration of a merge; None for what is such YAML."""
    given = _mapping(config) or {}
    if "registry" in given or isinstance(given.get("tasks"), list):  # options of this command, not of a merge
        return None
    translated = merge_options(config)
    content = _mapping(config if translated is None else translated)
    if content is None:
        return translated
    registry = content.pop("tasks", None)
    kept = {name: value for name, value in content.items() if name not in _OWN or name == "split"}
    if content.get("save_merged"):
        kept["save"] = True
    return yaml.safe_dump({**kept, **({"registry": registry} if registry is not None else {})}, sort_keys=False)


def _mapping(text: str) -> dict[str, Any] | None:
    """The mapping in a file or a text of YAML; None where there is none, which the parser then says."""
    is_file = "\n" not in text and Path(text).expanduser().is_file()
    try:
        content = read_yaml(Path(text).expanduser().read_text(encoding="utf-8") if is_file else text)
    except yaml.YAMLError:
        return None
    return content if isinstance(content, dict) else None


def configure_evaluate(parser: ArgumentParser) -> None:
    """Options of `evaluate-merged`."""
    if isinstance(parser, CommandParser):
        parser.translate = evaluation_options
    add = parser.add_argument
    add("--adapter_path", type=str | None, default=None, help="Evaluate what lies here: a run, or an output of merge.")
    add("--run_id", type=str | None, default=None, help="Evaluate this run: `best`, `latest`, an id or its beginning.")
    add("--tasks", nargs="+", type=str, default=[], help="Merge the adapters of these tasks.")
    add("--lambda", type=float | None, default=None, help="Short for `--method_params.lambda`.")
    add("--scale", type=float | None, default=None, help="Short for `--method_params.scale`.")
    add("--registry", type=dict[str, dict] | str | None, default=None, help="YAML file of tasks; default the demo's.")
    add_lists(parser)
    add("--split", type=Split | None, default=None, help="Rows to evaluate on; default `test`.")
    add("--batch_size", type=int | None, default=None, help="Rows in a batch, instead of what the registry says.")
    add("--save", action="store_true", help="Keep the merged weights in the run's directory.")
    configure_replay(parser)
    add("--confusion_matrix", action="store_true", default=True, help="Draw confusion matrices (the default).")
    add("--no_confusion_matrix", action="store_true", help="Draw none.")
    add("--no_save_results", action="store_true", help="Print the results and write nothing.")
    add("--no_compute_interference_baselines", action="store_true", help="Use baselines of earlier runs only.")
    add("--artifacts_dir", type=str, default="artifacts", help="Folder of all outputs.")
    add("--device", type=str | None, default=None, help="Where to run; default a GPU if there is one.")
    parser.add_class_arguments(MergeConfig, skip={*LISTS, *_OWN}, as_group=False)


def configure_merge_evaluation(parser: ArgumentParser) -> None:
    """Options of `merge` that evaluate what was merged."""
    parser.add_argument("--evaluate", action="store_true", help="Measure the merged model on its tasks.")
    parser.add_argument("--eval_split", type=Split | None, default=None, help="Rows for `--evaluate`, before `split`.")
    parser.add_argument("--artifacts_dir", type=str, default="artifacts", help="Folder for what `--evaluate` finds.")


def run_evaluate(options: Namespace) -> int:
    """Measure, print, and say by the exit code whether every task could be measured."""
    from lit_wsl.cli.checkpoints import quiet_transformers
    from lit_wsl.runs.layout import RunLayout

    quiet_transformers()
    layout = RunLayout(Path(options.artifacts_dir))
    if options.adapter_path or options.run_id:
        return evaluation_table(_saved(options, layout))
    config = _config(options)
    return evaluation_table(_in_memory(config, options, layout))


def evaluate_after_merge(config: MergeConfig, options: Namespace, output: Path | None) -> int:
    """The second half of `merge --evaluate`.

    Args:
        config: Of :func:`merge_evaluation`.
        options: Those of :func:`configure_merge_evaluation`.
        output: What was merged, if it was written; else the merge is done in memory.
    """
    from lit_wsl.cli.checkpoints import quiet_transformers
    from lit_wsl.evaluation import evaluate_merge
    from lit_wsl.evaluation.states import model_state
    from lit_wsl.runs.layout import RunLayout

    quiet_transformers()
    layout = RunLayout(Path(options.artifacts_dir))
    evaluator = _evaluator(config.registry, config.origin, config.evaluated_tasks, None, None)
    state = None if output is None else model_state(output, config.origin)
    keep = config.save_merged and output is None
    return evaluation_table(evaluate_merge(config, evaluator, layout, state=state, save_merged=keep))


def merge_evaluation(config: MergeConfig, options: Namespace) -> MergeConfig:
    """The configuration that `merge --evaluate` measures: with a base, tasks and the split.

    Raises:
        ConfigError: If one is not known. Called before the merge, so that nothing is merged in vain.
    """
    from lit_wsl.evaluation.merged import known_tasks

    changed = replace(_with_base(config), split=options.eval_split or config.split)
    tasks = changed.tasks if changed.tasks is not None else str(config_file(REGISTRY))
    changed = replace(changed, tasks=tasks).with_registry()
    known_tasks(changed, changed.registry)
    return changed


def _config(options: Namespace) -> MergeConfig:
    """The merge in memory that the options describe."""
    from lit_wsl.evaluation.merged import known_tasks

    given = options.as_dict()
    names = [f.name for f in fields(MergeConfig) if f.name not in _OWN]
    values: dict[str, Any] = {name: given[name] for name in names}
    params = {name: given[name] for name in ("lambda", "scale") if given[name] is not None}
    values["method_params"] = {**(values["method_params"] or {}), **params}
    if options.tasks:
        values["adapters"] = options.tasks
    if options.no_compute_interference_baselines:
        values["compute_missing_interference_baselines"] = False
    config = MergeConfig(**values, tasks=_registry(options), split=options.split or "test").with_registry()
    config = _with_base(config)
    known_tasks(config, config.registry)
    config = replayed(config, options)
    direct_merge(config)
    return config


def _in_memory(config: MergeConfig, options: Namespace, layout: "RunLayout") -> "MergeEvaluation":
    from lit_wsl.evaluation import evaluate_merge

    evaluator = _evaluator(config.registry, config.origin, config.evaluated_tasks, options.batch_size, options.device)
    return evaluate_merge(
        config,
        evaluator,
        layout,
        save_results=not options.no_save_results,
        confusion=options.confusion_matrix and not options.no_confusion_matrix,
        save_merged=options.save,
    )


def _saved(options: Namespace, layout: "RunLayout") -> "MergeEvaluation":
    """What lies in a directory, or a run by its id, measured."""
    from lit_wsl.evaluation import SubsetSpec, evaluate_saved
    from lit_wsl.evaluation.saved import base_of_saved, merged_tasks
    from lit_wsl.evaluation.tasks import read_tasks
    from lit_wsl.runs.resolve import resolve_run
    from lit_wsl.state.locate import model_path

    if options.adapter_path:
        path = model_path(options.adapter_path)
    else:
        method = options.method if options.method != MergeConfig.method else None
        path = resolve_run(layout, options.run_id, method=method, tasks=options.tasks or None, lam=options["lambda"])
    if options.save:
        raise WrongUsage(f"{path} is saved already; leave `--save` out.")
    registry, base = _registry(options), base_of_saved(path, options.base)
    known = read_tasks(registry)
    wanted = options.eval_tasks or [name for name in merged_tasks(path) if name in known]
    evaluator = _evaluator(known, base, wanted, options.batch_size, options.device, registry)
    return evaluate_saved(
        path,
        evaluator,
        layout,
        split=options.split or "test",
        eval_tasks=options.eval_tasks,
        subset=SubsetSpec.read(options.eval_subset),
        base=base,
        compute_baselines=not options.no_compute_interference_baselines,
        save_results=not options.no_save_results,
        confusion=options.confusion_matrix and not options.no_confusion_matrix,
    )


def _registry(options: Namespace) -> Any:
    return options.registry if options.registry is not None else str(config_file(REGISTRY))


def _with_base(config: MergeConfig) -> MergeConfig:
    """The configuration with a base; where it names none, the one that its first adapter names."""
    from lit_wsl.evaluation.states import base_of

    if config.origin is not None or not config.adapters:
        return config
    base = base_of(config.to_merge_spec().adapters[0])
    if base is None:
        raise ConfigError(f"Adapter {config.adapters[0]} names no base model; pass `--base DIR`.")
    return replace(config, base=base)


def _evaluator(
    known: Mapping[str, Any],
    base: str | None,
    wanted: list[str],
    batch_size: int | None,
    device: str | None,
    registry: Any = None,
) -> "Evaluator":
    """The evaluator of the wanted tasks, of those that the registry knows."""
    from lit_wsl.evaluation import load_tasks, make_evaluator

    source = known if registry is None else registry
    tasks = load_tasks(source, base=base, names=[name for name in wanted if name in known], batch_size=batch_size)
    return make_evaluator(tasks, base, device)


def evaluation_table(evaluation: "MergeEvaluation") -> int:
    """Print what was measured; 1 and one line if a task failed."""
    from rich.table import Table

    from lit_wsl.cli.console import table_console

    measured_on = f"{evaluation.split} rows" + (f", {evaluation.subset}" if evaluation.subset else "")
    table = Table("task", "metric", "base", "adapter", "merged", "kept", "rows", title=f"Measured on {measured_on}")
    for column in table.columns[2:]:
        column.justify = "right"
    for task, report in evaluation.report.items():
        table.add_row(task, *_cells(report))
    table_console(markup=False).print(table)
    score = evaluation.score
    told = [f"{len(evaluation.results)} tasks in {evaluation.seconds:.1f} s"]
    if score.lowest is not None:
        told.append(f"lowest interference delta {score.lowest:.4f}, mean {score.mean:.4f}")
    where = f"{evaluation.run}: " if evaluation.run else ""
    sys.stdout.write(f"{where}{', '.join(told)}\n")
    if not evaluation.errors:
        return 0
    reasons = "; ".join(f"{task}: {reason.rstrip('.')}" for task, reason in evaluation.errors.items())
    sys.stderr.write(f"lit-wsl: {len(evaluation.errors)} of {len(evaluation.report)} tasks failed: {reasons}.\n")
    return 1


def _cells(report: Mapping[str, Any]) -> list[str]:
    if "error" in report:
        return ["failed", "–", "–", "–", "–", "–"]
    meta, primary = report.get("interference_delta_meta") or {}, report["primary"]
    figures = [meta.get("base"), meta.get("task_adapter"), report["metrics"].get(primary)]
    delta = report.get("interference_delta")
    return [
        primary or "–",
        *("–" if figure is None else f"{figure:.4f}" for figure in figures),
        "–" if delta is None else f"{delta:.3f}",
        str(report["rows"]),
    ]
