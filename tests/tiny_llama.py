"""A Llama of a few thousand parameters over the 256 byte values, made on the spot."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tied_llama_config() -> dict[str, Any]:
    """A configuration as JSON; input and output embedding are one tensor."""
    return {
        "model_type": "llama",
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": True,
    }


def untied_llama_config() -> dict[str, Any]:
    """The same with an output embedding of its own."""
    return tied_llama_config() | {"tie_word_embeddings": False}


def write_tied_llama(directory: Path) -> Path:
    """Write weights and configuration; equal on every call."""
    return _write(directory, tied_llama_config())


def write_untied_llama(directory: Path) -> Path:
    """The same with an output embedding of its own."""
    return _write(directory, untied_llama_config())


def _write(directory: Path, config: dict[str, Any]) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(directory)
    return directory
