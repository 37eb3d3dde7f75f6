"""Write what a comparison extracted: an adapter that PEFT loads, a flat file of factors, and what they leave out."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_wsl.comparing.adapter_fate import Fates, fates_of
from lit_wsl.comparing.adapter_plan import AdapterPlan, Factors, Planned, Planner
from lit_wsl.comparing.models import ComparedModel, MappedModel
from lit_wsl.comparing.records import Finding
from lit_wsl.comparing.run import FACTORS, Comparison
from lit_wsl.comparing.stored import stored_fields
from lit_wsl.errors import CheckpointError
from lit_wsl.state.adapter_files import peft_config
from lit_wsl.state.adapter_layers import ModelLayers, guess_layers, module_targets
from lit_wsl.state.publish import published_directory, published_file, scratch_beside
from lit_wsl.state.safetensors import TensorInfo
from lit_wsl.state.writer import ShardedWriter

ADAPTER, FLAT, METADATA = "adapter", "extracted_lora_weights.safetensors", "lora_metadata.json"


@dataclass(frozen=True)
class ExtractionReport:
    """What was extracted, and what was not."""

    files: list[Path] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    """Rank of every extracted tensor; the largest one of a stack."""
    errors: dict[str, float] = field(default_factory=dict)
    """Norm of what the factors leave out over that of the update, by tensor."""
    total_error: float = 0.0
    """The same of all that differs, where what is kept whole leaves out nothing and what is left out everything."""
    parameters: int = 0
    """Entries of all factors."""
    kept_whole: dict[str, str] = field(default_factory=dict)
    """Tensors that the adapter holds as they are, with the reason."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Tensors that differ and that the adapter leaves as the base has them, with the reason."""
    notes: list[str] = field(default_factory=list)
    """What a user must know to load the adapter."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written."""
        return not self.files

    def sentence(self) -> str:
        """The result in one sentence."""
        others = len(self.kept_whole) + len(self.left_out)
        if self.is_empty and not others:
            return "Nothing to extract: the models do not differ by more than rounding."
        if self.is_empty:
            return f"Nothing to extract: {others} tensors differ, and none by a change of low rank that was asked for."
        ranks = sorted(set(self.ranks.values()))
        rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        return (
            f"Extracted {len(self.ranks)} tensors at {rank}, {self.parameters:,} entries, relative error "
            f"{self.total_error:.2g}; {len(self.kept_whole)} kept whole, {len(self.left_out)} left out."
        )


def write_extracted(
    comparison: Comparison,
    base: ComparedModel,
    tuned: ComparedModel,
    directory: Path,
    layers: ModelLayers | None = None,
) -> ExtractionReport:
    """Write the factors that a comparison left in a directory, and remove these.

    Args:
        comparison: What was found; its factors are in ``directory``.
        base: The model before.
        tuned: The model after.
        directory: Receives ``adapter/``, the flat file and its description.
        layers: The modules of the base as it is loaded; by default those that its ``config.json`` gives, or what
            names and shapes tell.

    Raises:
        CheckpointError: If a file cannot be written, or a tensor that is kept whole cannot be read.
    """
    layers = layers or _layers_of(base)
    fates = fates_of(comparison, base, tuned, layers)
    factors = Factors(directory, comparison.architecture.comparable())
    low_rank = fates.low_rank()
    if not factors.has(low_rank) and (earlier := read_extraction(directory)) is not None:
        shutil.rmtree(directory / FACTORS, ignore_errors=True)  # all was written, and a resumed run asks again
        return earlier
    files, notes = [], []
    if low_rank and isinstance(base, MappedModel):
        notes.append("The base was compared under the names of a weight map, which PEFT does not know: no adapter.")
    elif low_rank:
        plan = Planner(fates, layers, base, tuned, factors).plan()
        notes += _notes(plan, comparison, fates, layers)
        files += _write_adapter(plan, base, layers, directory)
    low_rank = {name: finding for name, finding in low_rank.items() if name not in fates.whole}
    if low_rank:
        files.append(_write_flat(comparison, low_rank, factors, directory))
    report = _report(comparison, low_rank, fates, files, notes)
    if low_rank:
        report.files.append(_write_metadata(report, comparison, directory))
    shutil.rmtree(directory / FACTORS, ignore_errors=True)
    return report


def read_extraction(directory: Path) -> ExtractionReport | None:
    """What an earlier call of :func:`write_extracted` wrote in a directory; None if nothing was.

    Raises:
        CheckpointError: If its description is damaged.
    """
    path = directory / METADATA
    if not path.is_file():
        return None
    names = (f"{ADAPTER}/adapter_config.json", f"{ADAPTER}/adapter_model.safetensors", FLAT, METADATA)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = {
            "ranks": content["ranks"],
            "errors": content["reconstruction_error"],
            "total_error": content["total_reconstruction_error"],
            "parameters": content["parameters"],
            "kept_whole": content["kept_whole"],
            "left_out": content["left_out"],
            "notes": content["notes"],
        }
        files = [directory / name for name in names if (directory / name).is_file()]
        return ExtractionReport(files=files, **stored_fields(ExtractionReport, values))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}); extract the adapter again.") from error


def _layers_of(base: ComparedModel) -> ModelLayers:
    from lit_wsl.models.adapter_layers import describe_layers  # transformers takes seconds to import

    shapes = {name: info.shape for name, info in base.infos().items()}
    home = base.path if base.path.is_dir() else base.path.parent
    return describe_layers(home, shapes) or guess_layers(shapes)


def _write_flat(comparison: Comparison, low_rank: Mapping[str, Finding], factors: Factors, directory: Path) -> Path:
    """One file of factors in the orientation of the stored weights."""
    planned: dict[str, Planned] = {}
    for name, finding in low_rank.items():
        assert finding.change is not None
        shape, short = finding.change.shape, name.removesuffix(".weight")
        several = len(finding.extracted) > 1
        sides = tuple(shape[1:]) if several else (shape[0], math.prod(shape[1:]))
        for expert, one in enumerate(finding.extracted):
            stem = f"{short}.{expert}" if several else short
            for end, at, size in (("lora_A", 0, (one.rank, sides[1])), ("lora_B", 1, (sides[0], one.rank))):

                def pieces(name: str = name, expert: int = expert, at: int = at) -> Iterator[tuple[int, Tensor]]:
                    yield 0, factors.read(name, expert)[at]

                planned[f"{stem}.{end}"] = Planned(TensorInfo(size, torch.float32), pieces)
    about = {"format": "pt", "base": comparison.base, "finetuned": comparison.finetuned, "update": "lora_B @ lora_A"}
    path = directory / FLAT
    with published_file(path) as partial, scratch_beside(partial) as scratch:
        _write(scratch, FLAT.removesuffix(".safetensors"), planned, about)
        (scratch / FLAT).rename(partial)
    return path


def _write_adapter(plan: AdapterPlan, base: ComparedModel, layers: ModelLayers, directory: Path) -> list[Path]:
    if not plan.ranks():
        return []
    home = base.path.parent if base.path.is_file() and (base.path.parent / "config.json").is_file() else base.path
    config = peft_config(
        plan.ranks(),
        module_targets(plan.modules, layers.kinds) if plan.modules else [],
        base_model=str(home.resolve()),
        task_type=layers.task_type,
        fan_in_fan_out=plan.turned,
        bias="all" if plan.biases else "none",
        modules_to_save=sorted(plan.copied) or None,
        target_parameters=sorted(plan.parameters) or None,
        ensure_weight_tying=plan.ties,
    )
    with published_directory(directory / ADAPTER, overwrite=True) as scratch:
        _write(scratch, "adapter_model", plan.tensors, {"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True, allow_nan=False)
        (scratch / "adapter_config.json").write_text(f"{text}\n", encoding="utf-8")
    return [directory / ADAPTER / name for name in ("adapter_config.json", "adapter_model.safetensors")]


def _write(directory: Path, stem: str, planned: Mapping[str, Planned], metadata: Mapping[str, str]) -> None:
    """One safetensors file, tensor by tensor."""
    infos = {key: one.info for key, one in planned.items()}
    size = 1 + sum(info.nbytes for info in infos.values())
    with ShardedWriter(directory, infos, stem=stem, shard_bytes=size, metadata=metadata) as writer:
        for key, one in planned.items():
            for start, piece in one.pieces():
                writer.write(key, piece, start)
            writer.finish(key)


def _notes(plan: AdapterPlan, comparison: Comparison, fates: Fates, layers: ModelLayers) -> list[str]:
    notes = []
    resized = [name for name in comparison.architecture.resized() if name in fates.whole]
    for name in resized:
        rows = comparison.architecture.shape_mismatch[name]["finetuned"][0]
        notes.append(f"{name} has {rows} rows: call `resize_token_embeddings({rows})` on the base before loading.")
    if plan.parameters:
        notes.append("The experts are adapted through PEFT's `target_parameters`, which PEFT 0.17 and later load.")
    if not layers.is_known:
        notes.append("The base has no config.json that transformers knows: its layers were told by name and shape.")
    return notes


def _report(
    comparison: Comparison, low_rank: Mapping[str, Finding], fates: Fates, files: list[Path], notes: list[str]
) -> ExtractionReport:
    extracted = {name: finding for name, finding in low_rank.items() if name not in fates.left_out}
    residuals = {name: _residual(finding) for name, finding in extracted.items()}
    norms = {one.name: one.change.diff_norm for one in comparison.findings if one.change is not None}
    lost = [norms.get(name, 0.0) for name in fates.left_out] + list(residuals.values())
    total = math.hypot(*(norms.get(name, 0.0) for name in [*extracted, *fates.whole, *fates.left_out]))
    return ExtractionReport(
        files=files,
        ranks={name: max(one.rank for one in finding.extracted) for name, finding in extracted.items()},
        errors={name: residual / norms[name] if norms[name] else 0.0 for name, residual in residuals.items()},
        total_error=math.hypot(*lost) / total if total else 0.0,
        parameters=sum(one.parameters for finding in extracted.values() for one in finding.extracted),
        kept_whole=dict(fates.whole),
        left_out=dict(fates.left_out),
        notes=notes,
    )


def _residual(finding: Finding) -> float:
    """Norm of what the factors of a tensor leave out."""
    assert finding.change is not None
    if len(finding.extracted) == 1:
        return finding.extracted[0].relative_error * finding.change.diff_norm
    # The record of an expert has its error over an equal share of the norm of the whole stack.
    errors = math.hypot(*(one.weight_error for one in finding.extracted)) / math.sqrt(len(finding.extracted))
    return errors * _tuned_norm(finding)


def _tuned_norm(finding: Finding) -> float:
    """Norm of the fine-tuned tensor, from those of the base and the difference and from the cosine."""
    change = finding.change
    assert change is not None
    # |d|^2 = |w|^2 + |w0|^2 - 2 c |w| |w0| has one root for an angle below 90 degrees and a small change.
    largest = max(change.base_norm, change.diff_norm) or 1.0  # the square of a large norm is none
    base, diff = change.base_norm / largest, change.diff_norm / largest
    inner = change.cosine * base
    return largest * (inner + math.sqrt(max(0.0, inner**2 - base**2 + diff**2)))


def _write_metadata(report: ExtractionReport, comparison: Comparison, directory: Path) -> Path:
    content: dict[str, Any] = {
        "base": comparison.base,
        "finetuned": comparison.finetuned,
        "layers": list(report.ranks),
        "ranks": report.ranks,
        "alpha": report.ranks,
        "scale": 1.0,
        "parameters": report.parameters,
        "reconstruction_error": report.errors,
        "total_reconstruction_error": report.total_error,
        "kept_whole": report.kept_whole,
        "left_out": report.left_out,
        "notes": report.notes,
        "settings": comparison.settings.to_json(),
    }
    with published_file(directory / METADATA) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return directory / METADATA
