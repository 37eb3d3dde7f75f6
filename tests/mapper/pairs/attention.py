"""Attention and rotary embeddings that the small models share."""

import torch
from torch import Tensor
from torch.nn import functional


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """Attention of heads ``(B, H, T, D)``, keys and values repeated for groups of heads; gives ``(B, T, H * D)``."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).flatten(2)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """``(B, T, H * D)`` as ``(B, H, T, D)``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def angles(x: Tensor, size: int, base: float) -> Tensor:
    """Angle of every position and rotary pair, ``(T, size / 2)``."""
    frequencies = base ** (-torch.arange(0, size, 2, device=x.device).float() / size)
    return torch.outer(torch.arange(x.shape[-2], device=x.device).float(), frequencies)


def rotate_halves(x: Tensor, base: float, size: int) -> Tensor:
    """Rotary embedding of the first ``size`` entries; a pair is an entry of each half."""
    turned, rest = x[..., :size], x[..., size:]
    angle = angles(x, size, base).repeat(1, 2)
    first, second = turned.chunk(2, dim=-1)
    turned = turned * angle.cos() + torch.cat((-second, first), dim=-1) * angle.sin()
    return torch.cat((turned, rest), dim=-1)


def rotate_pairs(x: Tensor, base: float) -> Tensor:
    """Rotary embedding; a pair is two neighbours."""
    angle = angles(x, x.shape[-1], base)
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
