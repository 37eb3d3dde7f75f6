"""All pairs."""

from .pair import Pair
from .vision_pairs import VISION

PAIRS: list[Pair] = [*VISION]
