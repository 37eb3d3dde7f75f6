"""What becomes of each changed tensor in an adapter: low-rank factors, a whole copy, or nothing, and why."""

from dataclasses import dataclass, field
from typing import Literal

from lit_wsl.comparing.models import ComparedModel
from lit_wsl.comparing.records import Finding
from lit_wsl.comparing.run import Comparison
from lit_wsl.state.adapter_layers import ModelLayers

Fate = Literal["factors", "stack", "part", "whole", "left out", "unchanged"]
_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""Modules that PEFT expects whole in every adapter of a task."""


@dataclass
class Fates:
    """Names in the base's files by what becomes of them."""

    factors: dict[str, Finding] = field(default_factory=dict)
    """Weights of single layers."""
    stacks: dict[str, Finding] = field(default_factory=dict)
    """Parameters with one matrix per expert."""
    parts: dict[str, Finding] = field(default_factory=dict)
    """Matrices that transformers stacks when it loads the model."""
    whole: dict[str, str] = field(default_factory=dict)
    """Tensors that are kept whole, with the reason."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Tensors that differ and that the adapter leaves as they are in the base, with the reason."""

    def low_rank(self) -> dict[str, Finding]:
        """All that is kept as factors."""
        return self.factors | self.stacks | self.parts

    def leave_out(self, name: str, reason: str) -> None:
        """Take a tensor out of the adapter."""
        for kept in (self.factors, self.stacks, self.parts):
            kept.pop(name, None)
        self.left_out[name] = reason


def fates_of(comparison: Comparison, base: ComparedModel, tuned: ComparedModel, layers: ModelLayers) -> Fates:
    """What becomes of every tensor that differs."""
    fates = Fates()
    resized = frozenset(comparison.architecture.resized())
    for finding in comparison.findings:
        fate, reason = _fate(finding, comparison, layers, is_resized=finding.name in resized)
        if fate == "whole":
            fates.whole[finding.name] = reason
        elif fate == "left out":
            fates.left_out[finding.name] = reason
        elif fate != "unchanged":
            {"factors": fates.factors, "stack": fates.stacks, "part": fates.parts}[fate][finding.name] = finding
    compared = {one.name for one in comparison.findings}
    for name, reason in comparison.architecture.failed.items():
        fates.left_out[name] = reason
    for name in comparison.architecture.shape_mismatch.keys() - compared:
        shapes = comparison.architecture.shape_mismatch[name]
        fates.left_out.setdefault(name, f"of shape {shapes['base']} in the base and {shapes['finetuned']} here")
    _one_sided(comparison, base, tuned, layers, fates)
    return fates


def _fate(finding: Finding, comparison: Comparison, layers: ModelLayers, *, is_resized: bool) -> tuple[Fate, str]:
    name, change = finding.name, finding.change
    if finding.failed or change is None:
        return "left out", finding.failed or "was not compared"
    loaded = layers.names.get(name, name)
    if is_resized:
        rows = {side: shape[0] for side, shape in comparison.architecture.shape_mismatch[name].items()}
        return "whole", f"the base has {rows['base']} rows, the fine-tuned model {rows['finetuned']}"
    if in_head(loaded, layers):
        return "whole", f"part of the head that PEFT keeps whole for {layers.task_type}"
    if change.is_equal or change.is_rounding:
        return "unchanged", ""
    if len(change.shape) < 2:
        skipped = comparison.settings.skip_1d
        return ("left out", "a vector, and vectors are skipped") if skipped else ("whole", "a vector")
    if not finding.extracted:
        return _dense(finding, loaded, layers)
    return _low_rank(finding, loaded, layers)


def _dense(finding: Finding, loaded: str, layers: ModelLayers) -> tuple[Fate, str]:
    """A changed matrix without factors: kept where there is one of it, since such a layer is trained whole."""
    reason = "the change is not of low rank"
    if any(part.isdecimal() for part in loaded.split(".")) or finding.name in layers.lost:
        return "left out", reason
    return "whole", f"{reason}, and the layer is not one of a stack"


def _low_rank(finding: Finding, loaded: str, layers: ModelLayers) -> tuple[Fate, str]:
    module, _, leaf = loaded.rpartition(".")
    if finding.name in layers.parts:
        return "part", ""
    if finding.name in layers.lost:
        return "left out", "transformers computes other parameters of it when it loads the model"
    if len(finding.extracted) > 1:
        return "stack", ""
    if leaf == "weight" and layers.kind(module) != "other":
        return "factors", ""
    return "whole", "PEFT has no low-rank adapter for such a layer"


def in_head(loaded: str, layers: ModelLayers) -> bool:
    """Whether PEFT expects this tensor whole in every adapter of the model's task."""
    heads = _HEADS.get(layers.task_type or "", ())
    return any(part in heads for part in loaded.split(".")[:-1])


def _one_sided(
    comparison: Comparison, base: ComparedModel, tuned: ComparedModel, layers: ModelLayers, fates: Fates
) -> None:
    """Tensors that one model alone has; an output embedding that was untied fits the module that the base shares."""
    tied = {other: name for name, others in layers.ties.items() for other in others}
    infos, theirs = base.infos(), tuned.infos()
    for name in comparison.architecture.only_in_finetuned:
        source = tied.get(name)
        if source in infos and infos[str(source)].shape == theirs[name].shape:
            fates.whole[name] = f"the base shares it with {source}"
        else:
            fates.left_out[name] = "the base has no such tensor"
    used = {name for names in layers.tensors.values() for name in names}
    for name in comparison.architecture.only_in_base:
        if layers.names.get(name, name) in used or name in layers.parts:  # others are read by nothing, as old buffers
            fates.left_out[name] = "the fine-tuned model has no such tensor"
