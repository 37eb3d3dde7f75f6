"""Methods that look at whole matrices, methods in the space of weights, and lists as parameters: through the engine."""

import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_wsl.cli.main import run
from lit_wsl.errors import ConfigError, LitWslError, MergeError
from lit_wsl.merging import MergeSpec, build_method, merge, merge_state_dict, merge_tensors, register
from lit_wsl.merging.engine import ParameterMerger
from lit_wsl.merging.method import METHODS, MatrixMethod, MergeContext, MergeMethod, Scan, all_methods
from lit_wsl.merging.plan import make_plan
from tests.merging.build import relative_gap, save_state
from tests.merging.laws import SHAPES, save_adapters, save_models

SEEN: list[tuple[str, tuple[int, ...], bool]] = []
"""Name, shape of the stack and whether there is a base, of each call of ``merge_matrices``."""


@dataclass(frozen=True)
class Transposing(MatrixMethod):
    """Ten times the mean, row means taken off: no two blocks of a matrix know that."""

    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Tell what came, and answer what only a whole matrix can."""
        SEEN.append((context.name, tuple(stack.shape), base is not None))
        mean = stack.mean(0)
        return 10.0 * (mean - mean.mean(0, keepdim=True))

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The plain mean."""
        return stack.mean(0)


class SizeScan(Scan):
    """Counts entries and their sum."""

    def __init__(self) -> None:
        self.entries, self.sum = 0, 0.0

    def update(self, stack: Tensor) -> None:
        """Count a block."""
        self.entries += stack.shape[1]
        self.sum += float(stack.double().sum())

    def end_pass(self) -> bool:
        """One pass will do."""
        return True

    def result(self) -> tuple[int, float]:
        """Entries of one parameter, and the sum over all sources."""
        return self.entries, self.sum


@dataclass(frozen=True)
class Blending(MergeMethod):
    """Weighted mean of weights, and a constant that is the share of the base in sight."""

    needs_base: ClassVar[bool] = False
    space: ClassVar[str] = "weight"
    weights: tuple[float, ...] | None = None

    def check_sources(self, count: int) -> None:
        """One weight for each source."""
        super().check_sources(count)
        if self.weights is not None and len(self.weights) != count:
            raise ConfigError(f"`weights` of {self.name!r} must be {count} numbers, got {len(self.weights)}.")

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The weighted mean."""
        weights = torch.tensor(self.weights or [1.0 / len(stack)] * len(stack), dtype=stack.dtype)
        return (weights.unsqueeze(1) * stack).sum(0)


@dataclass(frozen=True)
class ByBase(Blending):
    """The base where it is larger than the first source: a method of weights that reads the base."""

    needs_base: ClassVar[bool] = True

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """The larger of both."""
        assert base is not None
        return torch.maximum(stack[0], base)


@dataclass(frozen=True)
class Scanning(Blending):
    """The mean of all entries of all sources, everywhere."""

    def scan_tensor(self, sources: int) -> Scan | None:
        """Sums."""
        return SizeScan()

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """One number."""
        entries, total = context.statistics
        return torch.full_like(stack[0], total / (entries * len(stack)))


@dataclass(frozen=True)
class WeightMatrices(Transposing):
    """A method of whole matrices of weights."""

    space: ClassVar[str] = "weight"
    needs_base: ClassVar[bool] = False

    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Rows of the first source in reverse order: exact, and nothing that a block could do."""
        SEEN.append((context.name, tuple(stack.shape), base is not None))
        return stack[0].flip(0)


@dataclass(frozen=True)
class Keeping(Transposing):
    """A method that would lose a NaN."""

    def merge_matrices(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Nothing."""
        return torch.zeros_like(stack[0])

    def merge(self, stack: Tensor, base: Tensor | None, context: MergeContext) -> Tensor:
        """Nothing."""
        return torch.zeros_like(stack[0])


@dataclass(frozen=True)
class Pair(Blending):
    """Merges two."""

    least: ClassVar[int] = 2
    most: ClassVar[int | None] = 2


@dataclass(frozen=True)
class Several(Blending):
    """Merges two or more, at most four."""

    least: ClassVar[int] = 2
    most: ClassVar[int | None] = 4


@dataclass(frozen=True)
class Typed(Blending):
    """Has a parameter of each kind."""

    flag: bool = False
    number: float = 0.5
    count: int | None = None
    share: float | None = None
    kind: Literal["a", "b"] | None = None
    numbers: tuple[float, ...] = ()


TOYS = {
    "toy_typed": Typed,
    "toy_matrix": Transposing,
    "toy_blend": Blending,
    "toy_by_base": ByBase,
    "toy_scan": Scanning,
    "toy_weight_matrix": WeightMatrices,
    "toy_keep": Keeping,
    "toy_pair": Pair,
    "toy_several": Several,
}


@pytest.fixture(autouse=True)
def _toys():
    """The methods of this file, registered for one test."""
    all_methods()
    for name, cls in TOYS.items():
        register(name)(cls)
    SEEN.clear()
    yield
    for name in TOYS:
        del METHODS[name]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and three tuned models."""
    return save_models(tmp_path_factory.mktemp("models"), 3)


@pytest.fixture(scope="module")
def adapters(models, tmp_path_factory):
    """Two adapters of the base, and the same updates as models."""
    return save_adapters(tmp_path_factory.mktemp("adapters"), models[0], 2)


def centred(mean):
    """What ``toy_matrix`` makes of a mean."""
    flat = mean.reshape(len(mean), -1)
    return 10.0 * (flat - flat.mean(0, keepdim=True)).reshape(mean.shape)


def states(models):
    """The base's tensors, and those of each tuned model."""
    return load_file(models[0]), [load_file(file) for file in models[1]]


# Whole matrices.


@pytest.mark.parametrize(
    ("shape", "is_matrix"),
    [
        ((), False),
        ((7,), False),
        ((1, 9), False),
        ((9, 1), False),
        ((2, 64), True),
        ((2, 65), False),
        ((64, 2), True),
        ((65, 2), False),
        ((6, 5, 3), True),
        ((4, 2, 2, 2), True),
        ((4, 1, 1), False),
        ((0, 5), False),
        ((5, 0), False),
    ],
)
def test_what_is_a_matrix(shape, is_matrix):
    assert MatrixMethod.takes(shape) is is_matrix


def test_matrices_come_whole_and_the_rest_in_blocks(models, monkeypatch):
    monkeypatch.setattr("lit_wsl.merging.engine.BLOCK_ENTRIES", 10)
    base, tuned = states(models)
    merged = merge_state_dict(models=models[1], base=models[0], method="toy_matrix", threads=1)
    assert sorted(SEEN) == [("layers.0.weight", (3, 24, 16), True), ("layers.1.weight", (3, 6, 15), True)]
    for name, start in base.items():
        mean = torch.stack([state[name] for state in tuned]).mean(0) - start
        is_matrix = name in ("layers.0.weight", "layers.1.weight")
        expected = start + (centred(mean) if is_matrix else mean)
        torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-5)


def test_matrices_of_one_parameter_come_whole():
    stack, base = torch.randn(3, 6, 5, 3), torch.randn(6, 5, 3)
    torch.testing.assert_close(merge_tensors("toy_matrix", stack), centred(stack.mean(0)), rtol=1e-5, atol=1e-5)
    merge_tensors("toy_matrix", stack, base)
    assert [(shape, has_base) for _, shape, has_base in SEEN] == [((3, 6, 15), False), ((3, 6, 15), True)]
    tall = torch.randn(3, 70, 2)
    torch.testing.assert_close(merge_tensors("toy_matrix", tall), tall.mean(0))
    assert len(SEEN) == 2


def test_low_rank_sources_are_multiplied_out(models, adapters, tmp_path):
    """A2.11: with base, without base, and as models"""
    low, dense = adapters
    fields = {"method": "toy_matrix"}
    base = load_file(models[0])
    merge(adapters=low, **fields, output_format="delta", output=str(tmp_path / "without"))
    merge(adapters=low, base=models[0], **fields, output_format="delta", output=str(tmp_path / "with"))
    assert [has_base for *_, has_base in SEEN] == [False, False, True, True]
    expected = merge_state_dict(models=dense, base=models[0], **fields)
    for place in ("with", "without"):
        deltas = load_file(tmp_path / place / "delta.safetensors")
        assert set(deltas) == {"layers.0.weight", "layers.1.weight"}
        for name, delta in deltas.items():
            torch.testing.assert_close(base[name] + delta, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["toy_matrix", "toy_weight_matrix", "toy_blend"])
def test_outputs_of_adapters_agree(models, adapters, tmp_path, method):
    fields = {"adapters": adapters[0], "base": models[0], "method": method}
    for kind in ("adapter", "delta", "model"):
        merge(**fields, output_format=kind, rank=24 if kind == "adapter" else None, output=str(tmp_path / kind))
    base, whole = load_file(models[0]), load_file(tmp_path / "model" / "model.safetensors")
    refolded = merge_state_dict(adapters=[str(tmp_path / "adapter")], base=models[0], method="uniform_delta")
    deltas = load_file(tmp_path / "delta" / "delta.safetensors")
    assert set(deltas) == {"layers.0.weight", "layers.1.weight"}
    for name, delta in deltas.items():
        assert relative_gap(base[name] + delta, whole[name]) <= 1e-6
        assert relative_gap(refolded[name], whole[name]) <= 1e-5
        assert not torch.equal(base[name], whole[name])


def test_a_whole_matrix_does_not_depend_on_blocks_and_threads(models, monkeypatch):
    fields = {"models": models[1], "base": models[0], "method": "toy_matrix"}
    whole = merge_state_dict(**fields, threads=1)
    for entries in (1, 7, 100):
        monkeypatch.setattr("lit_wsl.merging.engine.BLOCK_ENTRIES", entries)
        cut = merge_state_dict(**fields, threads=2)
        assert all(torch.equal(cut[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_worker_holds_one_matrix(tmp_path, monkeypatch, threads):
    """Task vectors of a matrix are gone before the worker takes the next."""
    state = {f"layers.{n}.weight": torch.randn(8, 8) for n in range(12)}
    base = str(save_state(tmp_path / "base.safetensors", state))
    tuned = str(save_state(tmp_path / "tuned.safetensors", {name: t + 1 for name, t in state.items()}))
    held, most = [], 0

    def watched(self, stack, base, context):
        nonlocal most
        held.append(weakref.ref(stack._base))
        most = max(most, sum(reference() is not None for reference in held))
        return stack.mean(0)

    monkeypatch.setattr(Transposing, "merge_matrices", watched)
    merge(models=[tuned], base=base, method="toy_matrix", threads=threads, output=str(tmp_path / "out"))
    assert len(held) == 12
    assert 1 <= most <= threads
    assert all(reference() is None for reference in held)


# The space of weights.


@pytest.mark.parametrize("method", ["toy_blend", "toy_scan", "toy_weight_matrix"])
def test_models_are_merged_with_and_without_a_base(models, method):
    """What is whole is not taken apart, so the base leaves no trace, not even rounding."""
    with_base = merge_state_dict(models=models[1], base=models[0], method=method)
    without = merge_state_dict(models=models[1], method=method)
    assert all(torch.equal(with_base[name], tensor) for name, tensor in without.items())


def test_weights_are_seen_as_they_are(models):
    _, tuned = states(models)
    merged = merge_state_dict(models=models[1], base=models[0], method="toy_weight_matrix")
    assert torch.equal(merged["layers.0.weight"], tuned[0]["layers.0.weight"].flip(0))
    assert torch.equal(merged["layers.1.weight"], tuned[0]["layers.1.weight"].flip(0))
    one = merge_state_dict(models=models[1][:1], base=models[0], method="toy_blend")
    assert all(torch.equal(one[name], tensor) for name, tensor in tuned[0].items())


def test_scans_of_weights_see_weights(models, adapters, monkeypatch):
    monkeypatch.setattr("lit_wsl.merging.engine.BLOCK_ENTRIES", 16)
    _, tuned = states(models)
    merged = merge_state_dict(models=models[1], base=models[0], method="toy_scan")
    for name in SHAPES:
        expected = torch.stack([state[name] for state in tuned]).mean()
        torch.testing.assert_close(merged[name], expected.expand(SHAPES[name]), rtol=1e-4, atol=1e-5)
    low = merge_state_dict(adapters=adapters[0], base=models[0], method="toy_scan")["layers.0.weight"]
    dense = merge_state_dict(models=adapters[1], base=models[0], method="toy_scan")["layers.0.weight"]
    torch.testing.assert_close(low, dense, rtol=1e-4, atol=1e-6)
    stack, base = torch.randn(3, 5), torch.randn(5)
    update = merge_tensors("toy_scan", stack, base)
    torch.testing.assert_close(update, (stack + base).mean() - base)


def test_the_base_of_a_block_is_that_block(models, adapters, monkeypatch):
    monkeypatch.setattr("lit_wsl.merging.engine.BLOCK_ENTRIES", 16)
    monkeypatch.setattr("lit_wsl.merging.run.BLOCK_ENTRIES", 16)
    base, tuned = states(models)
    merged = merge_state_dict(models=models[1], base=models[0], method="toy_by_base")
    for name, start in base.items():
        assert torch.equal(merged[name], torch.maximum(start, tuned[0][name]))
        update = merge_tensors("toy_by_base", (tuned[0][name] - start).unsqueeze(0), start)
        torch.testing.assert_close(start + update, torch.maximum(start, tuned[0][name]), rtol=1e-6, atol=1e-6)
    low = merge_state_dict(adapters=adapters[0], base=models[0], method="toy_by_base")
    folded = load_file(adapters[1][0])
    for name, tensor in folded.items():
        torch.testing.assert_close(low[name], torch.maximum(base[name], tensor), rtol=1e-6, atol=1e-6)


def test_adapters_and_models_are_merged_together(models, adapters):
    fields = {"base": models[0], "method": "toy_blend", "method_params": {"weights": [0.2, 0.8]}}
    mixed = merge_state_dict(adapters=adapters[0][:1], models=models[1][:1], **fields)
    base, tuned = states(models)
    for name, folded in load_file(adapters[1][0]).items():
        torch.testing.assert_close(mixed[name], 0.2 * folded + 0.8 * tuned[0][name], rtol=1e-5, atol=1e-6)
    assert torch.equal(mixed["scalar"], base["scalar"])


def test_adapters_without_a_base_are_refused_in_one_line(adapters, tmp_path, capsys):
    with pytest.raises(MergeError, match="'toy_blend' combines weights, not updates: pass `--base DIR`") as error:
        merge(adapters=adapters[0], method="toy_blend", output=str(tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert run(["merge", "--adapters", *adapters[0], "--method", "toy_blend", "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_models_without_a_base_are_refused_where_it_is_needed(models, tmp_path):
    for method, kind in (("toy_by_base", "model"), ("toy_matrix", "model"), ("toy_blend", "delta")):
        with pytest.raises(MergeError, match="needs the base"):
            merge(models=models[1], method=method, output_format=kind, output=str(tmp_path / "out"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["toy_matrix", "toy_blend", "toy_scan", "toy_weight_matrix", "toy_by_base"])
def test_base_plus_delta_is_value(tmp_path, method, dtype, monkeypatch):
    monkeypatch.setattr("lit_wsl.merging.engine.BLOCK_ENTRIES", 50)
    base, tuned = save_models(tmp_path, 2, dtype)
    plan = make_plan(MergeSpec(models=tuned, base=base, method=method))
    for name, start in load_file(base).items():
        parameter = ParameterMerger(plan, name)
        delta = parameter.collect(parameter.deltas(), torch.float32)
        value = parameter.collect(parameter.values(), torch.float32)
        assert value.shape == start.shape
        torch.testing.assert_close(start.float() + delta, value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["toy_matrix", "toy_blend", "toy_weight_matrix", "uniform_delta"])
def test_sources_and_base_are_not_modified(models, method):
    files = [models[0], *models[1]]
    before = [load_file(file) for file in files]
    merge_state_dict(models=models[1], base=models[0], method=method)
    for state, file in zip(before, files, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in load_file(file).items())


def test_a_whole_model_in_one_shape_without_entries(tmp_path):
    for name, value in (("base", 0.0), ("one", 1.0), ("two", 2.0)):
        state = {"empty.weight": torch.zeros(0, 4), "a": torch.full((3,), value)}
        save_state(tmp_path / f"{name}.safetensors", state)
    files = [str(tmp_path / f"{name}.safetensors") for name in ("base", "one", "two")]
    for method in ("toy_matrix", "toy_blend", "toy_weight_matrix"):
        merged = merge_state_dict(models=files[1:], base=files[0], method=method)
        assert merged["empty.weight"].shape == (0, 4)
        assert merged["a"].tolist() == [1.5] * 3


# Entries that are not finite.


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layers.0.weight", "layers.1.weight", "layers.0.bias"])
@pytest.mark.parametrize("method", ["toy_keep", "toy_matrix", "toy_blend", "toy_scan"])
def test_a_damaged_source_is_named(models, tmp_path, value, name, method):
    """Also where the method would lose the entry."""
    state = load_file(models[1][1])
    state[name].view(-1)[3] = value
    save_file(state, tmp_path / "bad.safetensors")
    sources = [models[1][0], str(tmp_path / "bad.safetensors")]
    with pytest.raises(MergeError, match=rf"bad\.safetensors has NaN.*{name}"):
        merge_state_dict(models=sources, base=models[0], method=method)


@pytest.mark.parametrize("method", ["toy_blend", "uniform_delta"])
def test_a_damaged_first_model_is_not_called_the_base(models, tmp_path, method):
    state = load_file(models[1][1])
    state["scalar"].fill_(float("nan"))
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(MergeError, match=r"bad\.safetensors has NaN"):
        merge_state_dict(models=[str(tmp_path / "bad.safetensors"), models[1][0]], method=method)


@pytest.mark.parametrize("method", ["toy_keep", "toy_matrix", "toy_blend", "toy_scan", "toy_weight_matrix"])
def test_a_damaged_base_is_named(models, adapters, tmp_path, method):
    state = load_file(models[0])
    state["layers.0.weight"][2, 2] = float("nan")
    save_file(state, tmp_path / "base.safetensors")
    for sources in ({"models": models[1]}, {"adapters": adapters[0]}):
        with pytest.raises(MergeError, match=r"The base has NaN.*layers\.0\.weight"):
            merge_state_dict(**sources, base=str(tmp_path / "base.safetensors"), method=method)


@pytest.mark.parametrize("method", ["toy_keep", "toy_matrix", "toy_blend"])
def test_a_damaged_adapter_is_named(models, adapters, tmp_path, method):
    (tmp_path / "bad").mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "bad" / file).write_bytes((Path(adapters[0][1]) / file).read_bytes())
    state = load_file(tmp_path / "bad" / "adapter_model.safetensors")
    state[next(key for key in state if "lora_B" in key)].view(-1)[0] = float("nan")
    save_file(state, tmp_path / "bad" / "adapter_model.safetensors")
    with pytest.raises(MergeError, match="bad has NaN"):
        merge_state_dict(adapters=[adapters[0][0], str(tmp_path / "bad")], base=models[0], method=method)


# Lists as parameters, and numbers of sources.


def test_a_list_of_weights_by_yaml_command_line_and_python(models, tmp_path, capsys):
    weights = [0.2, 0.8]
    _, tuned = states(models)
    fields = {"models": models[1][:2], "base": models[0], "method": "toy_blend"}
    report = merge(**fields, method_params={"weights": weights}, output=str(tmp_path / "python"))
    assert report.params == {"weights": (0.2, 0.8)}
    config = tmp_path / "merge.yaml"
    paths = "".join(f"  - {path}\n" for path in models[1][:2])
    config.write_text(f"models:\n{paths}base: {models[0]}\nmethod: toy_blend\nmethod_params:\n  weights: {weights}\n")
    assert run(["merge", "--config", str(config), "--output", str(tmp_path / "yaml")]) == 0
    argv = ["merge", "--models", *models[1][:2], "--base", models[0], "--method", "toy_blend"]
    assert run([*argv, "--method_params.weights=[0.2,0.8]", "--output", str(tmp_path / "equals")]) == 0
    assert run([*argv, "--method-params.weights", "[0.2, 0.8]", "--output", str(tmp_path / "space")]) == 0
    merged = load_file(tmp_path / "python" / "model.safetensors")
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, 0.2 * tuned[0][name] + 0.8 * tuned[1][name])
    for place in ("yaml", "equals", "space"):
        again = load_file(tmp_path / place / "model.safetensors")
        assert all(torch.equal(again[name], tensor) for name, tensor in merged.items())
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[0.2,0.8,0.1]", "2 numbers, got 3"),
        ("[]", "2 numbers, got 0"),
        ("0.5", "must be a list of numbers, got 0.5"),
        ("[0.2,x]", "must be a list of numbers"),
        ("[0.2,true]", "must be a list of numbers"),
        ("[0.2,[1]]", "must be a list of numbers"),
        ("[0.2,.nan]", "must hold finite numbers"),
        ("{a: 1}", "must be a list of numbers"),
        ("text", "must be a list of numbers, got 'text'"),
    ],
)
def test_wrong_lists_are_refused_in_one_line(models, tmp_path, capsys, text, words):
    argv = ["merge", "--models", *models[1][:2], "--base", models[0], "--method", "toy_blend"]
    assert run([*argv, f"--method_params.weights={text}", "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "out").exists()


def test_no_list_is_the_default(models, tmp_path):
    assert build_method("toy_blend").params() == {"weights": None}
    assert build_method("toy_blend", {"weights": None}).params() == {"weights": None}
    assert build_method("toy_blend", {"weights": (1, 2)}).params() == {"weights": (1.0, 2.0)}


def test_every_kind_of_parameter_is_taken():
    values = {"flag": True, "number": 2, "count": 3, "share": 1, "kind": "b", "numbers": [1, 2.5], "weights": [1]}
    taken = build_method("toy_typed", values).params()
    assert taken == {**values, "numbers": (1.0, 2.5), "weights": (1.0,)}
    assert [type(taken[key]) for key in ("flag", "number", "count", "share")] == [bool, float, int, float]
    nothing = dict.fromkeys(("count", "share", "kind", "weights"))
    assert build_method("toy_typed", nothing).params() == build_method("toy_typed").params()


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"flag": 1}, "`flag` of 'toy_typed' must be of type bool, got 1"),
        ({"flag": "true"}, "of type bool"),
        ({"flag": None}, "of type bool"),
        ({"number": None}, "of type float"),
        ({"number": True}, "of type float"),
        ({"count": 1.5}, "of type int"),
        ({"count": False}, "of type int"),
        ({"share": "1"}, "of type float"),
        ({"share": float("inf")}, "finite"),
        ({"kind": "c"}, "one of a, b"),
        ({"numbers": None}, "list of numbers, got None"),
        ({"numbers": "12"}, "list of numbers"),
        ({"numbers": {1: 2}}, "list of numbers"),
    ],
    ids=str,
)
def test_every_kind_of_parameter_is_checked(params, words):
    with pytest.raises(ConfigError, match=words):
        build_method("toy_typed", params)


@pytest.mark.parametrize(
    ("method", "count", "words"),
    [
        ("toy_pair", 1, "'toy_pair' merges exactly 2 sources, got 1"),
        ("toy_pair", 3, "'toy_pair' merges exactly 2 sources, got 3"),
        ("toy_several", 1, "'toy_several' merges 2 to 4 sources, got 1"),
        ("toy_several", 5, "'toy_several' merges 2 to 4 sources, got 5"),
    ],
)
def test_numbers_of_sources_are_checked_before_anything_is_read(tmp_path, method, count, words):
    with pytest.raises(ConfigError, match=words):
        build_method(method).check_sources(count)
    for field in ("models", "adapters"):
        sources = [str(tmp_path / f"nowhere{n}") for n in range(count)]
        with pytest.raises(ConfigError, match=words):
            merge(**{field: sources}, base=str(tmp_path / "nobase"), method=method, output=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=words):
        merge_tensors(method, torch.zeros(count, 3), torch.zeros(3))


def test_adapters_and_models_count_together(models, adapters):
    fields = {"base": models[0], "method": "toy_pair"}
    merge_state_dict(adapters=adapters[0][:1], models=models[1][:1], **fields)
    with pytest.raises(LitWslError, match="got 3"):
        merge_state_dict(adapters=adapters[0], models=models[1][:1], **fields)
