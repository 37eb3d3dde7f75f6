"""Adapted layers in the layouts of other libraries, and small networks of them; written for these tests."""

import torch
from torch import nn
from torch.nn import functional as F


class NanoLinear(nn.Module):
    """nanoGPT's kind: the plain layer is `main_weight`."""

    def __init__(self, d_in, d_out, rank, alpha=6.0, bias=True):
        super().__init__()
        self.main_weight = nn.Linear(d_in, d_out, bias=bias)
        if rank:
            self.lora_A = nn.Linear(d_in, rank, bias=False)
            self.lora_B = nn.Linear(rank, d_out, bias=False)
            self.scaling = alpha / rank

    def forward(self, x):
        out = self.main_weight(x)
        return out + self.lora_B(self.lora_A(x)) * self.scaling if hasattr(self, "lora_A") else out


class NanoEmbedding(nn.Module):
    """nanoGPT's kind: the down projection is an embedding of its own."""

    def __init__(self, entries, width, rank, alpha=6.0):
        super().__init__()
        self.main_weight = nn.Embedding(entries, width)
        self.lora_A = nn.Embedding(entries, rank)
        self.lora_B = nn.Linear(rank, width, bias=False)
        self.scaling = alpha / rank

    def forward(self, tokens):
        return self.main_weight(tokens) + self.lora_B(self.lora_A(tokens)) * self.scaling


class LitLinear(nn.Module):
    """litgpt's: the factors are parameters beside `linear`; rank 0 leaves them out."""

    def __init__(self, d_in, d_out, rank, alpha=6.0):
        super().__init__()
        self.linear = nn.Linear(d_in, d_out)
        self.r, self.lora_alpha, self.merged = rank, alpha, False
        if rank:
            self.lora_A = nn.Parameter(torch.randn(rank, d_in))
            self.lora_B = nn.Parameter(torch.randn(d_out, rank))
            self.scaling = alpha / rank

    def forward(self, x):
        out = self.linear(x)
        return out + x @ self.lora_A.T @ self.lora_B.T * self.scaling if self.r and not self.merged else out


class LitQKV(nn.Module):
    """litgpt's fused projection; q, k and v stand in order, or interleaved by query group as in its first releases."""

    def __init__(self, width, heads, groups, rank, enable=(True, True, True), alpha=6.0, interleaved=False):
        super().__init__()
        size = width // heads
        sizes = (size * heads, size * groups, size * groups)
        self.linear = nn.Linear(width, sum(sizes))
        self.r, self.lora_alpha, self.merged, self.scaling = rank, alpha, False, alpha / rank
        self.enable_lora = list(enable)
        self.qkv_shapes = [s for s, on in zip(sizes, enable, strict=True) if on]
        self.lora_ind = _rows(sizes, enable, size, heads // groups, interleaved)
        self.lora_A = nn.Parameter(torch.randn(rank * sum(enable), width))
        self.lora_B = nn.Parameter(torch.randn(sum(self.qkv_shapes), rank))

    def forward(self, x):
        parts = (x @ self.lora_A.T).transpose(-1, -2).chunk(len(self.qkv_shapes), dim=-2)
        up = self.lora_B.split(self.qkv_shapes)
        if len(set(self.qkv_shapes)) == 1:
            joined = F.conv1d(torch.cat(parts, dim=-2), self.lora_B[..., None], groups=len(parts))
        else:
            joined = torch.cat([F.conv1d(a, b[..., None]) for a, b in zip(parts, up, strict=True)], dim=-2)
        update = joined.transpose(-1, -2)
        if not all(self.enable_lora):  # the original leaves a full update in the order q, k, v
            update = torch.zeros_like(self.linear(x)).index_copy(-1, torch.tensor(self.lora_ind), update)
        return self.linear(x) + update * self.scaling


def _rows(sizes, enable, head, per_group, interleaved):
    """Rows of the fused weight that belong to each enabled part, part after part."""
    total = range(sum(sizes))
    if interleaved:
        period = per_group + 2
        kinds = [min(max(row // head % period - per_group + 1, 0), 2) for row in total]
    else:
        kinds = [0 if row < sizes[0] else 1 if row < sizes[0] + sizes[1] else 2 for row in total]
    return [row for part in range(3) if enable[part] for row in total if kinds[row] == part]


class TuneLinear(nn.Module):
    """torchtune's: weight and bias are the layer's own."""

    def __init__(self, d_in, d_out, rank, alpha=6.0, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_out, d_in))
        self.bias = nn.Parameter(torch.randn(d_out)) if bias else None
        self.rank, self.alpha, self.merged = rank, alpha, False
        self.lora_a = nn.Linear(d_in, rank, bias=False)
        self.lora_b = nn.Linear(rank, d_out, bias=False)
        self.dropout = nn.Identity()

    def forward(self, x):
        update = self.lora_b(self.lora_a(self.dropout(x))) * (self.alpha / self.rank)
        return F.linear(x, self.weight, self.bias) + (0 if self.merged else update)


class TuneDora(TuneLinear):
    """torchtune's, with lengths of the rows to learn."""

    def __init__(self, d_in, d_out, rank, alpha=6.0, bias=True):
        super().__init__(d_in, d_out, rank, alpha, bias)
        self.magnitude = nn.Parameter(torch.rand(d_out) + 0.5)

    def forward(self, x):
        moved = self.weight + self.lora_b.weight @ self.lora_a.weight * (self.alpha / self.rank)
        return F.linear(x, moved * (self.magnitude / moved.norm(dim=1)).unsqueeze(1), self.bias)


class Net(nn.Module):
    """Embedding, two layers with a norm between, head."""

    def __init__(self, embed, first, second):
        super().__init__()
        self.embed, self.first, self.second = embed, first, second
        self.norm = nn.LayerNorm(8)

    def forward(self, tokens):
        return self.second(self.norm(self.first(self.embed(tokens))).tanh())


def plain_net(width=8):
    """The network without adapters; `width` is that of the first layer's output."""
    net = Net(nn.Embedding(11, 8), nn.Linear(8, width), nn.Linear(width, 5))
    net.norm = nn.LayerNorm(width)
    return net


def _lit_qkv(enable=(True, True, True), groups=2, interleaved=False):
    def build(rank):
        net = Net(nn.Embedding(11, 8), LitQKV(8, 4, groups, rank, enable, interleaved=interleaved), nn.Identity())
        net.norm = nn.LayerNorm(8 + 4 * groups)
        net.second = LitLinear(8 + 4 * groups, 5, 0)
        return net

    return build


NETS = {
    "nanoGPT": lambda rank: Net(NanoEmbedding(11, 8, rank), NanoLinear(8, 8, rank), NanoLinear(8, 5, 0)),
    "nanoGPT without bias": lambda rank: Net(
        NanoEmbedding(11, 8, rank), NanoLinear(8, 8, rank, bias=False), nn.Linear(8, 5)
    ),
    "litgpt": lambda rank: Net(nn.Embedding(11, 8), LitLinear(8, 8, rank), LitLinear(8, 5, 0)),
    "litgpt qkv": _lit_qkv(groups=4),
    "litgpt qkv grouped": _lit_qkv(groups=2),
    "litgpt qv": _lit_qkv((True, False, True)),
    "litgpt k of one": _lit_qkv((False, True, False), groups=1),
    "litgpt qv interleaved": _lit_qkv((True, False, True), interleaved=True),
    "litgpt qk interleaved": _lit_qkv((True, True, False), groups=4, interleaved=True),
    "litgpt qkv interleaved": _lit_qkv(interleaved=True),
    "torchtune": lambda rank: Net(nn.Embedding(11, 8), TuneLinear(8, 8, rank), TuneLinear(8, 5, rank, bias=False)),
    "torchtune DoRA": lambda rank: Net(nn.Embedding(11, 8), TuneDora(8, 8, rank), TuneDora(8, 5, rank, bias=False)),
}
"""Dialect to a function from a rank to a network whose adapters are not zero."""


def plain_like(net):
    """The network without adapters that has the outer shapes of ``net``."""
    plain = plain_net(net.norm.normalized_shape[0])
    if getattr(net.second, "bias", True) is None:
        plain.second.bias = None
    if isinstance(net.first, NanoLinear) and net.first.main_weight.bias is None:
        plain.first.bias = None
    return plain


@torch.no_grad()
def output(net):
    """What a network makes of fixed tokens."""
    return net(torch.arange(22).reshape(2, 11) * 3 % 11)
