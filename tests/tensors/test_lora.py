"""Folding of factors against PEFT's own, DoRA against its formula row by row."""

import numpy as np
import peft
import pytest
import torch
from torch import nn

from lit_wsl.tensors.lora import (
    LoraFactors,
    RowUpdate,
    add_updates,
    apply_dora,
    checksum,
    concatenate,
    fold,
    is_finite,
    row_norms,
    scale_rows,
)
from tests.oracles.linear import dora


def peft_layer(layer, **settings):
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["0"], init_lora_weights=False, **settings)
    model = peft.get_peft_model(nn.Sequential(layer), config)
    return model.base_model.model[0]


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("kind", ["linear", "embedding", "conv1d", "conv2d"])
def test_fold_equals_the_delta_weight_of_peft(kind, use_rslora):
    """A1.1, A1.2, A1.4"""
    layer = {
        "linear": nn.Linear(6, 5),
        "embedding": nn.Embedding(9, 4),
        "conv1d": nn.Conv1d(3, 5, 2),
        "conv2d": nn.Conv2d(3, 5, (2, 3)),
    }[kind]
    lora = peft_layer(layer, use_rslora=use_rslora)
    scale = 7 / (3**0.5 if use_rslora else 3)
    embedding = kind == "embedding"
    A = lora.lora_embedding_A["default"] if embedding else lora.lora_A["default"].weight
    B = lora.lora_embedding_B["default"] if embedding else lora.lora_B["default"].weight
    factors = LoraFactors(
        A.detach().reshape(3, -1), B.detach().reshape(-1, 3), scale, tuple(layer.weight.shape), embedding
    )
    expected = lora.get_delta_weight("default").detach()
    torch.testing.assert_close(fold(factors), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(factors.rows(1, 3), expected.reshape(expected.shape[0], -1)[1:3], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fold(factors.scaled(-0.5)), -0.5 * expected, rtol=1e-5, atol=1e-6)
    assert fold(factors, torch.float64).dtype == torch.float64


def test_factors_of_half_precision_fold_in_float32():
    A, B = torch.randn(2, 4).bfloat16(), torch.randn(3, 2).bfloat16()
    folded = fold(LoraFactors(A, B, 0.3, (3, 4)))
    assert folded.dtype == torch.float32
    np.testing.assert_allclose(folded, 0.3 * B.double().numpy() @ A.double().numpy(), rtol=1e-5, atol=1e-6)


def test_dora_gives_rows_their_length():
    """A1.4"""
    weight, update, magnitude = torch.randn(5, 4), torch.randn(5, 4), torch.rand(5) + 0.5
    merged = apply_dora(weight, update, magnitude)
    np.testing.assert_allclose(merged, dora(*(t.double().numpy() for t in (weight, update, magnitude))), rtol=1e-5)
    torch.testing.assert_close(merged.norm(dim=1), magnitude)


def test_dora_with_the_base_lengths_and_no_update_is_the_base():
    weight = torch.randn(6, 3)
    torch.testing.assert_close(apply_dora(weight, torch.zeros(6, 3), weight.norm(dim=1)), weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("entries", [1, 7, 1 << 18])
def test_updates_of_rows_are_added_and_taken_out(monkeypatch, dtype, entries):
    """Row by row in NumPy; overlapping updates add up."""
    monkeypatch.setattr("lit_wsl.tensors.lora._BLOCK_ENTRIES", entries)
    weight = torch.randn(7, 2, 3).to(dtype)
    parts = [(1, torch.randn(2, 6), torch.randn(4, 2), 0.5), (3, torch.randn(1, 6), torch.randn(4, 1), -2.0)]
    updates = [RowUpdate(LoraFactors(A, B, scale, (len(B), 2, 3)), start) for start, A, B, scale in parts]
    expected = weight.double().numpy().copy().reshape(7, 6)
    for start, A, B, scale in parts:
        expected[start : start + len(B)] += scale * B.double().numpy() @ A.double().numpy()
    before = weight.clone()
    added = add_updates(weight, updates, torch.float64)
    np.testing.assert_allclose(added.reshape(7, 6), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(weight, before)
    torch.testing.assert_close(add_updates(added, updates, torch.float64, sign=-1.0), weight.double())
    assert torch.equal(add_updates(weight, updates, dtype), added.to(dtype))


def test_an_update_begins_at_the_first_row_and_leaves_no_graph():
    factors = LoraFactors(torch.randn(2, 6), torch.randn(4, 2), 1.0, (4, 6))
    weight = torch.randn(7, 6, requires_grad=True)
    update = RowUpdate(factors)
    assert (update.start, update.stop) == (0, 4)
    added = add_updates(weight, [update], torch.float64)
    assert not added.requires_grad
    torch.testing.assert_close(added[:4], weight.detach()[:4].double() + fold(factors, torch.float64))
    assert torch.equal(added[4:], weight.detach()[4:].double())


def test_factors_of_half_precision_are_put_together_in_float32():
    parts = [LoraFactors(torch.randn(2, 6).bfloat16(), torch.randn(4, 2).bfloat16(), 0.3, (4, 6)) for _ in range(2)]
    total = concatenate(parts)
    assert (total.A.dtype, total.B.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(fold(total), fold(parts[0]) + fold(parts[1]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("entries", [-5, 4, 8, 12, 1 << 18])
def test_blocks_need_not_begin_where_updates_do(monkeypatch, entries):
    """One row at least makes a block; each update reaches over several of them, or touches none."""
    monkeypatch.setattr("lit_wsl.tensors.lora._BLOCK_ENTRIES", entries)
    weight = torch.randn(11, 4)
    updates = [
        RowUpdate(LoraFactors(torch.randn(2, 4), torch.randn(n, 2), 1.0, (n, 4)), at) for n, at in ((7, 2), (2, 9))
    ]
    expected = weight.double()
    for update in updates:
        expected[update.start : update.stop] += fold(update.factors, torch.float64)
    torch.testing.assert_close(add_updates(weight, updates, torch.float64), expected)


@pytest.mark.parametrize("shape", [(3, 0), (2, 0, 4)], ids=str)
def test_a_weight_without_entries_stays_without(shape):
    assert add_updates(torch.empty(shape), [], torch.float32).shape == shape


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1.0, -2.0], True),
        ([3e38, 3e38], True),  # the sum is infinite
        ([float("nan"), 1.0], False),
        ([float("inf"), 1.0], False),
        ([float("inf"), float("-inf")], False),
        ([], True),
    ],
    ids=str,
)
def test_finite_means_every_entry(values, finite):
    assert is_finite(torch.tensor(values)) is finite


def test_checksums_are_sums_of_numbers_and_of_numbers_times_their_group():
    """By plain Python: numbers of eight bytes, in groups of 64; what is lacking at the end is zero."""
    for count in (1, 64, 65, 128, 200):
        data = torch.randint(0, 256, (8 * count - 3,), dtype=torch.uint8)
        raw = bytes(data.tolist()) + bytes(3)
        numbers = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
        sums = [sum(numbers), sum(number * (1 + at // 64) for at, number in enumerate(numbers))]
        assert [one % 2**64 for one in checksum(data)] == [one % 2**64 for one in sums]
        for offset in (1, 2, 4, 7):
            moved = torch.cat([torch.zeros(offset, dtype=torch.uint8), data])[offset:]
            assert checksum(moved) == checksum(data)


def test_checksums_and_norms_of_parameters_are_those_of_their_values():
    weight = torch.nn.Parameter(torch.randn(3, 4).bfloat16())
    assert checksum(weight) == checksum(weight.detach())
    assert not row_norms(weight, transposed=False).requires_grad
    scaled = scale_rows(weight, torch.full((3,), 1 / 3, dtype=torch.float32), transposed=False)
    assert (scaled.dtype, scaled.requires_grad) == (torch.float64, False)


@pytest.mark.parametrize("transposed", [False, True])
def test_rows_are_those_of_outputs(transposed):
    weight = torch.randn(4, 6)
    outputs = weight.T if transposed else weight
    norms = row_norms(weight, transposed=transposed)
    np.testing.assert_allclose(norms, [np.linalg.norm(row) for row in outputs.double().numpy()])
    scaled = scale_rows(weight, 1 / norms, transposed=transposed)
    torch.testing.assert_close(row_norms(scaled, transposed=transposed), torch.ones_like(norms))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(7, 5), (64, 33), (3, 4, 5), (1,), (130, 128)])
def test_a_checksum_notices_every_edit(shape, dtype):
    tensor = torch.randn(shape).to(dtype)
    before = checksum(tensor)
    assert checksum(tensor.clone()) == before
    for position in (0, tensor.numel() // 2, tensor.numel() - 1):
        edited = tensor.clone()
        edited.view(-1)[position] = edited.view(-1)[position].float() * 1.5 + 1
        assert checksum(edited) != before
    if shape == (130, 128) and dtype == torch.float32:  # a row is a group: swapped rows keep the plain sum
        assert checksum(tensor[torch.tensor([1, 0, *range(2, 130)])]) != before


def test_a_checksum_does_not_depend_on_strides():
    tensor = torch.randn(40, 30)
    assert checksum(tensor.T) == checksum(tensor.T.contiguous())


def test_a_checksum_of_a_slice():
    tensor = torch.randn(9, 3).bfloat16()
    assert checksum(tensor[1:]) == checksum(tensor[1:].clone())
