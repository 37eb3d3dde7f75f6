"""Drawn figures to be named by colour and shape: a data set in LLaVA's format that trains on a CPU.

``python -m lit_wsl.training.figures FOLDER`` writes it.
"""

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lit_wsl.errors import LitWslError
from lit_wsl.state.publish import published_directory

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 119, 180),
    "yellow": (235, 200, 0),
    "purple": (148, 103, 189),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
HELD_OUT = (("red", "cross"), ("green", "triangle"), ("blue", "square"), ("yellow", "circle"), ("purple", "cross"))
"""Pairs that no training row shows, though each colour and each shape is in others."""
QUESTION = "<image>\nwhat is drawn here ?"
SIDE = 24
"""Height and width of an image."""

_SPECIAL = ("<pad>", "<eos>", "<unk>", "<image>", "<video>")
_WORDS = (*QUESTION.split()[1:], *COLOURS, *SHAPES)
Pair = tuple[str, str]


def draw_figure(colour: str, shape: str, source: random.Random) -> Image.Image:
    """One filled figure of random place and size on a light ground."""
    ground = tuple(source.randrange(225, 256) for _ in range(3))
    image = Image.new("RGB", (SIDE, SIDE), ground)
    pen, fill = ImageDraw.Draw(image), COLOURS[colour]
    half = source.randint(7, 9)
    x, y = (SIDE // 2 + source.randint(-2, 2) for _ in range(2))
    box = (x - half, y - half, x + half, y + half)
    if shape == "circle":
        pen.ellipse(box, fill=fill)
    elif shape == "square":
        pen.rectangle(box, fill=fill)
    elif shape == "triangle":
        pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=fill)
    else:
        arm = half // 3
        pen.rectangle((x - half, y - arm, x + half, y + arm), fill=fill)
        pen.rectangle((x - arm, y - half, x + arm, y + half), fill=fill)
    return image


def write_figures(directory: Path, rows: int = 640, evaluation_rows: int = 100, seed: int = 0) -> Path:
    """Write images, rows and a tokenizer; equal on every call with equal arguments.

    ``train.jsonl`` and ``validation.jsonl`` have new drawings of the same pairs of colour and shape, ``held_out.jsonl``
    of pairs that are in neither, ``tokenizer/`` the words.

    Args:
        directory: Written whole, or replaced if it was written before.
        rows: Rows to train on.
        evaluation_rows: Rows of each of the other files.
        seed: Chooses pairs, places and sizes.
    """
    source = random.Random(seed)
    seen = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELD_OUT]
    splits = {"train": (seen, rows), "validation": (seen, evaluation_rows), "held_out": (HELD_OUT, evaluation_rows)}
    with published_directory(Path(directory), overwrite=True) as scratch:
        for split, (pairs, count) in splits.items():
            lines = _draw(scratch, split, (source.choice(pairs) for _ in range(count)), source)
            (scratch / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        _tokenizer().save_pretrained(scratch / "tokenizer")
    return Path(directory)


def _draw(directory: Path, split: str, pairs: Iterable[Pair], source: random.Random) -> list[str]:
    """Draw one image per pair; returns the rows' lines."""
    (directory / split).mkdir()
    lines = []
    for number, (colour, shape) in enumerate(pairs):
        name = f"{split}/{number:04}.png"
        draw_figure(colour, shape, source).save(directory / name)
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": f"{colour} {shape}"}]
        lines.append(json.dumps({"id": f"{split}-{number}", "image": name, "conversations": turns}) + "\n")
    return lines


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token per word."""
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *_WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=512
    )


def figure_model(variant: str = "alternating") -> dict[str, Any]:
    """Configuration of a small LLaVA-OneVision for these images and words.

    Args:
        variant: ``base``, ``alternating`` or ``alternating_cross``.
    """
    return {
        "model_type": "llava_onevision_alternating",
        "image_token_index": _SPECIAL.index("<image>"),
        "video_token_index": _SPECIAL.index("<video>"),
        "image_grid_pinpoints": [[SIDE, SIDE]],
        "text_config": {
            "model_type": "qwen2_alternating",
            "attention_variant": variant,
            "vocab_size": len(_SPECIAL) + len(_WORDS),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.1,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "patch_size": 8,
            "image_size": SIDE,
            "vision_use_head": False,
        },
    }


def main(arguments: list[str]) -> int:
    """Write the figures into the folder that is named; returns the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m lit_wsl.training.figures FOLDER\n")
        return 2
    try:
        write_figures(Path(arguments[0]))
    except LitWslError as error:
        sys.stderr.write(f"figures: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
