"""Conversations as token ids, and which of them are to be predicted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_wsl.errors import ConfigError
from lit_wsl.tensors.objectives import IGNORED
from lit_wsl.training.llava.rows import GPT, IMAGE

TemplateName = Literal["auto", "chatml", "plain"]
_END, _START = "<|im_end|>", "<|im_start|>"


@dataclass(frozen=True)
class Template:
    """What stands around the texts of a conversation."""

    human: tuple[str, str]
    """Before and after a question."""
    gpt: tuple[str, str, str]
    """Before an answer; its end, which is learned; and what follows, which is not."""
    system: tuple[str, str] = ("", "")
    """Before and after the system prompt."""
    prompt: str = ""
    """System prompt without another; an empty one is left out."""


CHATML = Template(
    human=(f"{_START}user\n", f"{_END}\n"),
    gpt=(f"{_START}assistant\n", _END, "\n"),
    system=(f"{_START}system\n", f"{_END}\n"),
    prompt="You are a helpful assistant.",
)
"""Qwen's form, in which LLaVA-OneVision was trained."""


def find_template(name: TemplateName, tokenizer: Any) -> Template:
    """The template of that name; ``auto`` is ``chatml`` if the tokenizer knows its marks, else ``plain``.

    Raises:
        ConfigError: If the tokenizer lacks a token that the template needs.
    """
    vocabulary = tokenizer.get_vocab()
    knows = _START in vocabulary and _END in vocabulary
    if name == "chatml" and not knows:
        raise ConfigError(f"`template: chatml` needs a tokenizer that knows {_START} and {_END}; use `plain`.")
    if name == "chatml" or (name == "auto" and knows):
        return CHATML
    if tokenizer.eos_token is None:
        raise ConfigError(
            "`template: plain` ends an answer with the tokenizer's `eos_token`, and it has none; set one."
        )
    return Template(human=("", "\n"), gpt=("", tokenizer.eos_token, ""), system=("", "\n"))


def encode(
    turns: Sequence[Mapping[str, str]],
    tokenizer: Any,
    template: Template,
    *,
    system: str | None,
    image_id: int,
    images: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and the same with -100 wherever nothing is to be predicted.

    Texts are tokenised one by one: an answer has the tokens that a model gives when it continues the question.

    Args:
        turns: Of a row without faults.
        tokenizer: Of the model.
        template: What stands around the texts.
        system: System prompt; None for the template's.
        image_id: Id of an image's tokens.
        images: Number of tokens of each image, in order.
    """
    ids: list[int] = []
    labels: list[int] = []
    lengths = iter(images)
    for text, learned in _texts(turns, template, template.prompt if system is None else system):
        for number, part in enumerate(text.split(IMAGE)):
            placeholders = [image_id] * next(lengths) if number else []
            tokens = tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
            ids += placeholders + tokens
            labels += [IGNORED] * len(placeholders) + (tokens if learned else [IGNORED] * len(tokens))
    return ids, labels


def _texts(turns: Sequence[Mapping[str, str]], template: Template, system: str) -> Iterator[tuple[str, bool]]:
    """Every piece of text and whether it is learned."""
    if system:
        yield template.system[0] + system + template.system[1], False
    for turn in turns:
        if turn["from"] == GPT:
            before, end, after = template.gpt
            yield before, False
            yield turn["value"] + end, True
            yield after, False
        else:
            yield template.human[0] + turn["value"] + template.human[1], False
