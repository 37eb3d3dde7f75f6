"""Operations: shapes known without a tensor are those that applying makes, and what fits no tensor is refused."""

import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.state.operation import Operation, Shape
from lit_wsl.state.operations import (
    Fuse,
    PermuteHeads,
    Reshape,
    Split,
    Stack,
    Transpose,
    Unstack,
    operation_from_json,
    operation_to_json,
)

SIZES = st.integers(0, 6)
SHAPES = st.lists(SIZES, max_size=4).map(tuple)
GROUPS = st.integers(1, 3)
DIMS = st.integers(0, 3)
OPERATIONS = st.one_of(
    st.integers(0, 4).flatmap(lambda rank: st.permutations(range(rank))).map(lambda dims: Transpose(tuple(dims))),
    SHAPES.flatmap(lambda shape: st.permutations(shape).map(lambda after: Reshape(shape, tuple(after)))),
    st.builds(Fuse, st.lists(SIZES, min_size=1, max_size=3).map(tuple), DIMS, GROUPS),
    st.builds(Split, st.lists(SIZES, min_size=1, max_size=3).map(tuple), DIMS, GROUPS),
    st.builds(Stack, st.integers(1, 3), DIMS),
    st.builds(Unstack, st.integers(1, 3), DIMS),
    st.builds(PermuteHeads, st.one_of(st.integers(0, 3), st.lists(st.integers(0, 3)).map(tuple)), st.booleans()),
)


@st.composite
def cases(draw):
    """An operation and shapes, of which about half fit it."""
    operation, shape = draw(OPERATIONS), list(draw(SHAPES))
    if draw(st.booleans()):
        return operation, draw(st.lists(SHAPES, max_size=3))
    match operation:
        case Transpose(dims=dims):
            fitting = [draw(st.tuples(*[SIZES] * len(dims))), draw(st.tuples(*[SIZES] * len(dims)))]
        case Reshape(before=before):
            fitting = [before] * draw(st.integers(0, 2))
        case Fuse(sizes=sizes, dim=dim):
            fitting = [_with(shape, dim, size) for size in sizes]
        case Split(sizes=sizes, dim=dim):
            fitting = [_with(shape, dim, sum(sizes))]
        case Stack(count=count):
            fitting = [tuple(shape)] * count
        case Unstack(count=count, dim=dim):
            fitting = [_with(shape, dim, count)]
        case PermuteHeads(heads=heads):
            each = (heads,) if isinstance(heads, int) else heads
            fitting = [(2 * count * draw(SIZES), *shape) for count in each]
    return operation, fitting


def _with(shape, dim, size):
    shape = shape + [1] * (dim + 1 - len(shape))
    return (*shape[:dim], size, *shape[dim + 1 :])


def _refusal(operation, shapes):
    try:
        operation.shapes(shapes)
    except CheckpointError as error:
        return str(error)
    return ""


@given(cases())
def test_shapes_are_those_of_the_tensors_that_applying_makes(case):
    operation, shapes = case
    tensors = [torch.arange(torch.Size(shape).numel()).reshape(shape) for shape in shapes]
    if refusal := _refusal(operation, shapes):
        assert re.fullmatch(rf"{operation.name} needs [^\n]+, got [^\n]+", refusal)
        for way in (operation.apply, operation.pieces):
            with pytest.raises(CheckpointError, match=re.escape(refusal)):
                way(tensors)
        return
    made, expected = operation.apply(tensors), operation.shapes(shapes)
    assert [tuple(tensor.shape) for tensor in made] == expected
    assert operation.inverse().shapes(expected) == shapes
    back = operation.inverse().apply(made)
    assert all(torch.equal(one, two) for one, two in zip(back, tensors, strict=True))
    pieces = operation.pieces(tensors)
    assert all(
        torch.equal(torch.cat([piece.flatten() for piece in parts]), tensor.flatten())
        for parts, tensor in zip(pieces, made, strict=True)
    )


@pytest.mark.parametrize("wrong", [[], [()], [(4,)], [(5, 2), (4, 2)], [(4, 2), (4, 3)], [(4, 2)] * 3, [(4, 2), (4,)]])
def test_shapes_that_do_not_fit_a_join(wrong):
    with pytest.raises(CheckpointError, match=r"fuse needs sizes \(4, 4\) along dimension 0 of otherwise equal"):
        Fuse((4, 4), groups=2).shapes(wrong)


@pytest.mark.parametrize(
    ("operation", "shapes", "message"),
    [
        (Transpose((1, 0)), [(3,)], r"transpose needs tensors of 2 dimensions, got \(3,\)"),
        (Reshape((6, 4), (24,)), [(4, 6)], r"reshape needs tensors of shape \(6, 4\), got \(4, 6\)"),
        (
            Fuse((4, 2), groups=4),
            [(4, 1), (2, 1)],
            r"sizes along dimension 0 that 4 groups share, got \(4, 1\), ",
        ),
        (Split((2, 2)), [(5, 2)], r"split needs one tensor of size 4 along dimension 0, got \(5, 2\)"),
        (Split((3, 1), groups=2), [(4, 2)], r"that 2 groups share"),
        (Split((2, 2)), [], "got nothing"),
        (Stack(2), [(2,)] * 9, r"stack needs 2 equal tensors of at least 0 dimensions, got 9 × \(2,\)$"),
        (Stack(2), [(2,), (3,)], r"got \(2,\), \(3,\)"),
        (Unstack(2), [(3, 2)], r"unstack needs one tensor of size 2 along dimension 0, got \(3, 2\)"),
        (PermuteHeads(2), [(4, 2), (6, 2)], r"rows that make pairs in each of 2 heads, got \(6, 2\)"),
        (PermuteHeads((2, 0)), [(4, 2)], r"permute_heads needs 2 tensors, got \(4, 2\)"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(operation, shapes, message):
    with pytest.raises(CheckpointError, match=message):
        operation.shapes(shapes)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "transpose", "dims": [-1, 0]},
        {"name": "reshape", "before": [6, 4], "after": [23]},
        {"name": "reshape", "before": [6, 4], "after": [-1, 4]},
        {"name": "fuse", "sizes": []},
        {"name": "fuse", "sizes": [2, 2], "dim": -1},
        {"name": "fuse", "sizes": [2, 2], "groups": 0},
        {"name": "split", "sizes": [5, -1]},
        {"name": "stack", "count": 0},
        {"name": "unstack", "count": 2, "dim": -1},
        {"name": "permute_heads", "heads": [2, -2]},
    ],
)
def test_options_that_fit_no_tensor_are_refused(values):
    with pytest.raises(ConfigError, match=r"^`[^\n]+` must hold, got \w+\([^\n]+\); correct the operation\.$"):
        operation_from_json(values)


@pytest.mark.parametrize(("key", "value"), [("count", 2.0), ("count", "2"), ("dim", [0.5]), ("dim", None)])
def test_a_value_that_is_no_whole_number_is_refused(key, value):
    with pytest.raises(ConfigError, match=f"operation 'stack' takes whole numbers for '{key}', got"):
        operation_from_json({"name": "stack", "count": 2, key: value})


@given(OPERATIONS)
def test_plain_values_keep_an_operation(operation):
    values = operation_to_json(operation)
    assert operation_from_json({k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}) == operation


def test_an_operation_that_does_not_know_its_shapes_cannot_be_made():
    @dataclass(frozen=True)
    class Shapeless(Operation):
        name = "shapeless"

        def inverse(self) -> "Shapeless":
            return self

        def _made(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            return tensors

    with pytest.raises(TypeError, match="abstract method '?shapes"):
        Shapeless()

    @dataclass(frozen=True)
    class Same(Shapeless):
        def shapes(self, shapes: list[Shape]) -> list[Shape]:
            return shapes

    assert Same().shapes([(1,)]) == [(1,)]
