"""Random numbers that depend only on what they are for, never on when or where they are drawn.

Every number is a hash of (seed, label, element index). The order of calls, the block size, the number of
threads and the device change no bit of it; that a masked merge can be split, resumed and repeated rests on it.
"""

import hashlib
import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B9
_MUL_1 = 0x7FEB352D
_MUL_2 = 0x846CA68B


def _signed(word: int) -> int:
    """The int32 with the bit pattern of the low 32 bits of ``word``."""
    word &= 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def _xor_shift(words: Tensor, shift: int, scratch: Tensor) -> None:
    """``words ^= words >>> shift`` (logical shift), in place."""
    torch.bitwise_right_shift(words, shift, out=scratch)
    scratch.bitwise_and_((1 << (32 - shift)) - 1)
    words.bitwise_xor_(scratch)


class CounterRng:
    """Counter-based generator of 32-bit words, keyed by a seed and a label.

    The mixer is the two-multiplication "lowbias32" finaliser with a key word added before each
    multiplication, so that two labels give unrelated streams. It is made for masks and sketches,
    not for cryptography.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _keys(self, label: str, high: int) -> tuple[int, int, int]:
        digest = hashlib.blake2b(f"{self.seed}\0{label}\0{high}".encode(), digest_size=12).digest()
        return tuple(int.from_bytes(digest[i : i + 4], "little") for i in (0, 4, 8))  # type: ignore[return-value]

    def words(self, label: str, count: int, offset: int = 0, device: torch.device | str = "cpu") -> Tensor:
        """Uniform 32-bit words of elements ``[offset, offset + count)``, shape ``(count,)``, int32."""
        out = torch.empty(count, dtype=torch.int32, device=device)
        done = 0
        while done < count:
            high, low = divmod(offset + done, 1 << 32)
            step = min(count - done, (1 << 32) - low)
            self._fill(out[done : done + step], label, high, low)
            done += step
        return out

    def _fill(self, words: Tensor, label: str, high: int, low: int) -> None:
        first, second, third = self._keys(label, high)
        scratch = torch.empty_like(words)
        torch.arange(words.numel(), dtype=torch.int32, device=words.device, out=words)
        words.mul_(_signed(_GOLDEN)).add_(_signed(low * _GOLDEN + first))
        _xor_shift(words, 16, scratch)
        words.mul_(_signed(_MUL_1)).add_(_signed(second))
        _xor_shift(words, 15, scratch)
        words.mul_(_signed(_MUL_2)).add_(_signed(third))
        _xor_shift(words, 16, scratch)
        words.mul_(_signed(_MUL_1))
        _xor_shift(words, 15, scratch)

    def keep_mask(self, label: str, probability: float, like: Tensor, offset: int = 0) -> Tensor:
        """Boolean mask, true with ``probability``, shaped like ``like``, whose first element has ``offset``."""
        if probability >= 1.0:
            return torch.ones_like(like, dtype=torch.bool)
        limit = round(probability * (1 << 32)) - (1 << 31)
        words = self.words(label, like.numel(), offset, like.device)
        return (words < limit).view(like.shape)

    def normal(self, label: str, count: int) -> Tensor:
        """Standard normal numbers by the Box-Muller transform, shape ``(count,)``, float32."""
        half = (count + 1) // 2
        uniform = (self.words(label, 2 * half).double() + (1 << 31) + 0.5) / (1 << 32)
        radius = torch.sqrt(-2.0 * torch.log(uniform[:half]))
        angle = 2.0 * math.pi * uniform[half:]
        return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:count].float()
