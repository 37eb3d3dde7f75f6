"""Pairs that no tuning may see: they measure the mapper, they do not shape it."""

from tests.mapper.pairs.held_out_swin import SWIN
from tests.mapper.pairs.held_out_vit import BEIT, DEIT, DINOV2
from tests.mapper.pairs.pair import Pair

HELD_OUT: list[Pair] = [SWIN, BEIT, DINOV2, DEIT]
