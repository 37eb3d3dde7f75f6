"""Pairs that no tuning may see: they measure the mapper, they do not shape it."""

from tests.mapper.pairs.held_out_distilbert import DISTILBERT
from tests.mapper.pairs.held_out_fairseq import ROBERTA, WAV2VEC2
from tests.mapper.pairs.held_out_litgpt import LITGPT
from tests.mapper.pairs.held_out_swin import SWIN
from tests.mapper.pairs.held_out_t5 import T5
from tests.mapper.pairs.held_out_vit import BEIT, DEIT, DINOV2
from tests.mapper.pairs.held_out_whisper import WHISPER
from tests.mapper.pairs.pair import Pair

HELD_OUT: list[Pair] = [SWIN, BEIT, DINOV2, WHISPER, ROBERTA, DISTILBERT, T5, *LITGPT, DEIT, WAV2VEC2]
