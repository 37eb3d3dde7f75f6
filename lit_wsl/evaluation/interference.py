"""How much of a task's individual gain a merged model keeps."""

SMALLEST_GAIN = 1e-8


def interference_delta(base: float, individual: float, merged: float, *, higher_is_better: bool = True) -> float | None:
    r"""Share of the individual fine-tune's gain that the merged model keeps.

    :math:`(S_\text{merged} - S_\text{base}) / (S_\text{individual} - S_\text{base})` with :math:`S` the score,
    negated where lower is better. 1 keeps all, 0 none, below 0 is worse than the base. Where the fine-tune is
    worse than the base, the share is that of a loss.

    Args:
        base: Score of the base model.
        individual: Score of the model tuned on this task alone.
        merged: Score of the merged model.
        higher_is_better: Direction of the metric.

    Returns:
        The share, or None where the fine-tune gained nothing (less than 1e-8).
    """
    sign = 1.0 if higher_is_better else -1.0
    gain = sign * (individual - base)
    return None if abs(gain) < SMALLEST_GAIN else sign * (merged - base) / gain
