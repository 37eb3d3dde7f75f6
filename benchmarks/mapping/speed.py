"""How the time grows with the depth of a model, and what buffers cost."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_wsl.mapper import WeightMapper
from lit_wsl.mapper.evidence import possible
from lit_wsl.mapper.mapper import MODES
from tests.mapper.pairs.language import LitConfig, LitGPT
from tests.mapper.pairs.vision_pairs import resnet_hf, resnet_timm

DEPTHS = (12, 24, 48)


def llama_pair(vocabulary: int, width: int, depth: int, hidden: int, head: int = 64) -> tuple[nn.Module, nn.Module]:
    """A Llama with grouped queries in the layouts of transformers and of litgpt, on the meta device."""
    heads, groups = width // head, max(1, width // head // 4)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=hidden,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config), LitGPT(LitConfig(vocabulary, width, depth, heads, groups, hidden))


def scaling(runs: int) -> dict[str, dict[str, float]]:
    """Tensors and milliseconds for Llamas of growing depth, measured in turn."""
    pairs = {str(depth): llama_pair(32000, 1024, depth, 2816) for depth in DEPTHS}
    times = _in_turn(
        {depth: lambda pair=pair: WeightMapper(*pair).suggest_mapping() for depth, pair in pairs.items()}, runs
    )
    return {depth: {"tensors": len(pair[0].state_dict()), **times[depth]} for depth, pair in pairs.items()}


def buffer_modes(runs: int) -> dict[str, dict[str, Any]]:
    """Tensors, pairs and time of ResNet-50 in every mode; module pairs are those that are really scored."""
    with torch.device("meta"):
        source, target = resnet_timm(False), resnet_hf(False)
    programs = {
        mode: lambda mode=mode: WeightMapper(source, target, buffer_matching_mode=mode).suggest_mapping()
        for mode in MODES
    }
    times = _in_turn(programs, runs)
    rows = {}
    for mode, program in programs.items():
        with patch("lit_wsl.mapper.assign.possible", wraps=possible) as scored:
            result = program()
        left, right = len(result.source.weights), len(result.target.weights)
        rows[mode] = {"source": left, "target": right, "pairs": left * right, "module_pairs": scored.call_count}
        rows[mode] |= {"made": len(result.recipes.targets()), **times[mode]}
    return rows


def _in_turn(programs: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, float]]:
    """Median and least milliseconds of programs that run A B A B …, after one run of each that does not count."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(1 + runs):
        for name, program in programs.items():
            began = time.perf_counter()
            program()
            times[name].append((time.perf_counter() - began) * 1e3)
    return {name: {"median": statistics.median(taken[1:]), "least": min(taken[1:])} for name, taken in times.items()}
