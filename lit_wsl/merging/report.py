"""What a merge did: the report, the metadata and the model card beside the weights."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import lit_wsl
from lit_wsl.merging.plan import MergePlan
from lit_wsl.merging.writers import Writer


@dataclass(frozen=True)
class MergeReport:
    """What a merge did."""

    output: Path
    """Directory that was written."""
    method: str
    """Registered name of the method."""
    params: dict[str, Any]
    """Its parameters, defaults filled in."""
    output_format: str
    """``adapter``, ``delta`` or ``model``."""
    merged: list[str]
    """Parameters that were merged."""
    copied: list[str]
    """Parameters that a model output took from the base unchanged."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Parameters that some sources have and that were not merged, with the reason."""
    excluded: list[str] = field(default_factory=list)
    """Parameters that the spec leaves out."""
    retained_energy: dict[str, float] = field(default_factory=dict)
    """Share of the squared norm that the factors of an adapter output hold, per parameter."""


def report_on(plan: MergePlan, target: Path, writer: Writer) -> MergeReport:
    """The report of a finished merge."""
    return MergeReport(
        output=target,
        method=plan.method.name,
        params=plan.method.params(),
        output_format=plan.spec.format,
        merged=list(plan.merged),
        copied=list(plan.copied),
        skipped=plan.skipped,
        excluded=plan.coverage.excluded,
        retained_energy={n: writer.retained_energy[n] for n in plan.merged if n in writer.retained_energy},
    )


def write_metadata(plan: MergePlan, report: MergeReport, directory: Path, counts: Mapping[str, Any]) -> None:
    """Write ``merge_metadata.json`` for programs and ``README.md`` for people.

    Args:
        plan: The merge.
        report: What it did.
        directory: Where to write.
        counts: What the method kept, if it was counted.
    """
    metadata = {
        "merge_method": report.method,
        "method_params": report.params,
        "merge_mode": plan.spec.merge_mode,
        "spec": plan.spec.to_dict(),
        "lambda_policy": asdict(policy) if (policy := plan.spec.policy) is not None else None,
        "output_format": report.output_format,
        "base": plan.spec.base,
        "source_adapters": [
            {"name": s.name, "path": s.where, "parameters": len(s.shapes), "renamed": s.renamed()} for s in plan.sources
        ],
        "num_adapters": len(plan.sources),
        "num_parameters": len(report.merged),
        "skipped": report.skipped,
        "excluded": report.excluded,
        "without_update_in": {n: [plan.sources[i].name for i in sorted(s)] for n, s in plan.coverage.absent.items()},
        "common_rows": plan.coverage.common_rows,
        "verified": plan.spec.verify,
        "retained_energy": report.retained_energy,
        **({f"{report.method}_stats": dict(counts)} if counts else {}),
        "timestamp": datetime.now(UTC).isoformat(),
        "lit_wsl": lit_wsl.__version__,
        "torch": torch.__version__,
    }
    (directory / "merge_metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    (directory / "README.md").write_text(_model_card(plan, report), encoding="utf-8")


def _model_card(plan: MergePlan, report: MergeReport) -> str:
    sources = "\n".join(f"- `{source.name}`" for source in plan.sources)
    params = ", ".join(f"{name} = {value}" for name, value in report.params.items()) or "none"
    return (
        f"---\ntags:\n- merge\n- lit-wsl\n---\n\n# Merged {report.output_format}\n\n"
        f"Method `{report.method}` (parameters: {params}).\n\nSources:\n\n{sources}\n\n"
        f"{len(report.merged)} parameters merged, {len(report.copied)} copied from the base, "
        f"{len(report.skipped) + len(report.excluded)} left out. Details: `merge_metadata.json`.\n"
    )
