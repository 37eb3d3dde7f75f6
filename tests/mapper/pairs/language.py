"""Decoders in the layout of nanoGPT and of litgpt: names, order and shapes of their tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import attend, heads_of, rotate_halves


class NanoAttention(nn.Module):
    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.register_buffer("bias", torch.ones(context, context).tril().view(1, 1, context, context))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_of(part, self.heads) for part in self.c_attn(x).chunk(3, dim=-1))
        return self.c_proj(attend(q, k, v, causal=True))


class NanoMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class NanoBlock(nn.Module):
    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = NanoAttention(width, heads, context)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = NanoMLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """nanoGPT without flash attention, so with the causal mask as a buffer of every block; the head is tied."""

    def __init__(self, *, vocabulary: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, width),
                "wpe": nn.Embedding(context, width),
                "h": nn.ModuleList(NanoBlock(width, heads, context) for _ in range(depth)),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.transformer.wte(ids) + self.transformer.wpe.weight[: ids.shape[1]]
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


@dataclass(frozen=True)
class LitConfig:
    """The options of litgpt that the pairs need."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    groups: int
    hidden: int
    eps: float = 1e-5
    norm: type[nn.Module] = RMSNorm
    gated: bool = True
    bias: bool = False
    qkv_bias: bool = False
    experts: int = 0
    experts_per_token: int = 2
    parallel: bool = False
    gelu: str = "none"
    rotary: float = 1.0
    """Part of every head that is rotated."""
    base: float = 10000.0
    context: int = 0
    """Learned positions (`transformer.wpe`); litgpt itself has none."""


class LitAttention(nn.Module):
    def __init__(self, config: LitConfig) -> None:
        super().__init__()
        self.config = config
        size = config.width // config.heads
        self.sizes = (config.width, config.groups * size, config.groups * size)
        self.qkv = nn.Linear(config.width, sum(self.sizes), bias=config.bias or config.qkv_bias)
        self.proj = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        config = self.config
        q, k, v = self.qkv(x).split(self.sizes, dim=-1)
        q, k, v = heads_of(q, config.heads), heads_of(k, config.groups), heads_of(v, config.groups)
        if turned := int(config.rotary * q.shape[-1]):
            q, k = rotate_halves(q, config.base, turned), rotate_halves(k, config.base, turned)
        return self.proj(attend(q, k, v, causal=True))


class LitGptMLP(nn.Module):
    def __init__(self, config: LitConfig) -> None:
        super().__init__()
        self.gelu = config.gelu
        self.fc = nn.Linear(config.width, config.hidden, bias=config.bias)
        self.proj = nn.Linear(config.hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(functional.gelu(self.fc(x), approximate=self.gelu))


class LitLlamaMLP(nn.Module):
    def __init__(self, config: LitConfig) -> None:
        super().__init__()
        self.fc_1 = nn.Linear(config.width, config.hidden, bias=config.bias)
        self.fc_2 = nn.Linear(config.width, config.hidden, bias=config.bias)
        self.proj = nn.Linear(config.hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(functional.silu(self.fc_1(x)) * self.fc_2(x))


class LitMoE(nn.Module):
    def __init__(self, config: LitConfig) -> None:
        super().__init__()
        self.per_token = config.experts_per_token
        self.gate = nn.Linear(config.width, config.experts, bias=False)
        self.experts = nn.ModuleList(LitLlamaMLP(config) for _ in range(config.experts))

    def forward(self, x: Tensor) -> Tensor:
        chosen, indices = self.gate(x).topk(self.per_token)
        weights = torch.zeros_like(self.gate(x)).scatter(-1, indices, chosen.softmax(-1))
        made = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return (made * weights.unsqueeze(-2)).sum(-1)


class LitBlock(nn.Module):
    def __init__(self, config: LitConfig) -> None:
        super().__init__()
        self.parallel = config.parallel
        self.norm_1 = config.norm(config.width, eps=config.eps)
        self.attn = LitAttention(config)
        self.norm_2 = config.norm(config.width, eps=config.eps)
        mlp = LitMoE if config.experts else LitLlamaMLP if config.gated else LitGptMLP
        self.mlp = mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        after = x + self.attn(self.norm_1(x))
        return after + self.mlp(self.norm_2(x if self.parallel else after))


class LitGPT(nn.Module):
    """litgpt's `GPT`: the head first and never tied, one contiguous `attn.qkv`."""

    def __init__(self, config: LitConfig) -> None:
        super().__init__()
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)
        parts: dict[str, nn.Module] = {"wte": nn.Embedding(config.vocabulary, config.width)}
        if config.context:
            parts["wpe"] = nn.Embedding(config.context, config.width)
        parts["h"] = nn.ModuleList(LitBlock(config) for _ in range(config.depth))
        parts["ln_f"] = config.norm(config.width, eps=config.eps)
        self.transformer = nn.ModuleDict(parts)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.transformer["wte"](ids)
        if "wpe" in self.transformer:
            x = x + self.transformer["wpe"].weight[: ids.shape[1]]
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))
