"""Write what an evaluation found: run bundle, unified results, metrics per task, index, confusion matrices."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_wsl.evaluation.confusion import write_confusion
from lit_wsl.evaluation.result import MergeEvaluation
from lit_wsl.merging.config import MergeConfig
from lit_wsl.merging.layers import follows_layers
from lit_wsl.merging.method import build_method
from lit_wsl.merging.run import merge
from lit_wsl.merging.spec import MergeSpec
from lit_wsl.runs.bundle import RunBundle
from lit_wsl.runs.identity import claim_run, hash_inputs, optimizer_label
from lit_wsl.runs.layout import RunLayout, results_key
from lit_wsl.runs.record import record_run


def bundle_of(config: MergeConfig, directory: Path | None = None) -> RunBundle:
    """What a run of this configuration is made of, still without results.

    Args:
        config: The merge.
        directory: Run directory that was made before.
    """
    spec = config.to_merge_spec()
    names = config.source_tasks
    sources = names if len(set(names)) == len(spec.sources) else spec.sources
    return RunBundle(
        method=spec.method,
        sources=sources,
        params=effective_params(spec),
        metadata=_metadata(config, spec),
        config=config.with_registry().to_dict(),
        inputs=_inputs(spec),
        seed=_seed(spec),
        directory=directory,
        output=None if config.output_dir is None else Path(config.output_dir).expanduser(),
    )


def with_weights(bundle: RunBundle, config: MergeConfig, layout: RunLayout) -> RunBundle:
    """The bundle with a run directory of its own, where the merged weights lie already.

    Raises:
        LitWslError: If the merge cannot be written; no run is left behind then.
    """
    label = optimizer_label(bundle.metadata.get("optimizer"))
    run = claim_run(bundle.home(layout) / "runs", bundle.timestamp, bundle.merge_tag(layout), label)
    try:
        merge(config.to_merge_spec(), output=str(run))
    except BaseException:
        with suppress(OSError):  # not empty: something else lies there
            run.rmdir()
        raise
    return replace(bundle, directory=run)


def record(evaluation: MergeEvaluation, layout: RunLayout, bundle: RunBundle, *, confusion: bool) -> MergeEvaluation:
    """Write an evaluation; returns it with the places of its run and its pictures."""
    key = results_key(evaluation.split, evaluation.subset)
    bundle = replace(bundle, results={key: evaluation.report})
    run = record_run(layout, bundle)
    files = []
    for result in evaluation.results.values() if confusion else ():
        if result.confusion is not None:
            path = confusion_file(layout, bundle, evaluation, result.task)
            files += write_confusion(path, result, f"{bundle.merge_tag(layout)}, {key}")
    return replace(evaluation, run=run, files=files)


def confusion_file(layout: RunLayout, bundle: RunBundle, evaluation: MergeEvaluation, task: str) -> Path:
    """The picture beside a task's metrics."""
    tag = bundle.merge_tag(layout)
    metrics = layout.per_task_metrics(bundle.method, bundle.sources, evaluation.split, task, tag, evaluation.subset)
    return metrics.with_name(metrics.stem.replace("_metrics", "_confusion_matrix") + ".png")


def effective_params(spec: MergeSpec) -> dict[str, Any]:
    """The method's parameters with its defaults filled in, or as given where they differ by layer."""
    given = spec.parameters
    if any(map(follows_layers, given.values())):
        return dict(given)
    return build_method(spec.method, given).params()


def _metadata(config: MergeConfig, spec: MergeSpec) -> dict[str, Any]:
    whole = config.to_dict()
    names = ("merge_mode", "lambda_policy", "transforms", "optimizer", "rules", "include", "exclude", "base")
    told = {**{name: whole[name] for name in names}, "spec": spec.to_dict()}
    learned = config.learned_from
    return told if learned is None else {**told, "optimizer": learned.get("optimizer"), "learned_from": learned}


def _inputs(spec: MergeSpec) -> dict[str, str]:
    """Hashes of the sources and the base; stacks of layers name their models in their own way."""
    named = [*spec.adapters, *spec.models, *spec.deltas]
    named += [source.model for one in spec.slices for source in one.sources]
    return hash_inputs(dict.fromkeys([*named, *filter(None, [spec.base])]))


def _seed(spec: MergeSpec) -> int | None:
    seed = spec.parameters.get("seed")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None
