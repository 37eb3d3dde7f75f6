"""A BERT of a few thousand parameters with a word-level tokenizer, made on the spot."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = ("good", "fine", "great", "bad", "poor", "awful", "film", "song", "a", "the", "is", "this")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def write_tiny_bert(directory: Path) -> Path:
    """Write weights, configuration and tokenizer; equal on every call."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
    ).save_pretrained(directory)
    return directory


def write_opinions(directory: Path) -> Path:
    """A task of 48 sentences with two classes, in the listing format."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [
        f'{{"text": "{article} {noun} is {word}", "label": "{label}"}}'
        for label, words in (("negative", ("bad", "poor", "awful")), ("positive", ("good", "fine", "great")))
        for word in words
        for article in ("a", "the", "this", "a a")
        for noun in ("film", "song")
    ]
    for split, part in (("train", rows), ("validation", rows[::3]), ("test", rows[1::3])):
        (directory / f"{split}.jsonl").write_text("\n".join(part) + "\n")
    (directory / "task.json").write_text(
        '{"labels": ["negative", "positive"], "prompts": ["bad poor film", "good fine film"]}'
    )
    return directory
