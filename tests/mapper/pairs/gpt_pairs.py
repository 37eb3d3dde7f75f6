"""Pairs of GPTs: GPT-2 in three layouts, GPT-NeoX in two."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from lit_wsl.state.operations import Fuse, Operation, Split

from .language import LitConfig, LitGPT, NanoGPT
from .outputs import logits
from .pair import Pair
from .rules import Shape, renames, rule, transposed, truth

HEAD_SIZES = {48: 12, 1024: 64}
"""Size of a GPT-NeoX head for the width of the model."""


def tokens() -> Tensor:
    """Two random sentences."""
    return torch.randint(0, 97, (2, 11))


def gpt2_hf(tiny: bool, activation: str = "gelu_new") -> nn.Module:  # noqa: FBT001
    sizes = {"vocab_size": 97, "n_positions": 20, "n_embd": 48, "n_layer": 3, "n_head": 4}
    config = GPT2Config(**(sizes if tiny else {}), activation_function=activation, attn_implementation="eager")
    return GPT2LMHeadModel(config)


def gpt2_hf_exact_gelu(tiny: bool) -> nn.Module:  # noqa: FBT001
    """nanoGPT computes the exact GELU, GPT-2 an approximation."""
    return gpt2_hf(tiny, "gelu")


def gpt2_nano(tiny: bool) -> nn.Module:  # noqa: FBT001
    if tiny:
        return NanoGPT(vocabulary=97, context=20, width=48, depth=3, heads=4)
    return NanoGPT(vocabulary=50257, context=1024, width=768, depth=12, heads=12)


GPT2_NANO = truth(
    renames("""
        transformer.wte.weight  transformer.wte.weight
        transformer.wpe.weight  transformer.wpe.weight
        transformer.h.{}.ln_1.{} transformer.h.{}.ln_1.{}
        transformer.h.{}.ln_2.{} transformer.h.{}.ln_2.{}
        transformer.ln_f.{}     transformer.ln_f.{}
        lm_head.weight          lm_head.weight
    """),
    renames(
        """
        transformer.h.{}.attn.c_attn.{} transformer.h.{}.attn.c_attn.{}
        transformer.h.{}.attn.c_proj.{} transformer.h.{}.attn.c_proj.{}
        transformer.h.{}.mlp.c_fc.{}    transformer.h.{}.mlp.c_fc.{}
        transformer.h.{}.mlp.c_proj.{}  transformer.h.{}.mlp.c_proj.{}
        """,
        transposed,
    ),
)


def gpt2_litgpt(tiny: bool) -> nn.Module:  # noqa: FBT001
    """litgpt's tensors plus `transformer.wpe`, without which it is no GPT-2."""
    sizes = (97, 48, 3, 4, 4, 192) if tiny else (50257, 768, 12, 12, 12, 3072)
    context = 20 if tiny else 1024
    return LitGPT(
        LitConfig(*sizes, norm=nn.LayerNorm, gated=False, bias=True, gelu="tanh", rotary=0.0, context=context)
    )


GPT2_LITGPT = truth(
    renames("""
        transformer.wte.weight  transformer.wte.weight
        transformer.wpe.weight  transformer.wpe.weight
        transformer.h.{}.ln_1.{} transformer.h.{}.norm_1.{}
        transformer.h.{}.ln_2.{} transformer.h.{}.norm_2.{}
        transformer.ln_f.{}     transformer.ln_f.{}
        lm_head.weight          lm_head.weight
    """),
    renames(
        """
        transformer.h.{}.attn.c_attn.{} transformer.h.{}.attn.qkv.{}
        transformer.h.{}.attn.c_proj.{} transformer.h.{}.attn.proj.{}
        transformer.h.{}.mlp.c_fc.{}    transformer.h.{}.mlp.fc.{}
        transformer.h.{}.mlp.c_proj.{}  transformer.h.{}.mlp.proj.{}
        """,
        transposed,
    ),
)


def neox_hf(tiny: bool) -> nn.Module:  # noqa: FBT001
    """Pythia-410M."""
    sizes = {
        "vocab_size": 97 if tiny else 50304,
        "hidden_size": 48 if tiny else 1024,
        "num_hidden_layers": 3 if tiny else 24,
        "num_attention_heads": 4 if tiny else 16,
        "intermediate_size": 64 if tiny else 4096,
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5 if tiny else 0.25}
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(**sizes, rope_parameters=rope, use_parallel_residual=True, attn_implementation="eager")
    )


def neox_litgpt(tiny: bool) -> nn.Module:  # noqa: FBT001
    sizes = (97, 48, 3, 4, 4, 64) if tiny else (50304, 1024, 24, 16, 16, 4096)
    rotary = 0.5 if tiny else 0.25
    return LitGPT(LitConfig(*sizes, norm=nn.LayerNorm, gated=False, bias=True, parallel=True, rotary=rotary))


def _deinterleaved(sources: Sequence[Shape], _targets: Sequence[Shape]) -> tuple[Operation, ...]:
    """Query, key and value of head after head become all queries, all keys, all values."""
    width = sources[0][0] // 3
    parts = (width, width, width)
    return Split(parts, groups=width // HEAD_SIZES[width]), Fuse(parts)


NEOX = truth(
    renames("""
        gpt_neox.embed_in.weight                          transformer.wte.weight
        gpt_neox.layers.{}.input_layernorm.{}             transformer.h.{}.norm_1.{}
        gpt_neox.layers.{}.post_attention_layernorm.{}    transformer.h.{}.norm_2.{}
        gpt_neox.layers.{}.attention.dense.{}             transformer.h.{}.attn.proj.{}
        gpt_neox.layers.{}.mlp.dense_h_to_4h.{}           transformer.h.{}.mlp.fc.{}
        gpt_neox.layers.{}.mlp.dense_4h_to_h.{}           transformer.h.{}.mlp.proj.{}
        gpt_neox.final_layer_norm.{}                      transformer.ln_f.{}
        lm_head.weight                                    lm_head.weight
    """),
    rule("gpt_neox.layers.{}.attention.query_key_value.{}", "transformer.h.{}.attn.qkv.{}", _deinterleaved),
)

GPT = [
    Pair("gpt2 hf→nanogpt", gpt2_hf_exact_gelu, gpt2_nano, GPT2_NANO, tokens, logits),
    Pair("gpt2 hf→litgpt", gpt2_hf, gpt2_litgpt, GPT2_LITGPT, tokens, logits),
    Pair("neox hf→litgpt", neox_hf, neox_litgpt, NEOX, tokens, logits),
]
