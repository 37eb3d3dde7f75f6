"""Sparsifying methods against plain Python; blocks cut anywhere; whole models and adapters from end to end."""

import pytest
import torch
from safetensors.torch import load_file

from lit_wsl.errors import ConfigError
from lit_wsl.merging import build_method, merge, merge_state_dict, merge_tensors
from lit_wsl.tensors.magprune import doubled_ranks
from lit_wsl.tensors.ranking import RankSelector
from tests.merging.build import random_states, save_adapter, save_bert
from tests.oracles import sparse as oracle

FUSED = [
    {},
    {"lambda": -0.7},
    {"combine": "sum"},
    {"weights": "positive"},
    {"weights": "mixed", "combine": "sum", "lambda": 2.0},
]
ELECTED = [*FUSED, {"weights": "mixed", "combine": "sum", "elect": "weighted"}]
CASES = {
    "breadcrumbs": (
        oracle.breadcrumbs,
        [*FUSED, {"density": 0.5, "gamma": 0.2}, {"density": 0.9, "gamma": 0.5}, {"density": 1.0}, {"gamma": 0.0}],
    ),
    "breadcrumbs_ties": (oracle.breadcrumbs_ties, [*ELECTED, {"density": 0.6, "gamma": 0.1}]),
}
CASES["dare_linear"] = (oracle.dare_linear, [*FUSED, {"density": 0.5, "seed": 7}, {"density": 1.0}])
CASES["dare_ties"] = (oracle.dare_ties, [*ELECTED, {"density": 0.7, "seed": 7}, {"density": 1.0}])
CASES["della_linear"] = (
    oracle.della_linear,
    [*FUSED, {"density": 0.6, "epsilon": 0.4, "seed": 3}, {"density": 1.0, "epsilon": 0.0}, {"scope": "tensor"}],
)
CASES["della"] = (oracle.della, [*ELECTED, {"density": 0.6, "epsilon": 0.4, "seed": 3}, {"epsilon": 0.0}])
CASES["magnitude_prune"] = (oracle.magnitude_prune, [*FUSED, {"density": 0.55}, {"density": 1.0}])
CASES["sce"] = (oracle.sce, [{}, {"density": 0.3, "lambda": -0.7}, {"density": 0.99}])
CASES["model_stock"] = (oracle.model_stock, [{}])
CASES["emr"] = (oracle.emr, [{}, {"lambda": -0.7}])
CASES["tall_mask"] = (
    oracle.tall_mask,
    [{}, {"strictness": 0.9, "tasks": 1, "lambda": 0.3}, {"combine": "sum"}, {"strictness": 0.0}, {"strictness": 3.0}],
)
CASES["ram"] = (oracle.ram, [{}, {"epsilon": 0.3}, {"epsilon": 0.7, "r": 0.5, "alpha": 0.9}, {"r": 0.1}])
RANDOM = {"dare_linear", "dare_ties", "della_linear", "della"}
ROW_WISE = {"della_linear", "della"}
EVERY = [(name, params) for name, (_, every) in CASES.items() for params in every]
WEIGHTS = {"positive": [0.5, 2.0, 0.25, 1.0, 0.0], "mixed": [0.5, -1.5, 0.75, 1.0, 0.3]}


def filled(params, sources):
    """Parameters with a list of weights as long as there are sources."""
    return {k: WEIGHTS[v][:sources] if k == "weights" else v for k, v in params.items()}


def expected_of(method, stack, params, **extra):
    """The oracle's answer for one parameter, float64."""
    how = {("lam" if k == "lambda" else k): v for k, v in params.items()}
    if method in ROW_WISE:
        extra["columns"] = stack[0, 0].numel() if stack.ndim > 2 else stack[0].numel()
    rows = stack.double().reshape(len(stack), -1).tolist()
    return torch.tensor(CASES[method][0](rows, **how, **extra), dtype=torch.float64).view(stack.shape[1:])


def stacks(sources):
    """Random entries; few distinct magnitudes with zeros and balanced signs; a zero source; all zero."""
    random = torch.randn(sources, 6, 7)
    coarse = torch.randint(-3, 4, (sources, 6, 7)).float()
    lacking = torch.cat([torch.zeros(1, 6, 7), random[1:]])
    return [random, coarse, lacking, torch.zeros(sources, 6, 7), torch.ones(sources, 6, 7), torch.randn(sources, 1)]


@pytest.mark.parametrize("sources", [2, 3, 5])
@pytest.mark.parametrize(("name", "params"), EVERY, ids=str)
def test_one_parameter_matches_plain_python(name, params, sources):
    torch.manual_seed(sources)
    params = filled(params, sources)
    for stack in stacks(sources):
        balances = name in ("della", "dare_ties") and (stack.unique().numel() > 2 or params.get("elect") == "weighted")
        if balances and stack.equal(stack.round()):
            continue  # integers over probabilities, or times weights, balance in one precision and not in another
        before = stack.clone()
        merged = merge_tensors(name, stack, **params)
        assert torch.equal(stack, before)
        wanted = expected_of(name, stack, params)
        torch.testing.assert_close(merged.double(), wanted, rtol=1e-5, atol=1e-6)
        merged = merge_tensors(name, stack.double(), **params) if sources == 3 else merged.double()
        torch.testing.assert_close(merged, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "params"), EVERY, ids=str)
def test_blocks_cut_anywhere_change_no_bit(monkeypatch, name, params):
    torch.manual_seed(0)
    stack, params = torch.randn(3, 13, 11), filled(params, 3)
    whole = merge_tensors(name, stack, **params)
    for entries in (1, 7, 100):
        monkeypatch.setattr("lit_wsl.merging.single.BLOCK_ENTRIES", entries)
        assert torch.equal(merge_tensors(name, stack, **params), whole)


@pytest.mark.parametrize(("name", "params"), EVERY, ids=str)
def test_models_match_plain_python(tmp_path, monkeypatch, name, params):
    base, *tuned = random_states(tmp_path, 3)
    start, others, params = load_file(base), [load_file(file) for file in tuned], filled(params, 3)
    for entries in (1 << 17, 4):
        monkeypatch.setattr("lit_wsl.merging.stacks.BLOCK_ENTRIES", entries)
        merged = merge_state_dict(models=tuned, base=base, method=name, method_params=params)
        for key, tensor in start.items():
            stack = torch.stack([other[key] - tensor for other in others])
            wanted = tensor + expected_named(name, stack, params, key)
            torch.testing.assert_close(merged[key].double(), wanted, rtol=1e-5, atol=1e-6)


def expected_named(name, stack, params, key):
    """The oracle's answer for a named parameter; only random methods look at the name."""
    return expected_of(name, stack, params, **({"name": key} if name in RANDOM else {}))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters of different rank on a tiny BERT, and the base."""
    root = tmp_path_factory.mktemp("adapters")
    base = save_bert(root / "base")
    save_adapter(base, root / "one", 1)
    save_adapter(base, root / "two", 2, r=2)
    return str(base), [str(root / "one"), str(root / "two")]


@pytest.mark.parametrize("name", CASES)
def test_adapters_match_plain_python(adapters, tmp_path, name):
    base, paths = adapters
    deltas = []
    for number, path in enumerate(paths):
        merge(adapters=[path], method="uniform_delta", output_format="delta", output=str(tmp_path / str(number)))
        deltas.append(load_file(tmp_path / str(number) / "delta.safetensors"))
    merge(adapters=paths, base=base, method=name, output_format="delta", output=str(tmp_path / "out"))
    merged = load_file(tmp_path / "out" / "delta.safetensors")
    assert merged.keys() == deltas[0].keys()
    for key, tensor in merged.items():
        wanted = expected_named(name, torch.stack([delta[key] for delta in deltas]), {}, key)
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("breadcrumbs", {"density": 0.0}, "`0 < density <= 1`"),
        ("breadcrumbs", {"density": 1.1}, "`0 < density <= 1`"),
        ("breadcrumbs_ties", {"gamma": 1.0}, "`0 <= gamma < 1`"),
        ("breadcrumbs", {"gamma": -0.1}, "`0 <= gamma < 1`"),
        ("breadcrumbs", {"weights": [1.0, -1.0]}, "use `combine: sum`"),
        ("breadcrumbs", {"weights": [0.0, 0.0]}, "use `combine: sum`"),
        ("breadcrumbs", {"combine": "max"}, "one of mean, sum"),
        ("dare_linear", {"density": 0.0}, "`0 < density <= 1`"),
        ("dare_ties", {"seed": 1.5}, "of type int"),
        ("della", {"density": 0.1}, "got density 0.1 and epsilon 0.15"),
        ("della_linear", {"density": 0.9}, "density . epsilon <= 1"),
        ("della", {"epsilon": -0.1}, "0 < density - epsilon"),
        ("magnitude_prune", {"density": 0.0}, "`0 < density <= 1`"),
        ("magnitude_prune", {"scope": "layer"}, "one of tensor, global"),
        ("sce", {"density": 0.0}, "`0 < density <= 1`"),
        ("sce", {"weights": [1.0]}, "no parameter 'weights'"),
        ("model_stock", {"lambda": 1.0}, "no parameter 'lambda'"),
        ("tall_mask", {"strictness": -0.1}, "`strictness >= 0`"),
        ("consensus", {"tasks": 0}, "`tasks >= 1`"),
        ("ram", {"epsilon": -1e-5}, "`epsilon >= 0`"),
        ("ram", {"r": -0.1}, "`r >= 0`"),
        ("ram", {"alpha": -0.1}, "`alpha >= 0`"),
        ("emr", {"lambda": float("inf")}, "finite"),
        ("breadcrumbs", {"elect": "weighted"}, "no parameter 'elect'"),
    ],
)
def test_wrong_parameters_are_refused(name, params, words):
    with pytest.raises(ConfigError, match=words) as error:
        build_method(name, params)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
def test_weights_must_be_as_many_as_sources(name):
    with pytest.raises(ConfigError, match="`weights` of .* has 2 numbers for 3 sources"):
        merge_tensors(name, torch.randn(3, 4), weights=[1.0, 2.0])


def test_breadcrumbs_keep_a_band_of_magnitudes():
    stack = torch.tensor([[9.0, -8.0, 7.0, 6.0, -5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
    merged = merge_tensors("breadcrumbs", stack, density=0.3, gamma=0.2)
    assert merged.tolist() == [0, 0, 7, 6, -5, 0, 0, 0, 0, 0]


def test_breadcrumbs_of_a_short_parameter_drop_no_outlier():
    """Fewer than 1 / gamma entries: none is the top percent, and the largest stay."""
    merged = merge_tensors("breadcrumbs", torch.tensor([[1.0, -3.0, 2.0]]), density=0.5, gamma=0.01)
    assert merged.tolist() == [0, -3, 2]


def test_dare_linear_with_equal_weights_is_dare():
    stack = torch.randn(3, 200)
    merged = merge_tensors("dare_linear", stack, density=0.25)
    torch.testing.assert_close(merged, merge_tensors("dare", stack, drop_rate=0.75))


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_random_methods_keep_the_expected_share_and_sum(name):
    stack = torch.rand(1, 100, 1000) + 0.5
    merged = merge_tensors(name, stack, density=0.4)
    assert int(merged.count_nonzero()) == pytest.approx(40_000, rel=0.02)
    assert float(merged.sum()) == pytest.approx(float(stack.sum()), rel=0.02)
    assert not torch.equal(merged, merge_tensors(name, stack, density=0.4, seed=1))


def test_della_prefers_large_entries():
    stack = torch.arange(1.0, 20_001.0).view(1, 1, -1)
    kept = merge_tensors("della", stack, density=0.5, epsilon=0.4)[0] != 0
    assert float(kept[:2000].float().mean()) == pytest.approx(0.14, abs=0.03)
    assert float(kept[-2000:].float().mean()) == pytest.approx(0.86, abs=0.03)


def test_magnitude_prune_counts_over_the_whole_model(tmp_path):
    base, tuned = random_states(tmp_path, 1)
    start, other = load_file(base), load_file(tuned)
    params = {"density": 0.3, "scope": "global"}
    merged = merge_state_dict(models=[tuned], base=base, method="magnitude_prune", method_params=params)
    deltas = {key: other[key] - tensor for key, tensor in start.items()}
    entries = torch.cat([delta.flatten() for delta in deltas.values()]).double().tolist()
    expected = torch.tensor(oracle.magnitude_prune([entries], 0.3)).split([d.numel() for d in deltas.values()])
    for (key, tensor), wanted in zip(start.items(), expected, strict=True):
        torch.testing.assert_close(merged[key], tensor + wanted.view(tensor.shape).float())


def test_sce_weights_sources_by_their_energy():
    stack = torch.tensor([[2.0, -1.0, 0.0], [1.0, 1.0, 0.0]])  # energies 5 and 2; the second entry balances
    assert merge_tensors("sce", stack).tolist() == pytest.approx([12 / 7, 0.0, 0.0])
    assert merge_tensors("sce", stack, density=0.5).tolist() == [0.0, 0.0, 0.0]  # one entry of two: the balanced one


def test_model_stock_measures_the_angle():
    """t = 2 cos / (1 + cos) for two sources: 2/3 at 60 degrees, 0 at 90 degrees and beyond, 1 in parallel."""
    first = torch.tensor([1.0, 0.0])
    for other, ratio in (([0.5, 3**0.5 / 2], 2 / 3), ([0.0, 5.0], 0.0), ([-1.0, 1.0], 0.0), ([3.0, 0.0], 1.0)):
        stack = torch.stack([first, torch.tensor(other)])
        for size in (1.0, 1e-8):  # the angle does not depend on the length, however small
            torch.testing.assert_close(merge_tensors("model_stock", size * stack), size * ratio * stack.mean(0))


def test_model_stock_wants_two_sources():
    with pytest.raises(ConfigError, match="at least 2"):
        merge_tensors("model_stock", torch.ones(1, 3))


def test_emr_tells_of_the_masks_it_leaves_out(adapters, tmp_path, caplog):
    merge(adapters=adapters[1], method="emr", output_format="delta", output=str(tmp_path / "out"))
    assert "masks and rescalers" in caplog.text


def test_tall_mask_drops_what_too_few_tasks_want():
    stack = torch.tensor([[1.0, 1.0, 1.0, 0.1], [1.0, 0.0, -0.9, 0.1], [1.0, 0.0, 0.0, 0.0]])
    wanted = {1: [True, True, True, True], 2: [True, False, True, True], 3: [True, False, False, False]}
    for tasks, kept in wanted.items():
        merged = merge_tensors("tall_mask", stack, tasks=tasks, combine="sum")
        torch.testing.assert_close(merged, stack.sum(0) * torch.tensor(kept))
    with pytest.raises(ConfigError, match="wants 4 tasks to agree, got 3 sources"):
        merge_tensors("tall_mask", stack, tasks=4)


def test_ram_keeps_what_one_source_changes():
    stack = torch.tensor([[1.0, 2.0, 0.0, 9e-6], [0.0, 4.0, -3.0, 0.0]])
    assert merge_tensors("ram", stack).tolist() == [1.0, 3.0, -3.0, 0.0]
    grown = merge_tensors("ram", stack, r=0.5, alpha=2.0)  # one shared over one own change each
    assert grown.tolist() == [1.5, 3.0, -4.5, 0.0]


@pytest.mark.parametrize("shape", [(11,), (9, 7), (4, 3, 5), (12, 1), ()], ids=str)
def test_arcee_fusion_matches_plain_python(shape):
    torch.manual_seed(1)
    delta, base = 0.3 * torch.randn(1, *shape), torch.randn(shape)
    columns = base[0].numel() if len(shape) > 1 and base[0].numel() > 1 else base.numel()
    rows = delta.reshape(1, -1).double().tolist()
    expected = torch.tensor(oracle.arcee_fusion(rows, base.flatten().double().tolist(), columns)).view(shape)
    merged = merge_tensors("arcee_fusion", delta, base)
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-6)
    assert len(shape) == 0 or 0 < int((merged.abs() > 1e-6).sum()) < merged.numel()


def test_arcee_fusion_of_a_model_and_of_an_adapter(tmp_path, adapters):
    base, tuned = random_states(tmp_path, 1)
    start, other = load_file(base), load_file(tuned)
    merged = merge_state_dict(models=[tuned], base=base, method="arcee_fusion")
    for key, tensor in start.items():
        columns = tensor[0].numel() if tensor.ndim > 1 else tensor.numel()
        rows = (other[key] - tensor).reshape(1, -1).double().tolist()
        update = oracle.arcee_fusion(rows, tensor.flatten().double().tolist(), columns)
        torch.testing.assert_close(merged[key], tensor + torch.tensor(update).view(tensor.shape))
        assert ((merged[key] == tensor) | (merged[key] == other[key])).all(), "entries are taken over, not computed"
    with pytest.raises(ConfigError, match="exactly 1"):
        merge_state_dict(models=[tuned, tuned], base=base, method="arcee_fusion")
    start = merge_state_dict(adapters=adapters[1][:1], base=adapters[0], method="uniform_scalar_delta")
    assert merge_state_dict(adapters=adapters[1][:1], base=adapters[0], method="arcee_fusion").keys() == start.keys()


@pytest.mark.parametrize("entries", [1, 2, 999, 300_000])
def test_ranks_of_a_stream_are_those_of_a_sort(entries):
    torch.manual_seed(entries)
    x = torch.randn(entries).mul_(10.0 ** torch.randint(-30, 30, (entries,)))
    x[torch.rand(entries) < 0.3] = 0.0
    ordered = x.abs().sort(descending=True).values.tolist()
    ranks = [0, 1, entries, entries // 2 + 1, entries // 3 + 1, 1]
    selector = RankSelector(lambda count: ranks if count == entries else [])
    passes, is_known = 0, False
    while not is_known:
        assert selector.values is None
        for block in x.split(1 << 17):
            selector.update(block)
        is_known = selector.end_pass()
        passes += 1
    assert passes == (1 if entries < 1000 else 2)
    assert selector.values == [float("inf"), *(ordered[rank - 1] for rank in ranks[1:])]


def test_a_stream_without_entries_or_ranks_needs_one_pass():
    assert RankSelector(lambda count: [count]).end_pass()
    selector = RankSelector(lambda count: [0])
    selector.update(torch.ones(3))
    assert selector.end_pass()
    assert selector.values == [float("inf")]


def test_ranks_share_ties():
    rows = torch.tensor([[3.0, -1.0, 0.0, 2.0, -5.0], [1.0, -1.0, 0.0, 0.0, 1.0], [2.0, 2.0, -2.0, 2.0, 2.0]])
    expected = [[0.75, 0.25, 0.0, 0.5, 1.0], [0.75, 0.75, 0.125, 0.125, 0.75], [0.5] * 5]
    assert (doubled_ranks(rows) / 8).tolist() == expected
    assert doubled_ranks(rows[:, :1]).tolist() == [[0]] * 3


@pytest.mark.parametrize("name", ["breadcrumbs", "magnitude_prune", "sce", "dare_ties", "ram"])
def test_a_parameter_of_several_blocks_matches_plain_python(name):
    torch.manual_seed(3)
    stack = torch.randn(2, 150_000)
    params = {"r": 0.3} if name == "ram" else {"density": 0.3}
    wanted = expected_of(name, stack, params)
    torch.testing.assert_close(merge_tensors(name, stack, **params).double(), wanted, rtol=1e-4, atol=1e-5)
