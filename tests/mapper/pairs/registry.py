"""All pairs."""

from .encoder_pairs import ENCODERS
from .gpt_pairs import GPT
from .llama_pairs import LLAMA
from .pair import Pair
from .vision_pairs import VISION

PAIRS: list[Pair] = [*VISION, *GPT, *LLAMA, *ENCODERS]
