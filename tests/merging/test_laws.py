"""The contract suite: laws that every registered method must keep, filtered by what it declares of itself."""

import ast
import dataclasses
import inspect
import math
import re
import textwrap
from pathlib import Path

import pytest
import torch

from lit_wsl.errors import ConfigError
from lit_wsl.merging import build_method, merge_state_dict, merge_tensors
from tests.merging.laws import (
    METHODS,
    REQUIRED,
    close,
    count_of,
    every_method,
    one_line,
    params_of,
    still_params,
    those,
    variants_of_all,
    vectors,
)

ROOT = Path(__file__).parents[2]
SHAPES_OF_ONE = [(), (1,), (9,), (6, 7), (3, 4, 2), (0,), (0, 3)]

every_variant = pytest.mark.parametrize(("name", "params"), variants_of_all())


# One parameter.


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES_OF_ONE, ids=str)
def test_shape_and_dtype_are_kept_and_inputs_unmodified(name, dtype, shape):
    stack, base = vectors(count_of(name), *shape, dtype=dtype)
    before = stack.clone(), base.clone()
    merged = merge_tensors(name, stack, base, **params_of(name))
    assert (merged.dtype, merged.shape) == (dtype, torch.Size(shape))
    assert torch.isfinite(merged).all()
    assert torch.equal(stack, before[0])
    assert torch.equal(base, before[1])


@every_method
@pytest.mark.parametrize("shape", [(40,), (8, 6)], ids=str)
def test_half_precision_is_rounded_once(name, shape):
    stack, base = vectors(count_of(name), *shape, dtype=torch.bfloat16)
    wide = merge_tensors(name, stack.float(), base.float(), **params_of(name))
    assert torch.equal(merge_tensors(name, stack, base, **params_of(name)), wide.bfloat16())


@every_method
@pytest.mark.parametrize("shape", [(40,), (8, 6)], ids=str)
def test_double_precision_agrees_with_single(name, shape):
    stack, base = vectors(count_of(name), *shape)
    single = merge_tensors(name, stack, base, **params_of(name))
    assert close(merge_tensors(name, stack.double(), base.double(), **params_of(name)), single, 1e-4)


@every_method
@pytest.mark.parametrize("shape", [(40,), (8, 6)], ids=str)
@pytest.mark.parametrize("size", [0.0, 1.0], ids=["zero base", "any base"])
def test_zero_task_vectors_give_the_base(name, shape, size):
    stack, base = vectors(count_of(name), *shape)
    update = merge_tensors(name, torch.zeros_like(stack), size * base, **params_of(name))
    assert update.abs().max() <= (2e-6 * size if METHODS[name].space == "weight" else 0.0)


@those(least=1, keeps_identical=True)
@pytest.mark.parametrize("shape", [(40,), (8, 6)], ids=str)
def test_one_source_is_given_back(name, shape):
    stack, base = vectors(1, *shape)
    assert close(merge_tensors(name, stack, base, **still_params(name)), stack[0])


@those(keeps_identical=True)
@pytest.mark.parametrize("shape", [(), (40,), (8, 6), (3, 20)], ids=str)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_identical_sources_merge_to_themselves(name, shape, count):
    stack, base = vectors(1, *shape)
    stack = stack.expand(count_of(name, count), *shape).contiguous()
    assert close(merge_tensors(name, stack, base, **still_params(name)), stack[0])


@those(is_symmetric=True)
@pytest.mark.parametrize("shape", [(40,), (8, 6)], ids=str)
def test_order_of_sources_is_irrelevant(name, shape):
    stack, base = vectors(count_of(name, 4), *shape)
    merged = merge_tensors(name, stack, base, **still_params(name))
    for _ in range(4):
        mixed = stack[torch.randperm(len(stack))]
        assert close(merge_tensors(name, mixed, base, **still_params(name)), merged)


@those(is_symmetric=True)
@pytest.mark.parametrize("shape", [(40,), (9, 9)], ids=str)
@pytest.mark.parametrize("kind", ["one without an update", "balanced", "of very different size"])
def test_order_of_unlike_sources_is_irrelevant(name, shape, kind):
    """Rounding must not pass for an update, nor tip a balance."""
    stack, base = vectors(count_of(name, 6), *shape)
    if kind == "one without an update":
        stack[0] = 0
    elif kind == "balanced":
        stack[:] = stack[:1]
        stack[1::2] *= -1
    else:
        stack *= (10.0 ** torch.arange(len(stack))).view(-1, *[1] * len(shape))
    merged = merge_tensors(name, stack, base, **still_params(name))
    size = torch.linalg.vector_norm(stack)
    for order in (torch.arange(len(stack)).flip(0), torch.tensor([*range(0, len(stack), 2), *range(1, len(stack), 2)])):
        again = merge_tensors(name, stack[order], base, **still_params(name))
        assert torch.linalg.vector_norm(again - merged) <= 1e-5 * size


@those(is_homogeneous=True)
@pytest.mark.parametrize("shape", [(40,), (8, 6)], ids=str)
@pytest.mark.parametrize("factor", [2.0**-20, 0.3, 1.0, 3.0, 2.0**20])
def test_larger_sources_give_a_result_as_much_larger(name, shape, factor):
    """Task vectors alone grow; for a method in the space of weights, base and tuned weights do."""
    stack, base = vectors(count_of(name), *shape)
    grown = factor * base if METHODS[name].space == "weight" else base
    merged = merge_tensors(name, factor * stack, grown, **params_of(name))
    assert close(merged, factor * merge_tensors(name, stack, base, **params_of(name)), 1e-4)


@every_method
@pytest.mark.parametrize("entries", [1, 7, 40])
@pytest.mark.parametrize("shape", [(120,), (12, 10)], ids=str)
def test_block_size_changes_no_bit_of_one_parameter(name, entries, shape, monkeypatch):
    stack, base = vectors(count_of(name), *shape)
    whole = merge_tensors(name, stack, base, **params_of(name))
    monkeypatch.setattr("lit_wsl.merging.single.BLOCK_ENTRIES", entries)
    assert torch.equal(merge_tensors(name, stack, base, **params_of(name)), whole)


@every_method
def test_repeats_give_the_same_bits(name):
    stack, base = vectors(count_of(name), 12, 10)
    first = merge_tensors(name, stack, base, **params_of(name))
    torch.randn(3)
    assert torch.equal(merge_tensors(name, stack, base, **params_of(name)), first)


@every_method
@pytest.mark.parametrize("shape", [(40,), (8, 6)], ids=str)
def test_extreme_task_vectors_stay_finite(name, shape):
    """Opposite, parallel, partly zero and tiny task vectors: where norms and angles degenerate."""
    stack, base = vectors(count_of(name, 2), *shape)
    zero_first = torch.cat([torch.zeros_like(stack[:1]), stack[1:]]) if len(stack) > 1 else stack
    opposite = torch.cat([stack[:1], -stack[:1], stack[:1].repeat(len(stack), *[1] * len(shape))])[: len(stack)]
    even = torch.ones_like(stack)
    for case in (zero_first, opposite, 1e-30 * stack, stack[:1] * even, even, even * torch.eye(*shape[-1:])[0]):
        for start in (base, torch.zeros_like(base), -case[0]):
            assert torch.isfinite(merge_tensors(name, case, start, **params_of(name))).all()


@every_method
def test_layout_and_gradients_of_the_inputs_do_not_matter(name):
    stack, base = vectors(count_of(name), 6, 8)
    plain = merge_tensors(name, stack, base, **params_of(name))
    turned = stack.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    merged = merge_tensors(name, turned.requires_grad_(), base.T.contiguous().T.requires_grad_(), **params_of(name))
    assert torch.equal(merged, plain)
    assert not merged.requires_grad


@every_variant
@pytest.mark.parametrize("shape", [(), (40,), (8, 6)], ids=str)
def test_variants_keep_shape_dtype_and_zero(name, params, shape, monkeypatch):
    stack, base = vectors(count_of(name), *shape, dtype=torch.bfloat16)
    merged = merge_tensors(name, stack, base, **params)
    assert (merged.dtype, merged.shape) == (torch.bfloat16, torch.Size(shape))
    wide = merge_tensors(name, stack.float(), base.float(), **params)
    assert torch.equal(merged, wide.bfloat16())
    assert merge_tensors(name, 0 * stack.float(), base.float(), **params).abs().max() <= 2e-6
    monkeypatch.setattr("lit_wsl.merging.single.BLOCK_ENTRIES", 7)
    assert torch.equal(merge_tensors(name, stack.float(), base.float(), **params), wide)


@every_variant
@pytest.mark.parametrize("shape", [(40,), (8, 6)], ids=str)
def test_sources_may_change_places_together_with_their_weights(name, params, shape):
    if not METHODS[name].is_symmetric or "seed" in build_method(name, params).params():
        pytest.skip("knows the places of its sources")
    stack, base = vectors(count_of(name), *shape)
    order = torch.randperm(len(stack))
    moved = {k: [v[n] for n in order.tolist()] if isinstance(v, list) else v for k, v in params.items()}
    merged = merge_tensors(name, stack, base, **params)
    assert close(merge_tensors(name, stack[order], base, **moved), merged)


# What a method says of itself.


@every_method
def test_too_few_or_too_many_sources_are_refused(name, tmp_path):
    cls = METHODS[name]
    assert cls.least >= 1
    assert cls.most is None or cls.most >= cls.least
    few, many = list(range(1, cls.least)), [] if cls.most is None else [cls.most + 1]
    for count in few + many:
        stack, base = vectors(count, 4)
        with pytest.raises(ConfigError, match=f"{cls.name!r} merges .*, got {count}") as error:
            merge_tensors(name, stack, base, **params_of(name))
        assert one_line(error)
        fields = {"models": [str(tmp_path / "nowhere")] * count, "base": str(tmp_path / "nobase")}
        with pytest.raises(ConfigError, match=f"got {count}") as error:
            merge_state_dict(**fields, method=name, method_params=params_of(name))
        assert one_line(error)


@those(space="weight")
def test_a_method_of_weights_asks_for_the_base(name):
    with pytest.raises(ConfigError, match="give the base"):
        merge_tensors(name, torch.ones(count_of(name), 3), **params_of(name))


@every_method
def test_every_parameter_is_described_and_has_a_default(name):
    cls = METHODS[name]
    described = set()
    for kind in cls.__mro__[:-1]:
        if dataclasses.is_dataclass(kind):
            described |= described_fields(kind)
    for field in dataclasses.fields(cls):
        assert field.name in described, f"{name}: `{field.name}` has no docstring"
        has_default = field.default is not dataclasses.MISSING
        assert has_default or field.name in REQUIRED.get(name, {}), f"{name}: `{field.name}` has no default"
    params = build_method(name, params_of(name)).params()
    assert build_method(name, params).params() == params


def described_fields(cls):
    """Fields that a docstring follows in the source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    pairs = zip(body.body, body.body[1:], strict=False)
    return {
        field.target.id
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


@every_method
def test_lists_of_weights_must_fit_the_number_of_sources(name):
    if "weights" not in build_method(name, params_of(name)).params():
        pytest.skip("has no weights")
    count = count_of(name)
    for wrong in (count - 1, count + 1):
        stack, base = vectors(count, 6)
        with pytest.raises(ConfigError, match=r"weights") as error:
            merge_tensors(name, stack, base, **{**params_of(name), "weights": [0.5] * wrong})
        assert one_line(error)


@every_method
def test_every_number_is_checked(name):
    """No parameter takes NaN, and none takes text for a number."""
    for key, value in build_method(name, params_of(name)).params().items():
        if isinstance(value, float):
            for wrong in (math.nan, "1"):
                with pytest.raises(ConfigError, match=re.escape(f"`{key}`")):
                    build_method(name, {**params_of(name), key: wrong})


@every_method
def test_docstrings_begin_with_one_sentence(name):
    first = (inspect.getdoc(METHODS[name]) or "").splitlines()[0]
    assert first.endswith(".")
    assert "|" not in first
