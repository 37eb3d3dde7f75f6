"""Entries that are made when they are asked for, against plain arithmetic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_wsl.comparing.entries import FirstRows, Folded, Scaled, dense
from lit_wsl.errors import CheckpointError
from lit_wsl.tensors.difference import Stored, difference
from lit_wsl.tensors.lora import LoraFactors, fold


def plain(weight, scale, tile):
    """Every tile times its scale."""
    out = weight.float()
    for row, scales in enumerate(scale.float()):
        for column, one in enumerate(scales):
            out[row * tile[0] : (row + 1) * tile[0], column * tile[1] : (column + 1) * tile[1]] *= one
    return out


def check_pieces(entries, wanted, exact=True):
    """Any piece of the flat entries, also one that begins in the middle of a row."""
    flat = wanted.reshape(-1)
    for start, stop in ((0, flat.numel()), (3, 7), (5, flat.numel() - 1), (flat.numel() - 1, flat.numel()), (1, 2)):
        for dtype in (torch.float32, torch.float64):
            out = torch.full((max(0, stop - start),), 7.0, dtype=dtype)
            entries.fill(out, start)
            torch.testing.assert_close(out.float(), flat[start:stop], **({"rtol": 0, "atol": 0} if exact else {}))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8], ids=str)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["scalar", "one", "row", "column of rows"])
def test_scales_of_all_and_of_rows(dtype, scale_dtype, kind):
    weight = (20 * torch.randn(13, 11)).to(dtype)
    shape = {"scalar": (), "one": (1,), "row": (13,), "column of rows": (13, 1)}[kind]
    scale = (torch.rand(shape) + 0.5).to(scale_dtype)
    tile = (13, 11) if scale.numel() == 1 else (1, 11)
    entries = Scaled(weight, scale)
    check_pieces(entries, plain(weight, scale.reshape(-1, 1), tile))
    assert (entries.shape, entries.dtype, entries.stored()) == ((13, 11), dtype, None)


@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (130, 257), (300, 5), (5, 300), (129, 128)], ids=str)
@pytest.mark.parametrize("tile", [128, 64])
def test_scales_of_tiles(shape, tile):
    weight = torch.randn(shape).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-shape[0] // tile), -(-shape[1] // tile)) + 0.5
    check_pieces(Scaled(weight, scale), plain(weight, scale, (tile, tile) if scale.numel() > 1 else shape))


def test_a_stack_has_a_scale_for_each_matrix():
    weight = torch.randn(3, 4, 5).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 1, 1)
    check_pieces(Scaled(weight, scale), weight.float() * scale)


@pytest.mark.parametrize("shape", [(2,), (4, 3), (1, 13), (2, 2, 2), (13, 2)], ids=str)
def test_scales_that_do_not_fit_are_named(shape):
    with pytest.raises(CheckpointError, match=r"scales of shape .* do not fit a weight of shape \(13, 11\)"):
        Scaled(torch.zeros(13, 11).to(torch.float8_e4m3fn), torch.ones(shape))


def test_a_scaled_weight_is_close_to_what_it_was_made_from():
    weight = torch.randn(300, 200)
    scale = weight.abs().amax(1) / 448
    scaled = Scaled((weight / scale[:, None]).to(torch.float8_e4m3fn), scale)
    assert 0.01 < difference(Stored(weight), scaled).relative < 0.03


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(13, 11), (6, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_folded_is_the_base_plus_the_folded_factors(transposed, shape, dtype):
    if transposed and len(shape) > 2:
        pytest.skip("convolutions are not turned")
    base = torch.randn(shape).to(dtype)
    rows, columns = shape[0], base[0].numel()
    out, into = (columns, rows) if transposed else (rows, columns)
    factors = LoraFactors(torch.randn(3, into), torch.randn(out, 3), 0.7, shape, transposed)
    entries = Folded(Stored(base), factors)
    check_pieces(entries, base.float() + fold(factors), exact=False)
    assert (entries.shape, entries.dtype, entries.stored()) == (shape, dtype, None)


def test_a_scaled_base_is_scaled_under_an_update():
    weight, scale = torch.randn(13, 11).to(torch.float8_e4m3fn), torch.rand(13)
    factors = LoraFactors(torch.randn(3, 11), torch.randn(13, 3), 0.7, (13, 11))
    wanted = weight.float() * scale[:, None] + fold(factors)
    check_pieces(Folded(Scaled(weight, scale), factors), wanted, exact=False)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), data=st.data())
def test_any_piece_of_made_entries_is_that_of_the_whole(rows, columns, data):
    start = data.draw(st.integers(0, rows * columns - 1))
    count = data.draw(st.integers(1, rows * columns - start))
    factors = LoraFactors(torch.randn(2, columns), torch.randn(rows, 2), 1.0, (rows, columns))
    for entries in (
        Folded(Stored(torch.randn(rows, columns)), factors),
        Scaled(torch.randn(rows, columns).to(torch.float8_e4m3fn), torch.rand(rows)),
    ):
        out = torch.empty(count)
        entries.fill(out, start)
        torch.testing.assert_close(out, dense(entries).view(-1)[start : start + count])


def test_first_rows():
    weight = torch.randn(9, 4, 2)
    entries = FirstRows(Stored(weight), 5)
    assert (entries.shape, entries.dtype) == ((5, 4, 2), torch.float32)
    assert torch.equal(dense(entries), weight[:5])
    assert torch.equal(entries.stored(), weight[:5].reshape(-1))
    scaled = Scaled(torch.randn(9, 4).to(torch.float8_e4m3fn), torch.rand(9))
    assert FirstRows(scaled, 5).stored() is None
    assert torch.equal(dense(FirstRows(scaled, 5)), dense(scaled)[:5])


def test_a_scalar_is_dense():
    assert dense(Stored(torch.tensor(3.0))).tolist() == 3.0
