"""Methods that use gathered statistics: plain loops, laws, files that do not fit."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lit_wsl.errors import CheckpointError, ConfigError, MergeError
from lit_wsl.merging import merge_tensors
from lit_wsl.merging.statistics import open_statistics
from lit_wsl.merging.vectors import TaskVectorSource
from lit_wsl.tensors.regression import regression_mean
from tests.merging.laws import close, one_line
from tests.oracles import data_methods as oracle

FISHER = [{}, {"floor": 0.0}, {"floor": 0.3}, {"weights": [0.2, 1.0, 0.5]}, {"weights": [1.0, 0.0, 2.0], "floor": 0.0}]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}


def inputs_of(tasks, rows, columns):
    """Inputs of different size and direction for each task, and their Gram matrices."""
    inputs = [
        torch.randn(rows, columns, dtype=torch.float64) @ torch.randn(columns, columns).double() for _ in range(tasks)
    ]
    return inputs, torch.stack([x.T @ x / rows for x in inputs])


# Fisher.


@pytest.mark.parametrize("params", FISHER, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(), (40,), (6, 7), (3, 4, 2)], ids=str)
def test_fisher_matches_plain_loops(params, dtype, shape):
    stack, information = torch.randn(3, *shape).to(dtype), torch.rand(3, *shape) ** 8
    information[torch.rand(3, *shape) < 0.3] = 0.0
    merged = merge_tensors("fisher", stack, data=information, **params)
    rows = [one.double().flatten().tolist() for one in stack], [one.double().flatten().tolist() for one in information]
    expected = torch.tensor(oracle.fisher(*rows, **params), dtype=torch.float64).view(shape)
    torch.testing.assert_close(merged.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_equal_information_gives_the_mean():
    stack = torch.randn(4, 9, 5)
    for level in (0.0, 1e-9, 3.0):
        assert close(merge_tensors("fisher", stack, data=torch.full_like(stack, level)), stack.mean(0))
    assert close(merge_tensors("fisher", stack), stack.mean(0))
    weighted = merge_tensors("fisher", stack, weights=[1.0, 0.0, 2.0, 1.0])
    assert close(weighted, (stack[0] + 2 * stack[2] + stack[3]) / 4)


def test_an_entry_that_one_source_alone_depends_on_is_that_of_the_source():
    stack, information = torch.randn(2, 30), torch.zeros(2, 30)
    information[0, :15], information[1, 15:] = 1.0, 1e-3
    merged = merge_tensors("fisher", stack, data=information, floor=0.0)
    assert torch.equal(merged, torch.cat([stack[0, :15], stack[1, 15:]]))


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_only_the_proportions_of_information_count_without_a_floor(factor):
    stack, information = torch.randn(3, 40), torch.rand(3, 40)
    merged = merge_tensors("fisher", stack, data=information, floor=0.0)
    assert close(merge_tensors("fisher", stack, data=factor * information, floor=0.0), merged)


# RegMean.


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(6, 7), (9, 4), (5, 5)], ids=str)
def test_regmean_matches_the_formula_in_the_space_of_weights(alpha, dtype, shape):
    base, stack = torch.randn(shape, dtype=torch.float64), torch.randn(3, *shape, dtype=torch.float64).to(dtype)
    grams = inputs_of(3, 50, shape[1])[1]
    update = merge_tensors("regmean", stack, base.to(dtype), data=grams, alpha=alpha)
    weights = [(base + one.double()).numpy() for one in stack]
    expected = torch.from_numpy(oracle.regmean(weights, list(grams.numpy()), alpha)) - base
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(update.double(), expected, rtol=tolerance, atol=tolerance)


def test_regmean_is_the_least_squares_answer_on_all_inputs():
    """With ``alpha = 1`` it minimises the sum of ``||X_t (W - W_t)^T||^2``, which numpy solves from the inputs."""
    inputs, grams = inputs_of(3, 40, 6)
    weights = torch.randn(3, 8, 6, dtype=torch.float64)
    targets = torch.cat([x @ w.T for x, w in zip(inputs, weights, strict=True)])
    expected = np.linalg.lstsq(torch.cat(inputs).numpy(), targets.numpy())[0].T
    merged = merge_tensors("regmean", weights, data=grams, alpha=1.0)
    torch.testing.assert_close(merged, torch.from_numpy(expected), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("alpha", [0.5, 0.9, 1.0])
def test_equal_inputs_give_the_mean(alpha):
    stack = torch.randn(3, 8, 6)
    for gram in (torch.eye(6), inputs_of(1, 30, 6)[1][0], torch.zeros(6, 6)):
        assert close(
            merge_tensors("regmean", stack, data=gram.float().expand(3, 6, 6), alpha=alpha), stack.mean(0), 1e-4
        )
    assert close(merge_tensors("regmean", stack, alpha=alpha), stack.mean(0))


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("rows", [3, 50])
def test_one_source_and_equal_sources_come_back(alpha, rows):
    """Also where there are fewer inputs than columns."""
    stack, grams = torch.randn(1, 8, 6), inputs_of(3, rows, 6)[1].float()
    assert close(merge_tensors("regmean", stack, data=grams[:1], alpha=alpha), stack[0])
    assert close(merge_tensors("regmean", stack.expand(3, 8, 6), data=grams, alpha=alpha), stack[0])


@pytest.mark.parametrize("alpha", [0.9, 1.0])
def test_the_base_cancels_out_even_without_enough_inputs(alpha):
    base, stack, grams = torch.randn(8, 6).double(), torch.randn(2, 8, 6).double(), inputs_of(2, 2, 6)[1].float()
    update = merge_tensors("regmean", stack, data=grams, alpha=alpha)
    assert close(merge_tensors("regmean", base + stack, data=grams, alpha=alpha), base + update)


@pytest.mark.parametrize("alpha", [0.9, 1.0])
def test_inputs_that_are_never_there_take_the_mean(alpha):
    stack, grams = torch.randn(2, 8, 6), inputs_of(2, 30, 6)[1].float()
    grams[:, 2], grams[:, :, 2] = 0.0, 0.0
    merged = merge_tensors("regmean", stack, data=grams, alpha=alpha)
    torch.testing.assert_close(merged[:, 2], stack[:, :, 2].mean(0))
    kept = [0, 1, 3, 4, 5]
    others = merge_tensors("regmean", stack[:, :, kept], data=grams[:, kept][:, :, kept], alpha=alpha)
    torch.testing.assert_close(merged[:, kept], others, rtol=1e-4, atol=1e-4)


def test_float32_noise_of_too_few_inputs_is_no_direction():
    """With ``alpha = 1`` and four inputs in all, the answer stays between the weights and fits what is seen."""
    inputs = [torch.randn(2, 40, dtype=torch.float64) for _ in range(2)]
    grams, weights = torch.stack([x.T @ x / 2 for x in inputs]).float(), torch.randn(2, 30, 40)
    merged = merge_tensors("regmean", weights, data=grams, alpha=1.0).double()
    assert torch.linalg.vector_norm(merged) < 2 * torch.linalg.vector_norm(weights[0])
    for x, weight in zip(inputs, weights, strict=True):
        torch.testing.assert_close(x @ merged.T, x @ weight.double().T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(6, 9), (7, 7)], ids=str)
def test_weights_stored_the_other_way_round_merge_to_the_transpose(shape):
    stack, grams = torch.randn(3, *shape), inputs_of(3, 40, shape[1])[1].float()
    merged = merge_tensors("regmean", stack, data=grams)
    turned = merge_tensors("regmean", stack.mT.contiguous(), data=grams.unsqueeze(1))
    torch.testing.assert_close(turned.T, merged)


def test_inputs_of_very_different_size_are_solved():
    """Outlier features, a million times as large in square as the others, do not drown these."""
    scale = torch.ones(12, dtype=torch.float64)
    scale[3] = 1e3
    inputs = [torch.randn(60, 12, dtype=torch.float64) * scale for _ in range(2)]
    weights = torch.randn(2, 5, 12, dtype=torch.float64)
    targets = torch.cat([x @ w.T for x, w in zip(inputs, weights, strict=True)])
    expected = np.linalg.lstsq(torch.cat(inputs).numpy(), targets.numpy())[0].T
    grams = torch.stack([x.T @ x for x in inputs])
    torch.testing.assert_close(regression_mean(weights, grams, 1.0, 1e-6), torch.from_numpy(expected))


# What both share.


@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_order_blocks_and_repeats_change_nothing(name, monkeypatch):
    stack = torch.randn(3, 12, 10)
    data = torch.rand_like(stack) if name == "fisher" else inputs_of(3, 30, 10)[1].float()
    before = stack.clone(), data.clone()
    merged = merge_tensors(name, stack, data=data)
    order = torch.tensor([2, 0, 1])
    assert close(merge_tensors(name, stack[order], data=data[order]), merged)
    monkeypatch.setattr("lit_wsl.merging.single.BLOCK_ENTRIES", 7)
    assert torch.equal(merge_tensors(name, stack, data=data), merged)
    assert torch.equal(stack, before[0])
    assert torch.equal(data, before[1])


@pytest.mark.parametrize(
    ("name", "shape", "given"),
    [
        ("fisher", (6, 4), (3, 6, 5)),
        ("fisher", (6, 4), (2, 6, 4)),
        ("regmean", (6, 4), (3, 6, 6)),
        ("regmean", (6, 4), (3, 6, 4)),
        ("regmean", (6,), (3, 6, 6)),
        ("ties", (6, 4), (3, 6, 4)),
    ],
)
def test_data_that_does_not_fit_is_refused(name, shape, given):
    with pytest.raises(ConfigError, match="takes data of shape") as error:
        merge_tensors(name, torch.randn(3, *shape), data=torch.ones(given))
    assert one_line(error)


@pytest.mark.parametrize(
    ("name", "params"), [("fisher", {"floor": -1.0}), ("fisher", {"weights": [-1.0]}), ("regmean", {"alpha": 1.1})]
)
def test_parameters_out_of_range_are_refused(name, params):
    with pytest.raises(ConfigError):
        merge_tensors(name, torch.randn(1, 3, 3), **params)


# Files.


class Source(TaskVectorSource):
    """Nothing but names and shapes."""

    def __init__(self, shapes, where="tuned"):
        self.name = self.where = where
        self.shapes = shapes

    def task_vector(self, name, base):
        raise AssertionError

    def files(self):
        return []


SOURCE = Source({"layers.0.weight": (4, 3), "layers.0.bias": (4,), "turned.weight": (3, 3)})


def save(path, tensors, kind="fisher", **metadata):
    save_file(tensors, path, {"kind": kind, **metadata})
    return str(path)


def test_files_give_blocks_and_matrices_under_the_names_of_the_sources(tmp_path):
    one, two = torch.rand(4, 3), torch.rand(4, 3)
    paths = [
        save(tmp_path / "a.safetensors", {"model.layers.0.weight": one, "model.layers.0.bias": torch.rand(4)}),
        save(tmp_path / "b.safetensors", {"layers.0.weight": two}, rms="4.0"),
    ]
    found = open_statistics(paths, "fisher", [SOURCE, SOURCE])
    assert torch.equal(found.block("layers.0.weight", 2, 7), torch.stack([one, two / 4]).flatten(1)[:, 2:7])
    assert [found.has(name) for name in SOURCE.shapes] == [True, False, False]
    assert found.lacking(SOURCE.shapes) == ["layers.0.bias"]
    assert [str(file) for file in found.files()] == paths
    grams = torch.rand(3, 3)
    path = save(
        tmp_path / "g.safetensors",
        {"layers.0.weight": grams, "turned.weight": grams.clone()},
        "gram",
        inputs_first='["turned.weight"]',
    )
    found = open_statistics([path], "gram", [SOURCE])
    assert torch.equal(found.matrices("layers.0.weight"), grams.unsqueeze(0))
    assert torch.equal(found.matrices("turned.weight"), grams.view(1, 1, 3, 3))


GOOD = {"layers.0.weight": torch.ones(4, 3)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (GOOD, {"kind": "gram"}, "holds Gram matrices of inputs .*gather `fisher`"),
        (GOOD, {"kind": "pt"}, "holds no statistics"),
        (GOOD, {"rms": "nan"}, "damaged metadata"),
        ({"layers.0.weight": torch.ones(3, 4)}, {}, r"Shape mismatch at 'layers\.0\.weight'"),
        ({"others.weight": torch.ones(4, 3)}, {}, "belongs to another model"),
        ({**GOOD, "model.layers.0.weight": torch.ones(4, 3)}, {}, "both stand for"),
    ],
)
def test_files_that_do_not_fit_are_refused(tensors, metadata, message, tmp_path):
    path = save(tmp_path / "a.safetensors", tensors, **metadata)
    with pytest.raises(MergeError, match=message) as error:
        open_statistics([path], "fisher", [SOURCE])
    assert str(path) in one_line(error)


def test_gram_matrices_must_fit_the_inputs(tmp_path):
    for metadata in ({}, {"inputs_first": "[3"}):
        path = save(tmp_path / "a.safetensors", {"layers.0.weight": torch.ones(4, 4)}, "gram", **metadata)
        with pytest.raises(MergeError, match="Shape mismatch|damaged metadata") as error:
            open_statistics([path], "gram", [SOURCE])
        assert one_line(error)


@pytest.mark.parametrize("order", [1, -1])
def test_files_that_do_not_agree_on_the_side_of_inputs_are_refused(tmp_path, order):
    """Of a square weight nothing else would tell."""
    tensors = {"turned.weight": torch.eye(3)}
    paths = [
        save(tmp_path / "rows.safetensors", tensors, "gram", inputs_first='["turned.weight"]'),
        save(tmp_path / "columns.safetensors", tensors, "gram"),
    ]
    message = r"rows\.safetensors has the inputs of 'turned\.weight' in its rows, .*columns\.safetensors in its columns"
    with pytest.raises(MergeError, match=message) as error:
        open_statistics(paths[::order], "gram", [SOURCE, SOURCE])
    assert one_line(error)


def test_one_file_per_source_is_needed(tmp_path):
    path = save(tmp_path / "a.safetensors", GOOD)
    for paths in ([], [path], [path] * 3):
        with pytest.raises(MergeError, match=f"2 sources, {len(paths)} files") as error:
            open_statistics(paths, "fisher", [SOURCE, SOURCE])
        assert one_line(error)
    with pytest.raises(CheckpointError):
        open_statistics([path, str(tmp_path / "none.safetensors")], "fisher", [SOURCE, SOURCE])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_values_that_cannot_be_are_named(value, tmp_path):
    bad = torch.ones(4, 3)
    bad[1, 1] = value
    path = save(tmp_path / "a.safetensors", {"layers.0.weight": bad})
    found = open_statistics([path], "fisher", [SOURCE])
    assert torch.isfinite(found.block("layers.0.weight", 5, 12)).all()
    with pytest.raises(MergeError, match=r"NaN, infinite or negative entries in 'layers\.0\.weight'") as error:
        found.block("layers.0.weight", 0, 5)
    assert path in one_line(error)
    path = save(tmp_path / "g.safetensors", {"layers.0.weight": bad[:3]}, "gram")
    with pytest.raises(MergeError, match="negative"):
        open_statistics([path], "gram", [SOURCE]).matrices("layers.0.weight")
