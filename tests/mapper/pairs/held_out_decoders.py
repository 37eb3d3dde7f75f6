"""OPT: transformers to metaseq's fused projection; BLOOM: transformers' interleaved projection to split ones."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BloomConfig, BloomForCausalLM, OPTConfig, OPTForCausalLM

from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.held_out_entries import fused, renamed, split
from tests.mapper.pairs.held_out_layers import attend, causal
from tests.mapper.pairs.pair import Pair, Shapes

PAD = 1


class FusedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attend(*self.qkv_proj(x).chunk(3, -1), self.heads, causal(x.shape[1])))


class MetaseqLayer(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.self_attn = FusedAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        return x + self.fc2(self.fc1(self.final_layer_norm(x)).relu())


class MetaseqDecoder(nn.Module):
    def __init__(self, vocabulary: int, length: int, width: int, hidden: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width, PAD)
        self.embed_positions = nn.Embedding(length + PAD + 1, width, PAD)
        self.layers = nn.ModuleList(MetaseqLayer(width, hidden, heads) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(width)
        self.output_projection = nn.Linear(width, vocabulary, bias=False)
        self.output_projection.weight = self.embed_tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens) + self.embed_positions(torch.arange(tokens.shape[1]) + PAD + 1)
        for layer in self.layers:
            x = layer(x)
        return self.output_projection(self.layer_norm(x))


class Metaseq(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.decoder = MetaseqDecoder(*sizes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(tokens)


class AlibiAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1])
        slopes = 2.0 ** (-8 / self.heads * torch.arange(1, self.heads + 1))
        bias = slopes[:, None, None] * (at - at[:, None]) + causal(len(at))
        return self.to_out(attend(self.to_q(x), self.to_k(x), self.to_v(x), self.heads, bias))


class AlibiBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_a = nn.LayerNorm(width)
        self.attn = AlibiAttention(width, heads)
        self.ln_b = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_a(x))
        return x + self.ffn(self.ln_b(x))


class Alibi(nn.Module):
    """A decoder whose head is the embedding, without a name of its own."""

    def __init__(self, vocabulary: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tok = nn.Embedding(vocabulary, width)
        self.tok_ln = nn.LayerNorm(width)
        self.body = nn.ModuleList(AlibiBlock(width, heads) for _ in range(layers))
        self.out_ln = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_ln(self.tok(tokens))
        for block in self.body:
            x = block(x)
        return functional.linear(self.out_ln(x), self.tok.weight)


def opt_source(tiny: bool) -> nn.Module:
    small = {"vocab_size": 60, "max_position_embeddings": 20, "hidden_size": 24, "word_embed_proj_dim": 24}
    small |= {"ffn_dim": 72, "num_attention_heads": 3, "num_hidden_layers": 2}
    config = OPTConfig(**(small if tiny else {}))
    config._attn_implementation = "eager"
    return OPTForCausalLM(config)


def opt_target(tiny: bool) -> nn.Module:
    return Metaseq(60, 20, 24, 72, 3, 2) if tiny else Metaseq(50272, 2048, 768, 3072, 12, 12)


def opt_truth(source: Shapes, target: Shapes) -> WeightMap:
    rules = [
        (r"^model\.decoder\.final_layer_norm", "model.decoder.layer_norm"),
        (r"^model\.", ""),
        (r"^lm_head", "decoder.output_projection"),
    ]
    parts = [rf"model.decoder.layers.\1.self_attn.{name}_proj.\2" for name in "qkv"]
    qkv = fused(source, target, r"decoder\.layers\.(\d+)\.self_attn\.qkv_proj\.(weight|bias)", parts)
    return WeightMap((*renamed(source, target, rules), *qkv))


BLOOM_HEADS = {1024: 16, 32: 4}
"""Heads by width: shapes do not tell them."""


def bloom_source(tiny: bool) -> nn.Module:
    width, layers, vocabulary = (32, 2, 60) if tiny else (1024, 24, 250880)
    config = BloomConfig(vocab_size=vocabulary, hidden_size=width, n_layer=layers, n_head=BLOOM_HEADS[width])
    config._attn_implementation = "eager"
    return BloomForCausalLM(config)


def bloom_target(tiny: bool) -> nn.Module:
    width, layers, vocabulary = (32, 2, 60) if tiny else (1024, 24, 250880)
    return Alibi(vocabulary, width, BLOOM_HEADS[width], layers)


def bloom_truth(source: Shapes, target: Shapes) -> WeightMap:
    rules = [
        (r"^transformer\.word_embeddings_layernorm", "tok_ln"),
        (r"^transformer\.word_embeddings", "tok"),
        (r"^transformer\.ln_f", "out_ln"),
        (r"^transformer\.h\.", "body."),
        (r"\.input_layernorm", ".ln_a"),
        (r"\.post_attention_layernorm", ".ln_b"),
        (r"\.self_attention\.dense", ".attn.to_out"),
        (r"\.mlp\.dense_h_to_4h", ".ffn.0"),
        (r"\.mlp\.dense_4h_to_h", ".ffn.2"),
    ]
    whole = r"transformer\.h\.(\d+)\.self_attention\.query_key_value\.(weight|bias)"
    heads = BLOOM_HEADS[target["tok.weight"][1]]
    qkv = split(source, target, whole, [rf"body.\1.attn.to_{name}.\2" for name in "qkv"], groups=heads)
    return WeightMap((*renamed(source, target, rules), *qkv))


OPT = Pair(
    "opt_125m: transformers to metaseq",
    opt_source,
    opt_target,
    opt_truth,
    inputs=lambda: torch.randint(2, 60, (2, 11)),
    output=lambda out: getattr(out, "logits", out),
)
BLOOM = Pair(
    "bloom_560m: transformers to split projections",
    bloom_source,
    bloom_target,
    bloom_truth,
    inputs=lambda: torch.randint(4, 60, (2, 11)),
    output=lambda out: getattr(out, "logits", out),
)
