"""Pairs of Llamas and of models built like them: transformers, litgpt, Meta, torchtune."""

from collections.abc import Sequence

from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
)

from lit_wsl.state.operations import Operation, PermuteHeads, Reshape, Split, Unstack
from lit_wsl.state.remap import WeightMap

from .gpt_pairs import tokens
from .language import LitConfig, LitGPT
from .llama import LlamaSizes, MetaLlama, TuneLlama
from .outputs import logits
from .pair import Pair, Shapes
from .rules import Rule, Shape, fused, renames, reverse, rule, truth

LLAMA_TINY = LlamaSizes(97, 48, 3, 6, 2, 64, 500.0)
LLAMA_8B = LlamaSizes(128256, 4096, 32, 32, 8, 14336, 500000.0)
QWEN_TINY = LlamaSizes(97, 48, 3, 4, 2, 64, 1000.0)
QWEN_HALF_B = LlamaSizes(151936, 896, 24, 14, 2, 4864, 1000000.0)
MIXTRAL_TINY = LlamaSizes(97, 32, 2, 4, 2, 56, 1000.0)
MIXTRAL_8X7B = LlamaSizes(32000, 4096, 32, 32, 8, 14336, 1000000.0)

HEAD_SIZES = {48: 8, 16: 8, 4096: 128, 1024: 128}
"""Size of a Llama head for the rows of the queries or keys."""


def _options(sizes: LlamaSizes) -> dict[str, object]:
    return {
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.groups,
        "intermediate_size": sizes.hidden,
        "rope_parameters": {"rope_type": "default", "rope_theta": sizes.base},
        "attn_implementation": "eager",
    }


def _lit(sizes: LlamaSizes, eps: float = 1e-5, *, qkv_bias: bool = False, experts: int = 0) -> nn.Module:
    shape = (sizes.vocabulary, sizes.width, sizes.depth, sizes.heads, sizes.groups, sizes.hidden)
    return LitGPT(LitConfig(*shape, eps=eps, base=sizes.base, qkv_bias=qkv_bias, experts=experts))


def llama_hf(tiny: bool) -> nn.Module:  # noqa: FBT001
    return LlamaForCausalLM(LlamaConfig(**_options(LLAMA_TINY if tiny else LLAMA_8B), rms_norm_eps=1e-5))


def llama_litgpt(tiny: bool) -> nn.Module:  # noqa: FBT001
    return _lit(LLAMA_TINY if tiny else LLAMA_8B)


def llama_meta(tiny: bool) -> nn.Module:  # noqa: FBT001
    return MetaLlama(LLAMA_TINY if tiny else LLAMA_8B)


def llama_tune(tiny: bool) -> nn.Module:  # noqa: FBT001
    return TuneLlama(LLAMA_TINY if tiny else LLAMA_8B)


def qwen_hf(tiny: bool) -> nn.Module:  # noqa: FBT001
    config = Qwen2Config(**_options(QWEN_TINY if tiny else QWEN_HALF_B), rms_norm_eps=1e-6, tie_word_embeddings=True)
    return Qwen2ForCausalLM(config)


def qwen_litgpt(tiny: bool) -> nn.Module:  # noqa: FBT001
    return _lit(QWEN_TINY if tiny else QWEN_HALF_B, 1e-6, qkv_bias=True)


def mixtral_hf(tiny: bool) -> nn.Module:  # noqa: FBT001
    options = _options(MIXTRAL_TINY if tiny else MIXTRAL_8X7B)
    config = MixtralConfig(
        **options,
        num_local_experts=5 if tiny else 8,
        num_experts_per_tok=2,
        rms_norm_eps=1e-5,
        experts_implementation="eager",
    )
    return MixtralForCausalLM(config)


def mixtral_litgpt(tiny: bool) -> nn.Module:  # noqa: FBT001
    return _lit(MIXTRAL_TINY if tiny else MIXTRAL_8X7B, experts=5 if tiny else 8)


def llava(tiny: bool) -> nn.Module:  # noqa: FBT001
    """LLaVA-OneVision with Qwen2-0.5B; the vision tower with its pooling head, as the plain config of SigLIP has it."""
    sizes = {
        "hidden_size": 32 if tiny else 1152,
        "intermediate_size": 40 if tiny else 4304,
        "num_hidden_layers": 2 if tiny else 26,
        "num_attention_heads": 4 if tiny else 16,
        "image_size": 28 if tiny else 384,
        "patch_size": 14,
    }
    text = Qwen2Config(**_options(QWEN_TINY if tiny else QWEN_HALF_B), rms_norm_eps=1e-6, tie_word_embeddings=True)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**sizes),
        text_config=text,
        image_token_index=95 if tiny else 151646,
        video_token_index=96 if tiny else 151647,
        attn_implementation="eager",
    )
    return LlavaOnevisionForConditionalGeneration(config)


LITGPT = [
    *renames("""
        model.embed_tokens.weight                       transformer.wte.weight
        model.layers.{}.input_layernorm.weight          transformer.h.{}.norm_1.weight
        model.layers.{}.post_attention_layernorm.weight transformer.h.{}.norm_2.weight
        model.layers.{}.self_attn.o_proj.weight         transformer.h.{}.attn.proj.weight
        model.layers.{}.mlp.gate_proj.weight            transformer.h.{}.mlp.fc_1.weight
        model.layers.{}.mlp.up_proj.weight              transformer.h.{}.mlp.fc_2.weight
        model.layers.{}.mlp.down_proj.weight            transformer.h.{}.mlp.proj.weight
        model.norm.weight                               transformer.ln_f.weight
        lm_head.weight                                  lm_head.weight
    """),
    rule(
        " ".join(f"model.layers.{{}}.self_attn.{part}_proj.{{}}" for part in "qkv"),
        "transformer.h.{}.attn.qkv.{}",
        fused,
    ),
]


def _paired(sources: Sequence[Shape], _targets: Sequence[Shape]) -> tuple[Operation, ...]:
    """Rows of halves become rows of pairs."""
    rows = sources[0][0]
    return (PermuteHeads(rows // HEAD_SIZES[rows], to_pairs=True),)


META = truth(
    renames("""
        model.embed_tokens.weight                       tok_embeddings.weight
        model.layers.{}.self_attn.v_proj.weight         layers.{}.attention.wv.weight
        model.layers.{}.self_attn.o_proj.weight         layers.{}.attention.wo.weight
        model.layers.{}.mlp.gate_proj.weight            layers.{}.feed_forward.w1.weight
        model.layers.{}.mlp.down_proj.weight            layers.{}.feed_forward.w2.weight
        model.layers.{}.mlp.up_proj.weight              layers.{}.feed_forward.w3.weight
        model.layers.{}.input_layernorm.weight          layers.{}.attention_norm.weight
        model.layers.{}.post_attention_layernorm.weight layers.{}.ffn_norm.weight
        model.norm.weight                               norm.weight
        lm_head.weight                                  output.weight
    """),
    renames(
        """
        model.layers.{}.self_attn.q_proj.weight layers.{}.attention.wq.weight
        model.layers.{}.self_attn.k_proj.weight layers.{}.attention.wk.weight
        """,
        _paired,
    ),
)
TUNE = truth(
    renames("""
        model.embed_tokens.weight                       tok_embeddings.weight
        model.layers.{}.self_attn.v_proj.weight         layers.{}.attn.v_proj.weight
        model.layers.{}.self_attn.o_proj.weight         layers.{}.attn.output_proj.weight
        model.layers.{}.mlp.gate_proj.weight            layers.{}.mlp.w1.weight
        model.layers.{}.mlp.down_proj.weight            layers.{}.mlp.w2.weight
        model.layers.{}.mlp.up_proj.weight              layers.{}.mlp.w3.weight
        model.layers.{}.input_layernorm.weight          layers.{}.sa_norm.scale
        model.layers.{}.post_attention_layernorm.weight layers.{}.mlp_norm.scale
        model.norm.weight                               norm.scale
        lm_head.weight                                  output.weight
    """),
    renames(
        """
        model.layers.{}.self_attn.q_proj.weight layers.{}.attn.q_proj.weight
        model.layers.{}.self_attn.k_proj.weight layers.{}.attn.k_proj.weight
        """,
        _paired,
    ),
)


def _cut(sources: Sequence[Shape], targets: Sequence[Shape]) -> tuple[Operation, ...]:
    """The stack becomes one matrix, which is cut into gate and up of expert after expert."""
    experts, rows, width = sources[0]
    return Reshape(sources[0], (experts * rows, width)), Split(tuple(shape[0] for shape in targets))


def _unstacked(sources: Sequence[Shape], _targets: Sequence[Shape]) -> tuple[Operation, ...]:
    """Expert after expert."""
    return (Unstack(sources[0][0]),)


def _experts(experts: int) -> list[Rule]:
    expert = "transformer.h.{{}}.mlp.experts.{}.{}.weight"
    gate_up = [expert.format(place, part) for place in range(experts) for part in ("fc_1", "fc_2")]
    down = [expert.format(place, "proj") for place in range(experts)]
    return [
        rule("model.layers.{}.mlp.gate.weight", "transformer.h.{}.mlp.gate.weight"),
        rule("model.layers.{}.mlp.experts.gate_up_proj", " ".join(gate_up), _cut),
        rule("model.layers.{}.mlp.experts.down_proj", " ".join(down), _unstacked),
    ]


def mixtral_truth(source: Shapes, target: Shapes) -> WeightMap:
    """The rules know the number of experts."""
    experts = source["model.layers.0.mlp.gate.weight"][0]
    return truth(LITGPT, _experts(experts))(source, target)


LLAVA = truth(
    rule("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
    rule("model.norm.weight", "model.language_model.norm.weight"),
    rule("lm_head.weight", "lm_head.weight"),
    [
        rule(f"model.layers.{{}}.{inside}", f"model.language_model.layers.{{}}.{inside}")
        for inside in ("self_attn.{}.{}", "mlp.{}.weight", "input_layernorm.weight", "post_attention_layernorm.weight")
    ],
)

NEW_IN_LLAVA = ("model.vision_tower.", "model.multi_modal_projector.", "model.image_newline")

LLAMA = [
    Pair("llama hf→litgpt", llama_hf, llama_litgpt, truth(LITGPT), tokens, logits),
    Pair("llama litgpt→hf", llama_litgpt, llama_hf, reverse(truth(LITGPT)), tokens, logits),
    Pair("qwen2 hf→litgpt", qwen_hf, qwen_litgpt, truth(LITGPT), tokens, logits),
    Pair("qwen2→llava-onevision", qwen_hf, llava, LLAVA, lambda: tokens() % 90, logits, NEW_IN_LLAVA),
    Pair("llama hf→meta", llama_hf, llama_meta, META, tokens, logits),
    Pair("llama hf→torchtune", llama_hf, llama_tune, TUNE, tokens, logits),
    Pair("mixtral hf→litgpt", mixtral_hf, mixtral_litgpt, mixtral_truth, tokens, logits),
    Pair("mixtral litgpt→hf", mixtral_litgpt, mixtral_hf, reverse(mixtral_truth), tokens, logits),
]
