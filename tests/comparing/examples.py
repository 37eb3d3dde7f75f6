"""A small Llama and what training, merging, casting and resizing make of it."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_wsl.comparing.models import open_base, open_tuned
from lit_wsl.comparing.run import Comparison, examine_all, new_comparison
from lit_wsl.comparing.settings import CompareSettings

LAYERS, ROWS, ADDED = 3, 96, 8


@cache
def base() -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=ROWS,
                hidden_size=64,
                intermediate_size=80,
                num_hidden_layers=LAYERS,
                num_attention_heads=4,
                tie_word_embeddings=False,
                pad_token_id=None,
                bos_token_id=None,
                eos_token_id=None,
            )
        )


def changed(change: Callable[[str, nn.Parameter], None]) -> nn.Module:
    """The base with its parameters changed in place."""
    model = copy.deepcopy(base())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        for name, parameter in model.named_parameters():
            change(name, parameter)
    return model


def fold_lora(parameter: nn.Parameter, rank: int) -> None:
    rows, columns = parameter.shape
    parameter += 0.02 * torch.randn(rows, rank) @ torch.randn(rank, columns) / rank**0.5


def lora(
    rank: int = 4, kinds: tuple[str, ...] = ("q_proj", "v_proj"), layers: tuple[int, ...] = (0, 1, 2)
) -> nn.Module:
    def change(name: str, parameter: nn.Parameter) -> None:
        if any(kind in name for kind in kinds) and any(f"layers.{layer}." in name for layer in layers):
            fold_lora(parameter, rank)

    return changed(change)


def dense(share: float = 0.1, part: str = "") -> nn.Module:
    def change(name: str, parameter: nn.Parameter) -> None:
        if part in name:
            parameter += share * parameter.std().nan_to_num(1.0).clamp_min(0.1) * torch.randn_like(parameter)

    return changed(change)


def lora_and_head() -> nn.Module:
    def change(name: str, parameter: nn.Parameter) -> None:
        if "q_proj" in name:
            fold_lora(parameter, 4)
        elif "lm_head" in name or "norm" in name:
            parameter += 0.01 * torch.randn_like(parameter)

    return changed(change)


def resized(model: nn.Module) -> nn.Module:
    model.resize_token_embeddings(ROWS + ADDED, mean_resizing=False)  # type: ignore[operator]
    return model


def damaged() -> nn.Module:
    model = lora()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] = float("nan")
    return model


def compared(before: nn.Module, after: nn.Module, **settings: object) -> Comparison:
    """What the comparison of two models finds."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        for side, model in (("base", before), ("tuned", after)):
            model.save_pretrained(folder / side)  # type: ignore[operator]
        left = open_base(folder / "base")
        right = open_tuned(folder / "tuned", left)
        chosen = CompareSettings(extraction="never", **settings)  # type: ignore[arg-type]
        comparison = new_comparison(left, right, chosen)
        examine_all(comparison, left, right, folder, threads=1)
    return comparison


def bfloat16(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).bfloat16()


EXAMPLES: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "identical": lambda: (base(), base()),
    "cast": lambda: (base(), bfloat16(base())),
    "cast and back": lambda: (base(), bfloat16(base()).float()),
    "lora": lambda: (base(), lora()),
    "lora in bfloat16": lambda: (bfloat16(base()), bfloat16(lora())),
    "lora of two layers": lambda: (base(), lora(layers=(0, 2))),
    "lora, cast": lambda: (base(), bfloat16(lora())),
    "lora and head": lambda: (base(), lora_and_head()),
    "dense": lambda: (base(), dense()),
    "dense head": lambda: (base(), dense(part="lm_head")),
    "norms": lambda: (base(), dense(part="norm")),
    "resized": lambda: (base(), resized(copy.deepcopy(base()))),
    "resized lora": lambda: (base(), resized(lora())),
    "damaged": lambda: (base(), damaged()),
}


@cache
def example(name: str) -> Comparison:
    """One of the examples, compared once; do not change it."""
    return compared(*EXAMPLES[name]())
