"""Pairs that no tuning may see: they measure the mapper, they do not shape it."""

from tests.mapper.pairs.held_out_decoders import BLOOM, OPT
from tests.mapper.pairs.held_out_distilbert import DISTILBERT
from tests.mapper.pairs.held_out_fairseq import ROBERTA, WAV2VEC2
from tests.mapper.pairs.held_out_litgpt import LITGPT
from tests.mapper.pairs.held_out_mixer import MLP_MIXER
from tests.mapper.pairs.held_out_mobile import EFFICIENTNET_B0, MOBILENET_V2
from tests.mapper.pairs.held_out_regnet import REGNET
from tests.mapper.pairs.held_out_segformer import SEGFORMER
from tests.mapper.pairs.held_out_swin import SWIN
from tests.mapper.pairs.held_out_t5 import T5
from tests.mapper.pairs.held_out_unet import UNET
from tests.mapper.pairs.held_out_vit import BEIT, DEIT, DINOV2
from tests.mapper.pairs.held_out_whisper import WHISPER
from tests.mapper.pairs.pair import Pair

HELD_OUT: list[Pair] = [
    *(SWIN, BEIT, DINOV2, WHISPER, ROBERTA, DISTILBERT, T5, *LITGPT),
    *(MOBILENET_V2, EFFICIENTNET_B0, SEGFORMER, REGNET, DEIT, WAV2VEC2, OPT, BLOOM, UNET, MLP_MIXER),
]
