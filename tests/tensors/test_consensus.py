"""Agreement of task vectors against sums in exact fractions, entry by entry."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_wsl.tensors.consensus import agreeing_sum, disjoint_mean, divide_by_share, elect_sign, elected_sum

EPS = Fraction(2) ** -52
grid = st.one_of(st.integers(-8, 8).map(lambda n: n / 8), st.sampled_from([1e8, -1e8, 3e-9, -3e-9, 1.5e30, -1.5e30]))
stacks = st.integers(2, 5).flatmap(
    lambda tasks: st.lists(st.tuples(*[grid] * tasks), min_size=1, max_size=6).map(
        lambda columns: torch.tensor(columns).T.contiguous()
    )
)


def sign_of(column):
    """Exact; 0 where the sum is no more than what sums in float64 are off by."""
    values = [Fraction(x) for x in column]
    total = sum(values)
    return 0 if abs(total) <= len(values) * EPS * sum(map(abs, values)) else (1 if total > 0 else -1)


@settings(max_examples=300, deadline=None)
@given(stack=stacks)
def test_the_sign_is_that_of_the_exact_sum(stack):
    assert elect_sign(stack).tolist() == [sign_of(column) for column in stack.T.tolist()]


@settings(max_examples=100, deadline=None)
@given(stack=stacks, data=st.data())
def test_the_order_of_the_tasks_decides_nothing(stack, data):
    order = data.draw(st.permutations(range(len(stack))))
    assert torch.equal(elect_sign(stack), elect_sign(stack[torch.tensor(order)]))


@pytest.mark.parametrize(
    ("column", "sign"),
    [
        ([1e8, 1.0, -1e8], 1),  # float32 gives 0
        ([1e8, -1.0, -1e8], -1),
        ([0.5, 1e8, 0.25, -1e8], 1),
        ([16777216.0, 1.0, -16777218.0], -1),  # float32 gives -2, the truth is -1
        ([1.0, -1.0], 0),
        ([-1.0, 1.0 + 2**-23], 1),
    ],
)
def test_sums_that_float32_loses(column, sign):
    stack = torch.tensor(column).reshape(-1, 1, 1).expand(-1, 2, 3)
    assert elect_sign(stack).tolist() == [[sign] * 3] * 2
    assert elect_sign(-stack).tolist() == [[-sign] * 3] * 2


def test_what_rounding_of_float64_leaves_is_a_balance():
    """0.1 + 0.2 - 0.3 is no zero in float64."""
    column = torch.tensor([[0.1], [0.2], [-0.3]], dtype=torch.float64)
    assert float(column.sum()) != 0.0
    assert elect_sign(column).tolist() == elect_sign(-column).tolist() == [0.0]
    assert elect_sign(column + torch.tensor([[0.0], [0.0], [1e-14]])).tolist() == [1.0]
    assert elect_sign(column - torch.tensor([[0.0], [0.0], [1e-14]])).tolist() == [-1.0]


def by_hand(stack, weights, of_share):
    """Weighted sum of those with the elected sign, or that over their weights."""
    merged = []
    for column in stack.T.tolist():
        sign = sign_of(column)
        pairs = [(w, x) for w, x in zip(weights, column, strict=True) if sign and x * sign > 0]
        total, share = sum(w * x for w, x in pairs), sum(w for w, _ in pairs)
        merged.append((total / share if share else 0.0) if of_share else total)
    return torch.tensor(merged, dtype=torch.float64)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0, 1.0], [0.25, 2.0, 0.5, 0.0], [0.0, 0.0, 0.125, 3.0]], ids=str)
def test_sums_and_means_over_those_that_agree(weights):
    stack = (torch.randint(-4, 5, (4, 400)) / 4).double()
    before = stack.clone()
    sign = elect_sign(stack)
    total = agreeing_sum(stack, sign, weights)
    torch.testing.assert_close(total, by_hand(stack, weights, of_share=False))
    torch.testing.assert_close(
        divide_by_share(total.clone(), stack, sign, weights), by_hand(stack, weights, of_share=True)
    )
    equal = [1.0] * 4
    found, elected = elected_sum(list(stack))
    assert torch.equal(elected, sign)
    torch.testing.assert_close(found, by_hand(stack, equal, of_share=False))
    torch.testing.assert_close(disjoint_mean(stack), by_hand(stack, equal, of_share=True))
    assert torch.equal(stack, before)
