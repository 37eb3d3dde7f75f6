"""How well a model predicts the answers of a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_wsl.tensors.objectives import IGNORED
from lit_wsl.training.token_loss import token_loss


def answer_positions(labels: Tensor) -> Tensor:
    """Positions after which some row of a batch has a token to be predicted, ascending.

    Args:
        labels: Shape ``(b, s)``; -100 is not predicted.

    Returns:
        Shape ``(k,)``; logits are needed there and nowhere else.
    """
    return (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()


def answer_loss(logits: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens of all answers in float32; zero if there are none.

    Args:
        logits: At ``positions``, shape ``(b, k, vocabulary)``.
        labels: Shape ``(b, s)``.
        positions: From :func:`answer_positions`, shape ``(k,)``.
    """
    return token_loss(logits.flatten(0, 1), labels[:, positions + 1].flatten())[0]


@dataclass(frozen=True)
class Answers:
    """What a model would have said, each token given the right ones before it."""

    right_tokens: Tensor
    """Whether each token of an answer is the likeliest, shape ``(tokens,)``."""
    right_answers: Tensor
    """Whether all tokens of an answer are, so that greedy decoding gives this answer, shape ``(answers,)``."""


def score_answers(logits: Tensor, labels: Tensor, positions: Tensor) -> Answers:
    """Compare the likeliest token at each place with the answers; an answer is an unbroken run of labels in a row.

    Args:
        logits: At ``positions``, shape ``(b, k, vocabulary)``.
        labels: Shape ``(b, s)``.
        positions: From :func:`answer_positions`, shape ``(k,)``.
    """
    targets = labels[:, 1:]
    right = torch.zeros_like(targets, dtype=torch.bool)
    right[:, positions] = logits.argmax(dim=-1) == targets[:, positions]
    learned = targets != IGNORED
    begins = learned & ~F.pad(learned, (1, 0))[:, :-1]
    answer_of_token = begins.flatten().cumsum(dim=0)[learned.flatten()] - 1
    wrong = torch.zeros(int(begins.sum()), device=labels.device)
    wrong.index_add_(0, answer_of_token, (~right[learned]).float())
    return Answers(right[learned], wrong == 0)
