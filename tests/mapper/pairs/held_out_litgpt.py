"""Gemma 2, Phi 3 and Qwen 3: transformers to litgpt."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Gemma2Config, Gemma2ForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.held_out_entries import fused, renamed, split
from tests.mapper.pairs.held_out_layers import attend, causal
from tests.mapper.pairs.pair import Pair, Shapes


@dataclass(frozen=True)
class Size:
    vocabulary: int
    width: int
    hidden: int
    layers: int
    heads: int
    groups: int
    head: int
    eps: float = 1e-6
    base: float = 10_000.0
    is_gemma: bool = False
    """Norms after the sublayers too, all with weights around zero; soft caps; scaled embeddings; GELU."""
    norms_qk: bool = False


class RMSNorm(nn.Module):
    def __init__(self, width: int, size: Size) -> None:
        super().__init__()
        self.eps, self.offset = size.eps, float(size.is_gemma)
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.weight + self.offset, self.eps)


def rotate(x: Tensor, base: float) -> Tensor:
    """Rotary embedding, by halves, of ``(batch, heads, length, head)``."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2])[:, None] / base ** (torch.arange(half) / half)
    first, second = x.split(half, -1)
    return torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), -1)


class Attention(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.qkv = nn.Linear(size.width, (size.heads + 2 * size.groups) * size.head, bias=False)
        self.proj = nn.Linear(size.heads * size.head, size.width, bias=False)
        self.norm_q = RMSNorm(size.head, size) if size.norms_qk else nn.Identity()
        self.norm_k = RMSNorm(size.head, size) if size.norms_qk else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        size, many = self.size, self.size.heads // self.size.groups
        heads = self.qkv(x).unflatten(-1, (-1, size.head)).transpose(1, 2)
        q, k, v = heads.split((size.heads, size.groups, size.groups), 1)
        q, k = rotate(self.norm_q(q), size.base), rotate(self.norm_k(k), size.base)
        k, v = k.repeat_interleave(many, 1), v.repeat_interleave(many, 1)
        if not size.is_gemma:
            q, k, v = (part.transpose(1, 2).flatten(2) for part in (q, k, v))
            return self.proj(attend(q, k, v, size.heads, causal(x.shape[1])))
        scores = (q @ k.mT * size.head**-0.5 / 50).tanh() * 50 + causal(x.shape[1])
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.is_gemma = size.is_gemma
        self.fc_1 = nn.Linear(size.width, size.hidden, bias=False)
        self.fc_2 = nn.Linear(size.width, size.hidden, bias=False)
        self.proj = nn.Linear(size.hidden, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc_1(x)
        gate = functional.gelu(gate, approximate="tanh") if self.is_gemma else functional.silu(gate)
        return self.proj(gate * self.fc_2(x))


class Block(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.norm_1 = RMSNorm(size.width, size)
        self.attn = Attention(size)
        self.post_attention_norm = RMSNorm(size.width, size) if size.is_gemma else nn.Identity()
        self.norm_2 = RMSNorm(size.width, size)
        self.mlp = Mlp(size)
        self.post_mlp_norm = RMSNorm(size.width, size) if size.is_gemma else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.post_attention_norm(self.attn(self.norm_1(x)))
        return x + self.post_mlp_norm(self.mlp(self.norm_2(x)))


class LitGPT(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.lm_head = nn.Linear(size.width, size.vocabulary, bias=False)
        blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(size.vocabulary, size.width), "h": blocks})
        self.transformer["ln_f"] = RMSNorm(size.width, size)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.transformer["wte"](tokens) * (self.size.width**0.5 if self.size.is_gemma else 1)
        for block in self.transformer["h"]:
            x = block(x)
        logits = self.lm_head(self.transformer["ln_f"](x))
        return (logits / 30).tanh() * 30 if self.size.is_gemma else logits


GEMMA2 = Size(256000, 2304, 9216, 26, 8, 4, 256, is_gemma=True)
GEMMA2_TINY = Size(60, 40, 72, 2, 4, 2, 16, is_gemma=True)
PHI3 = Size(32064, 3072, 8192, 32, 32, 32, 96, eps=1e-5)
PHI3_TINY = Size(60, 48, 80, 2, 4, 4, 12, eps=1e-5)
QWEN3 = Size(151936, 1024, 3072, 28, 16, 8, 128, base=1e6, norms_qk=True)
QWEN3_TINY = Size(60, 40, 72, 2, 4, 2, 16, base=1e6, norms_qk=True)


def _model(config: type, model: type, size: Size, **values: object) -> nn.Module:
    made = config(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.groups,
        rms_norm_eps=size.eps,
        rope_parameters={"rope_type": "default", "rope_theta": size.base},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        **values,
    )
    made._attn_implementation = "eager"
    return model(made)


def gemma2(tiny: bool) -> nn.Module:
    size = GEMMA2_TINY if tiny else GEMMA2
    return _model(Gemma2Config, Gemma2ForCausalLM, size, head_dim=size.head, query_pre_attn_scalar=size.head)


def phi3(tiny: bool) -> nn.Module:
    return _model(Phi3Config, Phi3ForCausalLM, PHI3_TINY if tiny else PHI3)


def qwen3(tiny: bool) -> nn.Module:
    size = QWEN3_TINY if tiny else QWEN3
    return _model(Qwen3Config, Qwen3ForCausalLM, size, head_dim=size.head, tie_word_embeddings=True)


BLOCK, NEW = r"model\.layers\.(\d+)", r"transformer.h.\1"
OUTSIDE = [(r"^model\.embed_tokens", "transformer.wte"), (r"^model\.norm", "transformer.ln_f")]
INSIDE = [
    (rf"^{BLOCK}\.self_attn\.o_proj", rf"{NEW}.attn.proj"),
    (rf"^{BLOCK}\.mlp\.gate_proj", rf"{NEW}.mlp.fc_1"),
    (rf"^{BLOCK}\.mlp\.up_proj", rf"{NEW}.mlp.fc_2"),
    (rf"^{BLOCK}\.mlp\.down_proj", rf"{NEW}.mlp.proj"),
    (rf"^{BLOCK}\.input_layernorm", rf"{NEW}.norm_1"),
]
NORM_2 = (rf"^{BLOCK}\.post_attention_layernorm", rf"{NEW}.norm_2")
GEMMA2_NORMS = [
    (rf"^{BLOCK}\.post_attention_layernorm", rf"{NEW}.post_attention_norm"),
    (rf"^{BLOCK}\.pre_feedforward_layernorm", rf"{NEW}.norm_2"),
    (rf"^{BLOCK}\.post_feedforward_layernorm", rf"{NEW}.post_mlp_norm"),
]
QWEN3_NORMS = [NORM_2, (rf"^{BLOCK}\.self_attn\.([qk])_norm", rf"{NEW}.attn.norm_\2")]
QKV = (
    r"transformer\.h\.(\d+)\.attn\.qkv\.weight",
    [rf"model.layers.\1.self_attn.{name}_proj.weight" for name in "qkv"],
)


def gemma2_truth(source: Shapes, target: Shapes) -> WeightMap:
    rules = [*OUTSIDE, *INSIDE, *GEMMA2_NORMS]
    return WeightMap((*renamed(source, target, rules), *fused(source, target, *QKV)))


def phi3_truth(source: Shapes, target: Shapes) -> WeightMap:
    rules = [*OUTSIDE, *INSIDE, NORM_2, (rf"^{BLOCK}\.self_attn\.qkv_proj", rf"{NEW}.attn.qkv")]
    parts = [rf"{NEW}.mlp.fc_{i}.weight" for i in (1, 2)]
    halves = split(source, target, rf"{BLOCK}\.mlp\.gate_up_proj\.weight", parts)
    return WeightMap((*renamed(source, target, rules), *halves))


def qwen3_truth(source: Shapes, target: Shapes) -> WeightMap:
    rules = [*OUTSIDE, *INSIDE, *QWEN3_NORMS]
    return WeightMap((*renamed(source, target, rules), *fused(source, target, *QKV)))


def _tokens() -> Tensor:
    return torch.randint(2, 60, (2, 11))


def _logits(out: object) -> Tensor:
    return getattr(out, "logits", out)


LITGPT = [
    Pair(
        "gemma2_2b: transformers to litgpt",
        gemma2,
        lambda tiny: LitGPT(GEMMA2_TINY if tiny else GEMMA2),
        gemma2_truth,
        _tokens,
        _logits,
    ),
    Pair(
        "phi3_mini: transformers to litgpt",
        phi3,
        lambda tiny: LitGPT(PHI3_TINY if tiny else PHI3),
        phi3_truth,
        _tokens,
        _logits,
    ),
    Pair(
        "qwen3_0.6b: transformers to litgpt",
        qwen3,
        lambda tiny: LitGPT(QWEN3_TINY if tiny else QWEN3),
        qwen3_truth,
        _tokens,
        _logits,
    ),
]
