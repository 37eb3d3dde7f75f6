"""The contract suite: laws that every registered method must keep, filtered by what it declares of itself."""

import ast
import dataclasses
import importlib.util
import inspect
import math
import re
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_wsl.errors import ConfigError, MergeError
from lit_wsl.merging import build_method, merge, merge_state_dict, merge_tensors
from lit_wsl.merging.method import LinearMethod, all_methods
from lit_wsl.state import open_state
from tests.merging.build import relative_gap
from tests.merging.laws import (
    METHODS,
    REQUIRED,
    count_of,
    params_of,
    save_adapters,
    save_models,
    still_params,
    vectors,
)

ROOT = Path(__file__).parents[2]
NAMES = sorted(METHODS)
MOST = 5
SHAPES_OF_ONE = [(), (1,), (9,), (6, 7), (3, 4, 2), (0,), (0, 3)]

MISDECLARED = {("ties", "keeps_identical"), ("uniform_scalar_delta", "keeps_identical")}
"""Traits that a method inherits although it does not have them."""

every_method = pytest.mark.parametrize("name", NAMES)


def those(**traits):
    """The methods that declare these traits."""
    chosen = [n for n in NAMES if all(getattr(METHODS[n], t) == value for t, value in traits.items())]
    known = pytest.mark.xfail(reason="declares what it does not keep", strict=False)
    marks = {n: [known for t in traits if (n, t) in MISDECLARED] for n in chosen}
    return pytest.mark.parametrize("name", [pytest.param(n, marks=marks[n], id=n) for n in chosen])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and tuned models of it."""
    return save_models(tmp_path_factory.mktemp("models"), MOST)


@pytest.fixture(scope="module")
def half_models(tmp_path_factory):
    """The same in bfloat16."""
    return save_models(tmp_path_factory.mktemp("half"), MOST, torch.bfloat16)


@pytest.fixture(scope="module")
def adapters(models, tmp_path_factory):
    """Adapters of the base, and the same updates as models."""
    return save_adapters(tmp_path_factory.mktemp("adapters"), models[0], MOST)


def fields_of(name, models, count=None, **more):
    """A merge of full models with the method's default parameters."""
    base, tuned = models
    sources = tuned[: count or count_of(name)]
    return {"models": sources, "base": base, "method": name, "method_params": params_of(name), **more}


def contents(directory):
    """Every tensor of an output."""
    reader = open_state(directory)
    return {name: reader.read(name) for name in reader.keys()}


def close(actual, expected, tolerance=1e-5):
    """Whether two tensors agree relative to the norm, or both vanish."""
    scale = torch.linalg.vector_norm(expected.double()).item()
    gap = torch.linalg.vector_norm(actual.double() - expected.double()).item()
    return gap <= tolerance * scale + 1e-12


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
    monkeypatch.setattr("lit_wsl.merging.run.BLOCK_ENTRIES", entries)
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
    for case in (zero_first, opposite, 1e-30 * stack, stack[:1] * torch.ones_like(stack), torch.ones_like(stack)):
        for start in (base, torch.zeros_like(base), -case[0]):
            assert torch.isfinite(merge_tensors(name, case, start, **params_of(name))).all()


# Whole models.


@every_method
def test_a_state_dict_is_merged_and_keeps_its_dtypes(name, half_models):
    merged = merge_state_dict(**fields_of(name, half_models))
    base = load_file(half_models[0])
    assert merged.keys() == base.keys()
    assert all(merged[n].dtype == t.dtype and merged[n].shape == t.shape for n, t in base.items())
    assert all(torch.isfinite(t).all() for t in merged.values())


@every_method
def test_a_state_dict_is_merged_like_its_parameters(name, models):
    """What needs no statistics of the whole model, and no name, comes out of ``merge_tensors`` alike."""
    method = build_method(name, params_of(name))
    if method.scan_model(3) is not None or "seed" in method.params():
        pytest.skip("depends on the whole model, or on names")
    base, tuned = load_file(models[0]), [load_file(file) for file in models[1][: count_of(name)]]
    merged = merge_state_dict(**fields_of(name, models))
    for key, start in base.items():
        update = merge_tensors(name, torch.stack([t[key] - start for t in tuned]), start, **params_of(name))
        assert close(merged[key], start + update), key


@those(keeps_identical=True)
def test_identical_models_merge_to_themselves(name, models):
    base, tuned = models
    fields = {"models": tuned[:1] * count_of(name), "base": base, "method": name}
    merged = merge_state_dict(**fields, method_params=still_params(name))
    for key, tensor in load_file(tuned[0]).items():
        assert close(merged[key], tensor), key


@those(is_symmetric=True)
def test_order_of_models_is_irrelevant(name, models):
    fields = {**fields_of(name, models), "method_params": still_params(name)}
    merged = merge_state_dict(**fields)
    turned = merge_state_dict(**{**fields, "models": fields["models"][::-1]})
    assert all(close(turned[key], tensor) for key, tensor in merged.items())


@those(needs_base=False)
def test_a_base_that_is_not_needed_changes_nothing(name, models):
    fields = fields_of(name, models)
    without = merge_state_dict(**{**fields, "base": None, "models": fields["models"]})
    for key, tensor in merge_state_dict(**fields).items():
        assert close(without[key], tensor), key


@every_method
@pytest.mark.parametrize("entries", [1, 50])
def test_block_size_changes_no_bit_of_models(name, entries, models, monkeypatch):
    whole = merge_state_dict(**fields_of(name, models))
    monkeypatch.setattr("lit_wsl.merging.engine.BLOCK_ENTRIES", entries)
    cut = merge_state_dict(**fields_of(name, models))
    assert [key for key in whole if not torch.equal(cut[key], whole[key])] == []


@every_method
def test_threads_change_no_bit_of_a_state_dict(name, models):
    one, two = (merge_state_dict(**fields_of(name, models, threads=n)) for n in (1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)


@every_method
def test_threads_and_shards_change_no_bit_of_files(name, half_models, tmp_path):
    fields = fields_of(name, half_models)
    for threads in (1, 2):
        merge(**fields, threads=threads, output=str(tmp_path / f"threads{threads}"))
    merge(**fields, threads=2, shard_size="300", output=str(tmp_path / "shards"))
    one, two = (tmp_path / f"threads{n}" / "model.safetensors" for n in (1, 2))
    assert one.read_bytes() == two.read_bytes()
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    shards, whole = contents(tmp_path / "shards"), contents(tmp_path / "threads1")
    assert all(torch.equal(shards[key], tensor) for key, tensor in whole.items())


@every_method
def test_delta_and_model_outputs_agree(name, models, tmp_path):
    for kind in ("delta", "model"):
        merge(**fields_of(name, models), output_format=kind, output=str(tmp_path / kind))
    whole, start = contents(tmp_path / "model"), load_file(models[0])
    for key, delta in contents(tmp_path / "delta").items():
        assert relative_gap(start[key] + delta, whole[key]) <= 1e-6, key


@every_method
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("parameter", ["layers.0.weight", "layers.0.bias", "scalar"])
def test_an_entry_that_is_not_finite_names_source_and_parameter(name, value, parameter, models, tmp_path):
    fields = fields_of(name, models)
    state = load_file(fields["models"][-1])
    state[parameter].view(-1)[-1] = value
    bad = str(tmp_path / "damaged.safetensors")
    save_file(state, bad)
    with pytest.raises(MergeError, match=rf"damaged\.safetensors has NaN or infinite.*{parameter}"):
        merge_state_dict(**{**fields, "models": [*fields["models"][:-1], bad]})


# Adapters.


@every_method
def test_adapters_merge_like_the_same_updates_of_models(name, models, adapters):
    count = count_of(name)
    if METHODS[name].merge_factors is not LinearMethod.merge_factors if is_linear(name) else False:
        pytest.skip("combines factors in its own way")
    low, dense = ({kind: files[:count]} for kind, files in zip(("adapters", "models"), adapters, strict=True))
    fields = {"base": models[0], "method": name, "method_params": params_of(name)}
    expected = merge_state_dict(**fields, **dense)
    for key, tensor in merge_state_dict(**fields, **low).items():
        assert close(tensor, expected[key], 1e-4), key


def is_linear(name):
    return issubclass(METHODS[name], LinearMethod)


@every_method
def test_all_outputs_of_adapters_agree(name, models, adapters, tmp_path):
    fields = {"adapters": adapters[0][: count_of(name)], "base": models[0], "method": name}
    for kind in ("delta", "model", "adapter"):
        options = {**fields, "method_params": params_of(name), "rank": 16 if kind == "adapter" else None}
        report = merge(**options, output_format=kind, output=str(tmp_path / kind))
    assert min(report.retained_energy.values()) > 1 - 1e-6
    refolded = merge_state_dict(adapters=[str(tmp_path / "adapter")], base=models[0], method="uniform_delta")
    whole, start = contents(tmp_path / "model"), load_file(models[0])
    for key, delta in contents(tmp_path / "delta").items():
        assert relative_gap(start[key] + delta, whole[key]) <= 1e-6, key
        assert relative_gap(refolded[key], whole[key]) <= 1e-5, key


@every_method
@pytest.mark.parametrize("kind", ["delta", "adapter", "model"])
def test_threads_change_no_bit_of_merged_adapters(name, kind, models, adapters, tmp_path):
    fields = {"adapters": adapters[0][: count_of(name)], "base": models[0], "method": name, "output_format": kind}
    for threads in (1, 2):
        merge(**fields, method_params=params_of(name), threads=threads, output=str(tmp_path / str(threads)))
    file = {"delta": "delta", "adapter": "adapter_model", "model": "model"}[kind] + ".safetensors"
    assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


# What a method says of itself.


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


@every_method
def test_too_few_or_too_many_sources_are_refused(name, models):
    cls = METHODS[name]
    assert cls.least >= 1
    assert cls.most is None or cls.most >= cls.least
    for count in {cls.least - 1, (cls.most or 0) + 1} - {0, 1 if cls.most is None else 0}:
        stack, base = vectors(count, 4)
        with pytest.raises(ConfigError, match=f"{cls.name!r} merges .*, got {count}") as error:
            merge_tensors(name, stack, base, **params_of(name))
        assert one_line(error)
        with pytest.raises(ConfigError, match=f"got {count}") as error:
            merge_state_dict(**fields_of(name, models, count))
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


def test_the_page_of_methods_lists_every_method_and_parameter():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.on_page_markdown((ROOT / "docs/methods.md").read_text())
    rows = [line for line in page.splitlines() if line.startswith("|")]
    for name, cls in all_methods().items():
        (row,) = [line for line in rows if f"`{name}`" in line.split("|")[1]]
        for parameter in build_method(name, params_of(cls.name)).params():
            assert f"`{parameter}` = " in row
        assert (inspect.getdoc(cls) or "").splitlines()[0] in row


@every_method
def test_docstrings_begin_with_one_sentence(name):
    first = (inspect.getdoc(METHODS[name]) or "").splitlines()[0]
    assert first.endswith(".")
    assert "|" not in first
