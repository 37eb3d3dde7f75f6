"""Low-rank updates between shared bases: exact, and as small as the ranks are in sum."""

import pytest
import torch

from lit_wsl.tensors.cores import cores_of
from lit_wsl.tensors.lora import LoraFactors, fold

F64 = torch.float64


def updates(shape, ranks, transposed=False):
    d_out, d_in = shape[::-1] if transposed else shape
    return [
        LoraFactors(torch.randn(rank, d_in), torch.randn(d_out, rank), 0.5 + i, shape, transposed)
        for i, rank in enumerate(ranks)
    ]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (40, 30)], ids=str)
@pytest.mark.parametrize("ranks", [(2,), (1, 3), (4, 5, 6)], ids=str)
def test_the_cores_between_the_bases_are_the_updates(shape, ranks, transposed):
    parts = updates(shape, ranks, transposed)
    cores = cores_of(parts)
    total = sum(ranks)
    assert cores.left.shape == (shape[0], min(total, shape[0]))
    assert cores.right.shape == (min(total, shape[1]), shape[1])
    assert (cores.stack.dtype, cores.left.dtype, cores.right.dtype) == (torch.float32, F64, F64)
    assert cores.directions == min(shape)
    for basis in (cores.left, cores.right.T):
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=F64), rtol=0, atol=1e-13)
    for part, core in zip(parts, cores.stack, strict=True):
        torch.testing.assert_close(cores.left @ core.double() @ cores.right, fold(part, F64), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_core_has_factors_of_the_parameter(transposed):
    cores = cores_of(updates((9, 14), (2, 3), transposed))
    core = torch.randn(5, 5)
    found = cores.factors(core)
    assert (found.shape, found.transposed, found.scale, found.rank) == ((9, 14), transposed, 1.0, 5)
    assert (found.A.dtype, found.B.dtype) == (torch.float32, torch.float32)
    assert found.A.is_contiguous()
    assert found.B.is_contiguous()
    torch.testing.assert_close(fold(found, F64), cores.left @ core.double() @ cores.right, rtol=1e-5, atol=1e-5)


def test_bases_of_float64_leave_small_updates_beside_large_ones():
    """A basis in float32 would lose what is a hundred million times smaller."""
    large, small = updates((30, 20), (2, 2))
    small = small.scaled(1e-8)
    cores = cores_of([large, small])
    rebuilt = cores.left @ cores.stack[1].double() @ cores.right
    torch.testing.assert_close(rebuilt, fold(small, F64), rtol=1e-5, atol=1e-13)
