"""Weights that a user gives the sources of a merge, and the shares that follow from them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_wsl.errors import ConfigError


def check_count(method: str, field: str, weights: Sequence[float] | None, sources: int) -> None:
    """Refuse a list that has not one number per source.

    Raises:
        ConfigError: If the lengths differ.
    """
    if weights is not None and len(weights) != sources:
        raise ConfigError(
            f"`{field}` of {method!r} has {len(weights)} numbers for {sources} sources; give one per source, in order."
        )


def check_positive(method: str, field: str, weights: Sequence[float] | None) -> None:
    """Refuse weights that are negative or all zero: they are no shares of anything.

    Raises:
        ConfigError: If one is negative, or their sum is zero.
    """
    if weights is None:
        return
    if any(weight < 0.0 for weight in weights):
        raise ConfigError(f"`{field}` of {method!r} must not be negative, got {list(weights)}.")
    if weights and sum(weights) <= 0.0:
        raise ConfigError(f"`{field}` of {method!r} must not all be zero, got {list(weights)}.")


def shares_of(weights: Sequence[float] | None, sources: int) -> Tensor:
    """Weights divided by their sum, shape ``(T,)``, float64; equal shares where none are given."""
    if weights is None:
        return torch.full((sources,), 1.0 / sources, dtype=torch.float64)
    given = torch.tensor(weights, dtype=torch.float64)
    return given / given.sum()
