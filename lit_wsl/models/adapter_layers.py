"""The modules of a transformers model as an adapter sees them, from its configuration alone."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_wsl.errors import CheckpointError
from lit_wsl.models.adapter_base import names_in_files
from lit_wsl.models.architecture import converted_names, current_names, make_architecture, parameter_shapes
from lit_wsl.models.export_hf import read_backbone
from lit_wsl.state.adapter_layers import ExpertPart, Kind, ModelLayers

_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "Model": "FEATURE_EXTRACTION",
}


def describe_layers(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> ModelLayers | None:
    """The modules of the model that transformers makes of a directory.

    Args:
        directory: Where ``config.json`` is.
        shapes: Names and shapes of the tensors in the model's files.

    Returns:
        None where there is no configuration, or transformers has no such model.
    """
    if not (directory / "config.json").is_file():
        return None
    try:
        model = make_architecture(read_backbone(directory), str(directory))
    except CheckpointError:
        return None
    return layers_of(model, shapes)


def layers_of(model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]) -> ModelLayers:
    """The modules of a model.

    Args:
        model: It may be on the meta device.
        shapes: Names and shapes of the tensors in its files.
    """
    known = parameter_shapes(model)
    found = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    names = {theirs: ours for ours, theirs in names_in_files(found, model, known).items() if ours in known}
    parts = dict(_parts(list(shapes), model))
    modules = dict(model.named_modules())
    return ModelLayers(
        kinds={name: _kind(name, modules) for name in modules if name},
        tensors={name: tuple(f"{name}.{key}" for key in m.state_dict()) for name, m in modules.items() if name},
        names={theirs: ours for theirs, ours in names.items() if theirs != ours},
        ties=_ties(model),
        parts=parts,
        lost=frozenset(n for n in shapes if n not in names and n not in parts and _is_source(n, model)),
        stacks_turned=frozenset(n for n, m in modules.items() if getattr(m, "is_transposed", False)),
        task_type=_task(model),
    )


def _task(model: PreTrainedModel) -> str | None:
    name = type(model).__name__
    task = next((task for end, task in _TASKS.items() if name.endswith(end)), None)
    if task == "SEQ_2_SEQ_LM" and not model.config.is_encoder_decoder:
        return None
    if task == "FEATURE_EXTRACTION" and model.main_input_name != "input_ids":  # for text alone
        return None
    return task


def _kind(name: str, modules: Mapping[str, nn.Module]) -> Kind:
    module = modules[name]
    if isinstance(modules.get(name.rpartition(".")[0]), nn.MultiheadAttention):
        return "other"  # it reads the weights without calling the layer
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, Conv1D):
        return "turned"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1:
        return "convolution"
    return "other"


def _ties(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """Names that share one parameter, under the one that files hold."""
    known, groups = parameter_shapes(model), dict[int, list[str]]()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    for duplicate, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        groups.setdefault(id(model.get_parameter(source)), [source]).append(duplicate)
    ties: dict[str, tuple[str, ...]] = {}
    for names in groups.values():
        stored = next((name for name in names if name in known), names[0])
        others = tuple(dict.fromkeys(name for name in names if name != stored))
        if others:
            ties[stored] = others
    return ties


def _rules(model: PreTrainedModel) -> Iterator[Any]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    yield from (rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightConverter))


def _is_source(name: str, model: PreTrainedModel) -> bool:
    """Whether transformers computes something else of the tensor of that name."""
    current = current_names([name], model)[0]
    patterns = [pattern for rule in _rules(model) for pattern in rule.source_patterns]
    return any(re.search(_expert(pattern), current) for pattern in patterns)


def _parts(names: list[str], model: PreTrainedModel) -> Iterator[tuple[str, ExpertPart]]:
    """The tensors of files that are stacked by expert, with their rows joined or not."""
    current = dict(zip(current_names(names, model), names, strict=True))
    targets = converted_names(parameter_shapes(model), model)
    for rule in _rules(model):
        steps = [type(step).__name__ for step in rule.operations]
        dims = [getattr(step, "dim", None) for step in rule.operations]
        if (steps, dims) not in ((["MergeModulelist"], [0]), (["MergeModulelist", "Concatenate"], [0, 1])):
            continue
        for slot, pattern in enumerate(rule.source_patterns):
            for name, stored in current.items():
                match = re.search(f"{_expert(pattern)}$", name)
                if match is None:
                    continue
                target = name[: match.start()] + rule.target_patterns[0]
                if target in targets:
                    yield stored, ExpertPart(target, int(match["expert"]), slot)


def _expert(pattern: str) -> str:
    """The expression that matches a pattern of transformers, whose star is the number of an expert."""
    return re.escape(pattern).replace(r"\*", r"(?P<expert>\d+)", 1)
