"""Tiny models, fine-tuned ones made of them, and adapters taken out of the pair."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from lit_wsl.comparing.adapter_output import ExtractionReport, write_extracted
from lit_wsl.comparing.models import open_base, open_tuned
from lit_wsl.comparing.run import Comparison, examine_all, new_comparison
from lit_wsl.comparing.settings import CompareSettings

IDS = torch.randint(0, 40, (3, 12), generator=torch.Generator().manual_seed(3))


def save(model: PreTrainedModel, directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a model in a dtype."""
    model.to(dtype).save_pretrained(directory)
    return directory


def load(kind: Any, directory: Path, **options: Any) -> Any:
    """The model of a directory in float32."""
    return kind.from_pretrained(directory, dtype=torch.float32, **options).eval()


def merged_lora(model: PreTrainedModel, size: float = 0.1, **settings: Any) -> PreTrainedModel:
    """The model with a random adapter merged into it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(**settings))
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name or "lora_B" in name or "lora_embedding" in name:
                torch.nn.init.normal_(parameter, std=size)
            elif "magnitude" in name:
                parameter.data *= 1 + 0.1 * torch.rand_like(parameter)
        return adapted.merge_and_unload()


def extract(base: Path, tuned: Path, out: Path, **settings: Any) -> tuple[Comparison, ExtractionReport]:
    """Compare two models and write what is extracted."""
    before = open_base(base)
    after = open_tuned(tuned, before)
    comparison = new_comparison(before, after, CompareSettings(**settings))
    out.mkdir(exist_ok=True)
    examine_all(comparison, before, after, out, threads=1)
    return comparison, write_extracted(comparison, before, after, out)


def under_adapter(kind: Any, base: Path, adapter: Path, rows: int | None = None) -> torch.Tensor:
    """First output of a base under an adapter, loaded by PEFT, which must have nothing to say."""
    model = load(kind, base)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        return PeftModel.from_pretrained(model, adapter).eval()(IDS)[0]


def output(kind: Any, directory: Path) -> torch.Tensor:
    """First output of a model."""
    return load(kind, directory)(IDS)[0]


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over that of what is expected."""
    return float((found - expected).norm() / expected.norm())


def config_of(out: Path) -> dict[str, Any]:
    """The configuration of the adapter in an output directory."""
    return json.loads((out / "adapter" / "adapter_config.json").read_text())
