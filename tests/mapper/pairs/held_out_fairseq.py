"""RoBERTa and wav2vec 2.0: transformers to fairseq."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import RobertaConfig, RobertaForMaskedLM, Wav2Vec2Config, Wav2Vec2Model

from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.held_out_entries import renamed
from tests.mapper.pairs.held_out_layers import attend
from tests.mapper.pairs.pair import Pair, Shapes

PAD = 1


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads))


class EncoderLayer(nn.Module):
    """Norms after the residuals, as in both models."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x))
        return self.final_layer_norm(x + self.fc2(functional.gelu(self.fc1(x))))


class SentenceEncoder(nn.Module):
    def __init__(self, vocabulary: int, length: int, width: int, hidden: int, heads: int, layers: int) -> None:
        super().__init__()
        self.register_buffer("version", torch.full((1,), 3.0))
        self.embed_tokens = nn.Embedding(vocabulary, width, PAD)
        self.embed_positions = nn.Embedding(length + PAD + 1, width, PAD)
        self.layernorm_embedding = nn.LayerNorm(width)
        self.layers = nn.ModuleList(EncoderLayer(width, hidden, heads) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1]) + PAD + 1
        x = self.layernorm_embedding(self.embed_tokens(tokens) + self.embed_positions(positions))
        for layer in self.layers:
            x = layer(x)
        return x


class RobertaHead(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        vocabulary, width = weight.shape
        self.dense = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width)
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.layer_norm(functional.gelu(self.dense(x))), self.weight, self.bias)


class FairseqRoberta(nn.Module):
    def __init__(self, vocabulary: int, length: int, width: int, hidden: int, heads: int, layers: int) -> None:
        super().__init__()
        encoder = SentenceEncoder(vocabulary, length, width, hidden, heads, layers)
        head = RobertaHead(encoder.embed_tokens.weight)
        self.encoder = nn.ModuleDict({"sentence_encoder": encoder, "lm_head": head})

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encoder["lm_head"](self.encoder["sentence_encoder"](tokens))


class PositionalConv(nn.Module):
    """A grouped convolution whose weight is normed over all but the last dimension."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.padding, self.groups = kernel // 2, groups
        self.bias = nn.Parameter(torch.zeros(width))
        self.weight_g = nn.Parameter(torch.ones(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.ones(width, width // groups, kernel))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_v * self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True)
        made = functional.conv1d(x, weight, self.bias, padding=self.padding, groups=self.groups)
        return functional.gelu(made[..., : x.shape[-1]])


class SpeechEncoder(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, layers: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.pos_conv = nn.Sequential(PositionalConv(width, kernel, groups))
        self.layers = nn.ModuleList(EncoderLayer(width, hidden, heads) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(x + self.pos_conv(x.mT).mT)
        for layer in self.layers:
            x = layer(x)
        return x


class FeatureExtractor(nn.Module):
    def __init__(self, convs: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList()
        before = 1
        for i, (width, kernel, stride) in enumerate(convs):
            norm = [nn.GroupNorm(width, width)] if i == 0 else []
            conv = nn.Conv1d(before, width, kernel, stride, bias=False)
            self.conv_layers.append(nn.Sequential(conv, nn.Dropout(0.0), *norm, nn.GELU()))
            before = width

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.conv_layers:
            x = conv(x)
        return x


class FairseqWav2Vec2(nn.Module):
    """Without the modules of pretraining, as ``remove_pretraining_modules`` leaves it."""

    def __init__(self, convs: list[tuple[int, int, int]], width: int, encoder: SpeechEncoder) -> None:
        super().__init__()
        self.mask_emb = nn.Parameter(torch.zeros(width))
        self.feature_extractor = FeatureExtractor(convs)
        self.post_extract_proj = nn.Linear(convs[-1][0], width)
        self.encoder = encoder
        self.layer_norm = nn.LayerNorm(convs[-1][0])

    def forward(self, wave: Tensor) -> Tensor:
        x = self.layer_norm(self.feature_extractor(wave[:, None]).mT)
        return self.encoder(self.post_extract_proj(x))


def roberta_source(tiny: bool) -> nn.Module:
    small = {"vocab_size": 60, "max_position_embeddings": 20, "hidden_size": 24, "intermediate_size": 72}
    small |= {"num_attention_heads": 3, "num_hidden_layers": 2}
    real = {"max_position_embeddings": 514}
    config = RobertaConfig(type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=PAD, **(small if tiny else real))
    config._attn_implementation = "eager"
    model = RobertaForMaskedLM(config)
    # RoBERTa has no segments: this table is zero in every checkpoint, and fairseq has none.
    model.roberta.embeddings.token_type_embeddings.register_forward_hook(lambda module, given, made: made * 0)
    return model


def roberta_target(tiny: bool) -> nn.Module:
    return FairseqRoberta(60, 18, 24, 72, 3, 2) if tiny else FairseqRoberta(50265, 512, 768, 3072, 12, 12)


def roberta_truth(source: Shapes, target: Shapes) -> WeightMap:
    rules = [
        (r"^roberta\.encoder\.layer\.", "encoder.sentence_encoder.layers."),
        (r"\.attention\.self\.(.)\w+\.", r".self_attn.\1_proj."),
        (r"\.attention\.output\.dense", ".self_attn.out_proj"),
        (r"\.attention\.output\.LayerNorm", ".self_attn_layer_norm"),
        (r"\.intermediate\.dense", ".fc1"),
        (r"\.output\.dense", ".fc2"),
        (r"\.output\.LayerNorm", ".final_layer_norm"),
        (r"^roberta\.embeddings\.word_embeddings", "encoder.sentence_encoder.embed_tokens"),
        (r"^roberta\.embeddings\.position_embeddings", "encoder.sentence_encoder.embed_positions"),
        (r"^roberta\.embeddings\.LayerNorm", "encoder.sentence_encoder.layernorm_embedding"),
        (r"^lm_head\.decoder\.weight", "lm_head.weight"),
        (r"^lm_head", "encoder.lm_head"),
    ]
    return WeightMap(tuple(renamed(source, target, rules)))


CONVS = [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2]
SMALL_CONVS = [(16, 10, 5), (16, 3, 2), (16, 2, 2)]


def speech_source(tiny: bool) -> nn.Module:
    small = {"hidden_size": 24, "intermediate_size": 72, "num_attention_heads": 3, "num_hidden_layers": 2}
    small |= {f"conv_{name}": [conv[i] for conv in SMALL_CONVS] for i, name in enumerate(("dim", "kernel", "stride"))}
    small |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 3}
    config = Wav2Vec2Config(**(small if tiny else {}))
    config._attn_implementation = "eager"
    return Wav2Vec2Model(config)


def speech_target(tiny: bool) -> nn.Module:
    if tiny:
        return FairseqWav2Vec2(SMALL_CONVS, 24, SpeechEncoder(24, 72, 3, 2, 8, 4))
    return FairseqWav2Vec2(CONVS, 768, SpeechEncoder(768, 3072, 12, 12, 128, 16))


def speech_truth(source: Shapes, target: Shapes) -> WeightMap:
    rules = [
        (r"^masked_spec_embed", "mask_emb"),
        (r"conv_layers\.(\d+)\.conv\.", r"conv_layers.\1.0."),
        (r"conv_layers\.(\d+)\.layer_norm\.", r"conv_layers.\1.2."),
        (r"^feature_projection\.layer_norm", "layer_norm"),
        (r"^feature_projection\.projection", "post_extract_proj"),
        (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
        (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
        (r"pos_conv_embed\.conv", "pos_conv.0"),
        (r"(layers\.\d+)\.attention\.", r"\1.self_attn."),
        (r"(layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm"),
        (r"feed_forward\.intermediate_dense", "fc1"),
        (r"feed_forward\.output_dense", "fc2"),
    ]
    return WeightMap(tuple(renamed(source, target, rules)))


ROBERTA = Pair(
    "roberta_base: transformers to fairseq",
    roberta_source,
    roberta_target,
    roberta_truth,
    inputs=lambda: torch.randint(2, 60, (2, 11)),
    output=lambda out: getattr(out, "logits", out),
)
WAV2VEC2 = Pair(
    "wav2vec2_base: transformers to fairseq",
    speech_source,
    speech_target,
    speech_truth,
    inputs=lambda: torch.randn(2, 400),
    output=lambda out: getattr(out, "last_hidden_state", out),
)
