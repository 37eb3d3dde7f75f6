"""Small adapted models, and adapters whose factors are not zero."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny_llama import untied_llama_config

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
CONFIGURATIONS = {
    "standard": None,
    "r16": {"r": 16, "lora_alpha": 16, "target_modules": ATTENTION},
    "r32": {"r": 32, "lora_alpha": 16, "target_modules": ATTENTION},
    "r16+embedding": {"r": 16, "lora_alpha": 16, "target_modules": [*ATTENTION, "embed_tokens"]},
    "dora": {"r": 16, "lora_alpha": 16, "target_modules": ATTENTION, "use_dora": True},
    "rslora": {"r": 16, "lora_alpha": 16, "target_modules": ATTENTION, "use_rslora": True},
    "pissa": {"r": 16, "lora_alpha": 16, "target_modules": ATTENTION, "init_lora_weights": "pissa"},
    "olora": {"r": 16, "lora_alpha": 16, "target_modules": ATTENTION, "init_lora_weights": "olora"},
    "random": {"r": 8, "lora_alpha": 4, "target_modules": ATTENTION, "init_lora_weights": False},
    "fewer": {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj"]},
    "saved head": {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


def llama(dtype=torch.float32):
    """A plain tiny Llama."""
    return LlamaForCausalLM(LlamaConfig(**untied_llama_config())).to(dtype)


def adapted(settings, dtype=torch.float32):
    """A tiny Llama with adapters in the named configuration, or settings of PEFT's LoraConfig."""
    settings = CONFIGURATIONS[settings] if isinstance(settings, str) else settings
    model = llama(dtype)
    return model if settings is None else inject_adapter_in_model(LoraConfig(**settings), model)


@torch.no_grad()
def shake(model, size=0.05):
    """Move every trainable parameter, so that no adapter is zero any more."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn_like(parameter))
    return model


@torch.no_grad()
def logits(model):
    """Output of a model in evaluation mode for fixed tokens."""
    tokens = torch.arange(24).reshape(2, 12) * 7 % 256
    training = model.training
    out = model.eval()(input_ids=tokens).logits
    model.train(training)
    return out
