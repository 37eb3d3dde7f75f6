"""Sources of one merge that are thinned out differently, and means that stay where they start."""

import pytest
import torch

from lit_wsl.errors import ConfigError
from lit_wsl.merging import merge_tensors

DENSITIES = [0.3, 0.5, 0.8]


@pytest.mark.parametrize("method", ["dare_linear", "della_linear", "breadcrumbs", "magnitude_prune"])
@pytest.mark.parametrize("shape", [(40,), (8, 6)], ids=str)
def test_each_source_is_thinned_out_by_its_own_density(method, shape):
    """A sum of sources is that of merges in which all others are zero."""
    stack = torch.randn(3, *shape)
    merged = merge_tensors(method, stack, combine="sum", densities=DENSITIES)
    alone = []
    for source, density in enumerate(DENSITIES):
        only = torch.zeros_like(stack)
        only[source] = stack[source]
        alone.append(merge_tensors(method, only, combine="sum", density=density))
    torch.testing.assert_close(merged, sum(alone))


@pytest.mark.parametrize("method", ["dare_ties", "della", "breadcrumbs_ties"])
def test_equal_densities_are_one_density(method):
    stack = torch.randn(3, 8, 6)
    assert torch.equal(
        merge_tensors(method, stack, densities=[0.5] * 3, elect="weighted"),
        merge_tensors(method, stack, density=0.5, elect="weighted"),
    )


@pytest.mark.parametrize(
    ("method", "densities", "told"),
    [
        ("dare_ties", [0.5], "has 1 numbers for 3 sources"),
        ("breadcrumbs", [0.5, 0.0, 0.5], "0 < density <= 1"),
        ("magnitude_prune", [0.5, 1.5, 0.5], "0 < density <= 1"),
        ("della", [0.5, 0.9, 0.5], "got density 0.9 and epsilon 0.15"),
    ],
)
def test_densities_that_do_not_fit_are_refused(method, densities, told):
    with pytest.raises(ConfigError, match=told):
        merge_tensors(method, torch.randn(3, 4), densities=densities)


@pytest.mark.parametrize(("method", "params"), [("multislerp", {"steps": 0}), ("karcher", {"max_iter": 0})])
def test_without_a_step_a_mean_has_the_direction_of_all_directions(method, params):
    stack, weights = torch.randn(3, 5, 4, dtype=torch.float64), [0.5, 0.2, 0.3]
    origin = torch.zeros_like(stack[0])
    sizes = torch.linalg.vector_norm(stack.flatten(1), dim=1)
    mean = sum(w * x / size for w, x, size in zip(weights, stack, sizes, strict=True))
    wanted = mean / torch.linalg.vector_norm(mean) * sum(w * s for w, s in zip(weights, sizes, strict=True))
    torch.testing.assert_close(merge_tensors(method, stack, origin, weights=weights, **params), wanted)
