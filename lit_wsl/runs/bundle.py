"""A run bundle: everything to read, compare and repeat one merge and its evaluation."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from lit_wsl.runs.identity import claim_run, merge_hash, merge_tag, optimizer_label, source_hashes
from lit_wsl.runs.layout import RunLayout, results_name, split_key
from lit_wsl.runs.locking import held
from lit_wsl.runs.metadata import METADATA, load_merge_metadata
from lit_wsl.runs.registry import register_run
from lit_wsl.runs.scores import Results, Score, metrics_of, score_of
from lit_wsl.runs.strict import plain, read_mapping, write_json, write_text

SUMMARY, METRICS, CONFIG = "summary.json", "metrics.json", "config.yaml"
RESULTS = "eval_results_"
_PACKAGES = {"lit_wsl": "lit-wsl"} | {n: n for n in ("torch", "lightning", "transformers", "peft", "safetensors")}


@dataclass(frozen=True)
class RunBundle:
    """One merge, and what was measured of it."""

    method: str
    sources: Sequence[str | Path]
    """What was merged, in order: names of tasks or paths."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the method."""
    results: Mapping[str, Results] = field(default_factory=dict)
    """By split, or ``SPLIT__SUBSET`` for a subset of it (:func:`lit_wsl.runs.results_key`): task to metrics,
    ``interference_delta``, or ``{"error": …}``."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Of the merge: ``merge_mode``, ``lambda_policy``, ``transforms``, ``optimizer`` and what else belongs to it."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """More for ``summary.json``; it wins over what is derived."""
    config: str | Mapping[str, Any] | None = None
    """The resolved configuration, as YAML text or as a mapping."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Hash of every source's content, of :func:`lit_wsl.runs.hash_inputs`."""
    seed: int | None = None
    tag: str | None = None
    """Merge tag; default by content."""
    directory: Path | None = None
    """Directory that :func:`lit_wsl.runs.claim_run` made before, such as one with the merged weights."""
    output: Path | None = None
    """Folder that holds ``runs``, instead of the one of the layout."""
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))

    def merge_tag(self, layout: RunLayout) -> str:
        """The tag: what was given, else by the content of sources and settings."""
        if self.tag:
            return self.tag
        known = source_hashes(self.sources, self.inputs)
        content = merge_hash(self.method, plain(self.params), known, plain(self.metadata), self.inputs)
        return merge_tag(self.method, self.params, self.sources, content, layout.root)

    def home(self, layout: RunLayout) -> Path:
        """Folder that holds ``runs``, ``best`` and ``latest``."""
        if self.directory is not None:
            return self.directory.parent.parent if self.directory.parent.name == "runs" else self.directory.parent
        return self.output or layout.home(self.method, self.sources)


def write_bundle(layout: RunLayout, bundle: RunBundle) -> Path:
    """Write a run bundle, the summary last, and file it among the runs of its home.

    Into a run that is finished already only results are added: it keeps its time, its settings and its summary, and
    earlier results of the same rows that differ stay beside the new ones.

    Returns:
        The run's directory.

    Raises:
        CheckpointError: If something cannot be written.
    """
    tag = bundle.merge_tag(layout)
    label = optimizer_label(bundle.metadata.get("optimizer")) if bundle.output is None else ""
    run = bundle.directory or claim_run(bundle.home(layout) / "runs", bundle.timestamp, tag, label)
    with held(run / SUMMARY):
        summary = _write(layout, bundle, run, tag)
        if run.parent.name == "runs":
            register_run(bundle.home(layout), _registry_entry(run, summary))
    return run


def _write(layout: RunLayout, bundle: RunBundle, run: Path, tag: str) -> dict[str, Any]:
    """Write all files; returns the summary."""
    earlier = read_mapping(run / SUMMARY) if (run / SUMMARY).is_file() else {}
    noted, new = load_merge_metadata(run), _metadata(layout, bundle, run, tag)
    write_json(run / METADATA, {**new, **noted} if earlier else {**noted, **new})
    config = _config_text(bundle.config)
    if config is not None and not earlier:
        write_text(run / CONFIG, config)
    for key, results in bundle.results.items():
        path = run / results_name(*split_key(key))
        _keep_earlier(path, results)
        write_json(path, results_content(tag, *split_key(key), bundle, results))
    everything = read_results(run)
    scores = [asdict(score_of(results, *split_key(key))) for key, results in everything.items()]
    summary = {**run_summary(layout, bundle, run, tag), **earlier, "scores": scores}
    write_json(run / METRICS, _flat_metrics(everything))
    write_json(run / SUMMARY, summary)
    return summary


def read_results(run: Path) -> dict[str, Results]:
    """Results of a run by split, or ``SPLIT__SUBSET``.

    Raises:
        CheckpointError: If a file is damaged.
    """
    files = sorted(run.glob(f"{RESULTS}*.json"))
    return {file.stem.removeprefix(RESULTS): _task_results(read_mapping(file)) for file in files}


def results_content(tag: str, split: str, subset: str, bundle: RunBundle, results: Results) -> dict[str, Any]:
    """Content of a file of results."""
    score = score_of(results, split, subset)
    return {
        "timestamp": bundle.timestamp,
        "merge_tag": tag,
        "merge_method": bundle.method,
        "split": split,
        "eval_tag": subset or None,
        "score": score.lowest,
        "score_details": score_details(score),
        "versions": versions(),
        "results": results,
    }


def score_details(score: Score) -> dict[str, Any]:
    """The figures behind a score, for a file."""
    return {
        "min_interference_delta": score.lowest,
        "mean_interference_delta": score.mean,
        "failed_tasks": list(score.failed),
    }


def run_summary(layout: RunLayout, bundle: RunBundle, run: Path, tag: str, key: str | None = None) -> dict[str, Any]:
    """Content of ``summary.json``, of the first split unless ``key`` names another."""
    key = key or next(iter(bundle.results), None)
    split, subset = split_key(key) if key else (None, "")
    results = bundle.results[key] if key else {}
    return {
        "timestamp": bundle.timestamp,
        "merge_tag": tag,
        "merge_method": bundle.method,
        "params": dict(bundle.params),
        "source_tasks": layout.source_tasks(bundle.sources),
        "evaluated_tasks": sorted(results),
        "split": split,
        "eval_tag": subset or None,
        "results_path": str(run / f"{RESULTS}{key}.json") if key else None,
        **bundle.summary,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of what a result depends on."""
    found = {"python": sys.version.split()[0]}
    for name, package in _PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _metadata(layout: RunLayout, bundle: RunBundle, run: Path, tag: str) -> dict[str, Any]:
    return {
        **bundle.metadata,
        "merge_method": bundle.method,
        "merge_tag": tag,
        "run_id": run.name,
        "params": dict(bundle.params),
        "method_params": dict(bundle.params),
        "source_tasks": layout.source_tasks(bundle.sources),
        "sources": [str(source) for source in bundle.sources],
        "inputs": dict(bundle.inputs),
        "seed": bundle.seed,
        "versions": versions(),
        "timestamp": bundle.timestamp,
    }


def _config_text(config: str | Mapping[str, Any] | None) -> str | None:
    if config is None or isinstance(config, str):
        return config
    text: str = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    return text


def _keep_earlier(path: Path, results: Results) -> None:
    """Keep one copy of other results of the same split: ``earlier_N_eval_results_SPLIT.json``."""
    if not path.exists() or read_mapping(path).get("results") == plain(results):
        return
    for number in count(1):
        aside = path.with_name(f"earlier_{number}_{path.name}")
        if not aside.exists():
            write_text(aside, path.read_text(encoding="utf-8"))
            return
        if aside.read_bytes() == path.read_bytes():
            return


def _task_results(content: Mapping[str, Any]) -> Results:
    """Task to results, with or without a head of its own."""
    nested = content.get("results")
    found = nested if isinstance(nested, Mapping) else content
    return {task: result for task, result in found.items() if isinstance(result, Mapping)}


def _flat_metrics(everything: Mapping[str, Results]) -> dict[str, float]:
    """``SPLIT/TASK/METRIC`` of everything measured, and the scores."""
    flat: dict[str, float] = {}
    for key, results in everything.items():
        for task, result in results.items():
            flat.update({f"{key}/{task}/{name}": value for name, value in metrics_of(result).items()})
        details = score_details(score_of(results, *split_key(key)))
        flat.update({f"{key}/{name}": value for name, value in details.items() if isinstance(value, float)})
    return flat


def _registry_entry(run: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    config = run / CONFIG
    resolved = config.read_text(encoding="utf-8") if config.is_file() else str(summary["merge_tag"])
    return {
        "run_id": run.name,
        "timestamp": summary["timestamp"],
        "config_hash": hashlib.md5(resolved.encode(), usedforsecurity=False).hexdigest()[:12],
        "metrics": read_mapping(run / METRICS),
        "hyperparameters_summary": {"merge_method": summary.get("merge_method"), **(summary.get("params") or {})},
        "status": "failed" if any(score["failed"] for score in summary["scores"]) else "completed",
        "merge_tag": summary["merge_tag"],
        "scores": summary["scores"],
    }
