"""Whisper: transformers to the layout of the authors' code."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig, WhisperForConditionalGeneration

from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.held_out_entries import renamed
from tests.mapper.pairs.held_out_layers import attend, causal
from tests.mapper.pairs.pair import Pair, Shapes


def sinusoids(length: int, width: int) -> Tensor:
    """Sines, then cosines, of places at wavelengths from 2 pi to 20000 pi; both libraries start from them."""
    rates = torch.exp(-torch.arange(width // 2) * math.log(10000) / (width // 2 - 1))
    angles = torch.arange(length)[:, None] * rates[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.out(attend(self.query(x), self.key(memory), self.value(memory), self.heads, mask))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.attn_ln = nn.LayerNorm(width)
        self.cross_attn = Attention(width, heads) if cross else None
        self.cross_attn_ln = nn.LayerNorm(width) if cross else None
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        normed = self.attn_ln(x)
        x = x + self.attn(normed, normed, mask)
        if self.cross_attn is not None and self.cross_attn_ln is not None and memory is not None:
            x = x + self.cross_attn(self.cross_attn_ln(x), memory)
        return x + self.mlp(self.mlp_ln(x))


class AudioEncoder(nn.Module):
    def __init__(self, mels: int, length: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.register_buffer("positional_embedding", sinusoids(length, width))
        self.blocks = nn.ModuleList(Block(width, heads, cross=False) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)

    def forward(self, mels: Tensor) -> Tensor:
        x = functional.gelu(self.conv2(functional.gelu(self.conv1(mels)))).mT + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        return self.ln_post(x)


class TextDecoder(nn.Module):
    def __init__(self, vocabulary: int, length: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.ModuleList(Block(width, heads, cross=True) for _ in range(layers))
        self.ln = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        for block in self.blocks:
            x = block(x, memory, causal(length))
        return self.ln(x) @ self.token_embedding.weight.T


class OpenAIWhisper(nn.Module):
    def __init__(self, mels: int, audio: int, vocabulary: int, text: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.encoder = AudioEncoder(mels, audio, width, heads, layers)
        self.decoder = TextDecoder(vocabulary, text, width, heads, layers)

    def forward(self, mels: Tensor, tokens: Tensor) -> Tensor:
        return self.decoder(tokens, self.encoder(mels))


def source(tiny: bool) -> nn.Module:
    small = {"num_mel_bins": 10, "max_source_positions": 14, "vocab_size": 60, "max_target_positions": 18}
    small |= {"d_model": 24, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    small |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 3)
    small |= dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
    small |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    config = WhisperConfig(**(small if tiny else {}))
    config._attn_implementation = "eager"
    return WhisperForConditionalGeneration(config)


def target(tiny: bool) -> nn.Module:
    return OpenAIWhisper(10, 14, 60, 18, 24, 3, 2) if tiny else OpenAIWhisper(80, 1500, 51865, 448, 384, 6, 4)


def truth(source: Shapes, target: Shapes) -> WeightMap:
    """The sinusoids, a buffer of the target, count: they are a weight of the source."""
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    rules = [
        (r"^model\.", ""),
        (r"^(\w+)\.layers\.", r"\1.blocks."),
        (r"\.self_attn_layer_norm", ".attn_ln"),
        (r"\.encoder_attn_layer_norm", ".cross_attn_ln"),
        (r"\.final_layer_norm", ".mlp_ln"),
        (r"\.self_attn\.", ".attn."),
        (r"\.encoder_attn\.", ".cross_attn."),
        *((rf"\.{old}\.", f".{new}.") for old, new in names.items()),
        (r"\.fc1", ".mlp.0"),
        (r"\.fc2", ".mlp.2"),
        (r"^encoder\.layer_norm", "encoder.ln_post"),
        (r"^decoder\.layer_norm", "decoder.ln"),
        (r"\.embed_positions\.weight", ".positional_embedding"),
        (r"\.embed_tokens", ".token_embedding"),
    ]
    return WeightMap(tuple(renamed(source, target, rules)))


def inputs() -> dict[str, tuple[Tensor | None, ...]]:
    mels, tokens = torch.randn(2, 10, 28), torch.randint(60, (2, 9))
    return {"source": (mels, None, tokens), "target": (mels, tokens)}


WHISPER = Pair(
    "whisper_tiny: transformers to openai",
    source,
    target,
    truth,
    inputs,
    output=lambda out: getattr(out, "logits", out),
)
