"""What a CUDA device computes is what the CPU computes."""

import pytest
import torch

from lit_wsl.merging import merge_tensors
from lit_wsl.merging.method import all_methods
from lit_wsl.tensors.rng import CounterRng
from lit_wsl.tensors.sparsify import drop_and_rescale, magnitude_threshold

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_random_words_and_masks_are_the_same_bits():
    rng = CounterRng(7)
    assert torch.equal(rng.words("a", 300_000, 5), rng.words("a", 300_000, 5, device="cuda").cpu())
    x = torch.randn(300_000)
    on_cpu, on_gpu = (drop_and_rescale(t, 0.9, rng, "b") for t in (x, x.cuda()))
    assert torch.equal(on_cpu == 0, (on_gpu == 0).cpu())
    torch.testing.assert_close(on_cpu, on_gpu.cpu(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("density", [0.01, 0.2, 0.9])
def test_thresholds_are_the_same(density):
    x = torch.randn(100_000)
    assert magnitude_threshold(x, density) == magnitude_threshold(x.cuda(), density)


@pytest.mark.parametrize("name", sorted(all_methods()))
def test_every_method_agrees(name):
    stack = torch.randn(3, 400, 500)
    expected = merge_tensors(name, stack)
    actual = merge_tensors(name, stack.cuda())
    assert actual.is_cuda
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-6)
