"""DistilBERT: transformers to names of another making, in another order."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DistilBertConfig, DistilBertForMaskedLM

from lit_wsl.state.remap import WeightMap
from tests.mapper.pairs.held_out_entries import renamed
from tests.mapper.pairs.held_out_layers import attend
from tests.mapper.pairs.pair import Pair, Shapes

EPS = 1e-12


class Mixer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.Wo = nn.Linear(width, width)
        self.Wq = nn.Linear(width, width)
        self.Wk = nn.Linear(width, width)
        self.Wv = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.Wo(attend(self.Wq(x), self.Wk(x), self.Wv(x), self.heads))


class Cell(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.ln_mix = nn.LayerNorm(width, EPS)
        self.ln_ff = nn.LayerNorm(width, EPS)
        self.mix = Mixer(width, heads)
        self.ff = nn.ModuleDict({"up": nn.Linear(width, hidden), "down": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln_mix(x + self.mix(x))
        return self.ln_ff(x + self.ff["down"](functional.gelu(self.ff["up"](x))))


class Reader(nn.Module):
    def __init__(self, vocabulary: int, length: int, width: int, hidden: int, heads: int, layers: int) -> None:
        super().__init__()
        self.lexicon = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.ln_in = nn.LayerNorm(width, EPS)
        self.trunk = nn.ModuleList(Cell(width, hidden, heads) for _ in range(layers))
        self.guess = nn.ModuleDict({"mid": nn.Linear(width, width), "ln": nn.LayerNorm(width, EPS)})
        self.guess["out"] = nn.Linear(width, vocabulary)
        self.guess["out"].weight = self.lexicon.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.ln_in(self.lexicon(tokens) + self.places.weight[: tokens.shape[1]])
        for cell in self.trunk:
            x = cell(x)
        return self.guess["out"](self.guess["ln"](functional.gelu(self.guess["mid"](x))))


def source(tiny: bool) -> nn.Module:
    small = {"vocab_size": 60, "max_position_embeddings": 20, "dim": 24, "hidden_dim": 72, "n_heads": 3, "n_layers": 2}
    config = DistilBertConfig(**(small if tiny else {}))
    config._attn_implementation = "eager"
    return DistilBertForMaskedLM(config)


def target(tiny: bool) -> nn.Module:
    return Reader(60, 20, 24, 72, 3, 2) if tiny else Reader(30522, 512, 768, 3072, 12, 6)


def truth(source: Shapes, target: Shapes) -> WeightMap:
    rules = [
        (r"^distilbert\.transformer\.layer\.", "trunk."),
        (r"\.attention\.([qkv])_lin", r".mix.W\1"),
        (r"\.attention\.out_lin", ".mix.Wo"),
        (r"\.sa_layer_norm", ".ln_mix"),
        (r"\.output_layer_norm", ".ln_ff"),
        (r"\.ffn\.lin1", ".ff.up"),
        (r"\.ffn\.lin2", ".ff.down"),
        (r"^distilbert\.embeddings\.word_embeddings", "lexicon"),
        (r"^distilbert\.embeddings\.position_embeddings", "places"),
        (r"^distilbert\.embeddings\.LayerNorm", "ln_in"),
        (r"^vocab_transform", "guess.mid"),
        (r"^vocab_layer_norm", "guess.ln"),
        (r"^vocab_projector", "guess.out"),
    ]
    return WeightMap(tuple(renamed(source, target, rules)))


DISTILBERT = Pair(
    "distilbert: transformers to other names",
    source,
    target,
    truth,
    inputs=lambda: torch.randint(60, (2, 11)),
    output=lambda out: getattr(out, "logits", out),
)
