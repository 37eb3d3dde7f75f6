"""T5: transformers to the names of T5X, exported in their sorted order, with kernels of shape (in, out)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5Config, T5ForConditionalGeneration

from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.held_out_entries import renamed
from tests.mapper.pairs.held_out_layers import attend, causal
from tests.mapper.pairs.pair import Pair, Shapes

BUCKETS, FARTHEST = 32, 128


class Dense(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(before, after))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.scale, 1e-6)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, head: int) -> None:
        super().__init__()
        self.heads = heads
        self.key = Dense(width, heads * head)
        self.out = Dense(heads * head, width)
        self.query = Dense(width, heads * head)
        self.value = Dense(width, heads * head)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.out(attend(self.query(x), self.key(memory), self.value(memory), self.heads, bias, scale=1.0))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.wi = Dense(width, hidden)
        self.wo = Dense(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(self.wi(x).relu())


class EncoderLayer(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, head: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads, head)
        self.mlp = Mlp(width, hidden)
        self.pre_attention_layer_norm = Norm(width)
        self.pre_mlp_layer_norm = Norm(width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        normed = self.pre_attention_layer_norm(x)
        x = x + self.attention(normed, normed, bias)
        return x + self.mlp(self.pre_mlp_layer_norm(x))


class DecoderLayer(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, head: int) -> None:
        super().__init__()
        self.encoder_decoder_attention = Attention(width, heads, head)
        self.mlp = Mlp(width, hidden)
        self.pre_cross_attention_layer_norm = Norm(width)
        self.pre_mlp_layer_norm = Norm(width)
        self.pre_self_attention_layer_norm = Norm(width)
        self.self_attention = Attention(width, heads, head)

    def forward(self, x: Tensor, bias: Tensor, memory: Tensor) -> Tensor:
        normed = self.pre_self_attention_layer_norm(x)
        x = x + self.self_attention(normed, normed, bias)
        x = x + self.encoder_decoder_attention(self.pre_cross_attention_layer_norm(x), memory)
        return x + self.mlp(self.pre_mlp_layer_norm(x))


class RelativeBias(nn.Module):
    """A bias per head and bucket of distance; the buckets widen with the distance."""

    def __init__(self, heads: int, both_ways: bool) -> None:
        super().__init__()
        self.both_ways = both_ways
        self.rel_embedding = nn.Parameter(torch.zeros(heads, BUCKETS))

    def _bucket(self, offset: Tensor) -> Tensor:
        buckets = BUCKETS // 2 if self.both_ways else BUCKETS
        first = (offset > 0).long() * buckets if self.both_ways else torch.zeros_like(offset)
        distance = offset.abs() if self.both_ways else (-offset).clamp(min=0)
        exact = buckets // 2
        far = (distance.clamp(min=1) / exact).log() / math.log(FARTHEST / exact) * (buckets - exact)
        return first + torch.where(distance < exact, distance, (exact + far.long()).clamp(max=buckets - 1))

    def forward(self, length: int) -> Tensor:
        at = torch.arange(length)
        return self.rel_embedding[:, self._bucket(at - at[:, None])]


class Stack(nn.Module):
    """Layers whose index is part of their name."""

    def __init__(self, layers: list[nn.Module], norm: str, width: int, bias: RelativeBias) -> None:
        super().__init__()
        named = {norm: Norm(width), "relpos_bias": bias} | {f"layers_{i}": layer for i, layer in enumerate(layers)}
        for name in sorted(named):
            self.add_module(name, named[name])
        self.depth, self.norm = len(layers), norm

    def forward(self, x: Tensor, mask: Tensor | float, *memory: Tensor) -> Tensor:
        bias = self.relpos_bias(x.shape[1]) + mask
        for i in range(self.depth):
            x = getattr(self, f"layers_{i}")(x, bias, *memory)
        return getattr(self, self.norm)(x)


class T5X(nn.Module):
    def __init__(self, vocabulary: int, width: int, hidden: int, heads: int, head: int, layers: int) -> None:
        super().__init__()
        sizes = (width, hidden, heads, head)
        upper = [DecoderLayer(*sizes) for _ in range(layers)]
        lower = [EncoderLayer(*sizes) for _ in range(layers)]
        self.decoder = Stack(upper, "decoder_norm", width, RelativeBias(heads, both_ways=False))
        self.encoder = Stack(lower, "encoder_norm", width, RelativeBias(heads, both_ways=True))
        self.token_embedder = nn.ParameterDict({"embedding": nn.Parameter(torch.zeros(vocabulary, width))})

    def forward(self, tokens: Tensor, after: Tensor) -> Tensor:
        table = self.token_embedder["embedding"]
        memory = self.encoder(table[tokens], 0.0)
        x = self.decoder(table[after], causal(after.shape[1]), memory)
        return x * x.shape[-1] ** -0.5 @ table.T


def source(tiny: bool) -> nn.Module:
    small = {"vocab_size": 60, "d_model": 24, "d_ff": 80, "num_heads": 3, "d_kv": 12, "num_layers": 2}
    config = T5Config(**(small if tiny else {}))
    config._attn_implementation = "eager"
    return T5ForConditionalGeneration(config)


def target(tiny: bool) -> nn.Module:
    return T5X(60, 24, 80, 3, 12, 2) if tiny else T5X(32128, 512, 2048, 8, 64, 6)


def truth(source: Shapes, target: Shapes) -> WeightMap:
    norms = {"encoder": ("attention", "mlp"), "decoder": ("self_attention", "cross_attention", "mlp")}
    names = {"q": "query", "k": "key", "v": "value", "o": "out"}
    rules = [
        *(
            (
                rf"^{stack}\.block\.(\d+)\.layer\.{i}\.layer_norm\.weight",
                rf"{stack}.layers_\1.pre_{role}_layer_norm.scale",
            )
            for stack, roles in norms.items()
            for i, role in enumerate(roles)
        ),
        (
            r"^(\w+)\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
            r"\1.relpos_bias.rel_embedding",
        ),
        (r"^(\w+)\.block\.(\d+)\.layer\.\d+\.", r"\1.layers_\2."),
        (r"^encoder(\.layers_\d+)\.SelfAttention\.", r"encoder\1.attention."),
        (r"\.SelfAttention\.", ".self_attention."),
        (r"\.EncDecAttention\.", ".encoder_decoder_attention."),
        *((rf"attention\.{old}\.weight", f"attention.{new}.kernel") for old, new in names.items()),
        (r"\.DenseReluDense\.(w[io])\.weight", r".mlp.\1.kernel"),
        (r"^(\w+)\.final_layer_norm\.weight", r"\1.\1_norm.scale"),
        (r"^shared\.weight", "token_embedder.embedding"),
    ]
    return WeightMap(tuple(renamed(source, target, rules, transposed=r"\.(kernel|rel_embedding)$")))


def inputs() -> dict[str, tuple[Tensor | None, ...]]:
    tokens, after = torch.randint(1, 60, (2, 25)), torch.randint(1, 60, (2, 19))
    return {"source": (tokens, None, after), "target": (tokens, after)}


T5 = Pair(
    "t5_small: transformers to t5x", source, target, truth, inputs, output=lambda out: getattr(out, "logits", out)
)
