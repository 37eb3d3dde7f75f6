"""Every engine against plain differentiation of merged weights in float64, and what it keeps and gives back."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from lit_wsl.errors import ConfigError, MergeError
from lit_wsl.learning.live import engines
from lit_wsl.learning.live.deltas import ParameterDeltas
from lit_wsl.learning.live.dense import StoredDelta
from lit_wsl.learning.live.engines import ENGINES, engine_class
from lit_wsl.learning.live.functions import merge_into
from lit_wsl.learning.live.reading import read_deltas
from lit_wsl.learning.rows import rows_of
from lit_wsl.tensors.lora import LoraFactors
from tests.learning.build import oracle, relative

MIXED = ("bert", "bert_tuned", "llama_tied", "llama_tuned")
LINEAR = ("bert_linear", "llama_linear")
PAIRS = [
    (engine, case)
    for engine in ENGINES
    for case in (*LINEAR, *MIXED)
    if engine != "fused_lora_linear" or case in LINEAR
]


def _coefficients(rows, sources, dtype=torch.float32):
    torch.manual_seed(3)
    return torch.rand(len(rows.names), sources, dtype=dtype).add_(0.1).requires_grad_()


def _learned(case, engine, granularity="task", residency="cpu_stream", dtype=torch.float32):
    """Loss and derivative by an engine."""
    plan, model = case.plan, case.model.to(dtype)
    rows = rows_of(plan.merged, granularity)
    c = _coefficients(rows, len(plan.sources), dtype)
    with engine_class(engine)(model, read_deltas(plan, residency), rows.of) as live:
        live.merge(c)
        loss = case.loss(model)
        loss.backward()
    case.model.float()
    return float(loss.detach()), c.grad, c


@pytest.mark.parametrize("granularity", ["task", "layer", "tensor"])
@pytest.mark.parametrize(("engine", "name"), PAIRS)
def test_gradients_are_those_of_plain_differentiation(engine, name, granularity, request):
    case = request.getfixturevalue(name)
    loss, gradient, c = _learned(case, engine, granularity, dtype=torch.float64)
    expected_loss, expected = oracle(case, c, granularity)
    assert float(expected.norm()) > 1e-3, "it proves nothing"
    assert loss == pytest.approx(expected_loss, rel=1e-9)
    assert relative(gradient, expected) <= 1e-9


@pytest.mark.parametrize("residency", ["cpu_stream", "gpu_cache"])
@pytest.mark.parametrize(("engine", "name"), PAIRS)
def test_gradients_in_float32_are_as_near_as_float32_comes(engine, name, residency, request):
    """Plain differentiation in float32 is 4e-6 off itself where whole models were tuned."""
    case = request.getfixturevalue(name)
    _, gradient, c = _learned(case, engine, residency=residency)
    assert relative(gradient, oracle(case, c)[1]) <= (1e-5 if "tuned" in name else 1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_activations_that_are_computed_again_give_the_same_gradients(engine, llama_linear):
    expected = _learned(llama_linear, engine)[1]
    model = llama_linear.model.train()  # without dropout; checkpointing is for training alone
    model.activation_checkpointing_enable({"use_reentrant": False})
    found = _learned(llama_linear, engine)[1]
    model.activation_checkpointing_disable()
    model.eval()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_add_up_over_batches_of_one_update(engine, bert_linear):
    plan, model = bert_linear.plan, bert_linear.model
    rows, deltas = rows_of(plan.merged), read_deltas(plan)
    raw = _coefficients(rows, len(plan.sources))
    with engine_class(engine)(model, deltas, rows.of) as live:
        for _ in range(3):
            live.merge(raw * 1.0)
            bert_linear.loss(model).backward()
    torch.testing.assert_close(raw.grad, 3.0 * _learned(bert_linear, engine)[1])


def test_weights_are_merged_once_while_the_coefficients_stay(bert, monkeypatch):
    calls = []
    monkeypatch.setattr(engines, "merge_into", lambda *a: calls.append(a) or merge_into(*a))
    plan = bert.plan
    rows = rows_of(plan.merged)
    raw = _coefficients(rows, len(plan.sources))
    with engine_class("merge_once")(bert.model, read_deltas(plan), rows.of) as live:
        for factor in (1.0, 1.0, 1.0, 0.5, 0.5):
            live.merge(raw * factor)
            bert.loss(bert.model).backward()
    assert len(calls) == 2 * len(plan.merged)


@pytest.mark.parametrize(("engine", "name"), [pair for pair in PAIRS if pair[1] in ("bert_linear", "llama_tied")])
def test_the_model_is_given_back_as_it_was(engine, name, request):
    case = request.getfixturevalue(name)
    before = {key: tensor.clone() for key, tensor in case.model.state_dict().items()}
    identities = [id(parameter) for _, parameter in case.model.named_parameters(remove_duplicate=False)]
    kinds = [type(module) for module in case.model.modules()]
    next(case.model.parameters()).requires_grad_(False)
    flags = [parameter.requires_grad for parameter in case.model.parameters()]
    _learned(case, engine)
    after = case.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert [id(parameter) for _, parameter in case.model.named_parameters(remove_duplicate=False)] == identities
    assert [type(module) for module in case.model.modules()] == kinds
    assert not any("forward" in vars(module) for module in case.model.modules())
    assert [parameter.requires_grad for parameter in case.model.parameters()] == flags
    case.model.requires_grad_(True)


def _toy_deltas(model, sources, *, dense):
    """Random updates of every weight and bias."""
    found = {}
    for name, parameter in model.named_parameters():
        rows, columns = parameter.shape[0], parameter.numel() // parameter.shape[0]
        if parameter.ndim == 1 or dense:
            stored = {i: StoredDelta(0.1 * torch.randn(rows, columns), "cpu_stream") for i in range(sources)}
            found[name] = ParameterDeltas(name, parameter.shape, sources, dense=stored)
        else:
            low = {
                i: LoraFactors(torch.randn(2 + i, columns), 0.1 * torch.randn(rows, 2 + i), 0.5, (rows, columns))
                for i in range(sources)
            }
            found[name] = ParameterDeltas(name, parameter.shape, sources, low)
    return found


def _toy(*, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20, bias=bias), nn.Tanh(), nn.Linear(20, 12, bias=bias))


def _kept(engine, sources, *, dense):
    """Bytes that a forward pass keeps for the backward pass, without parameters and stored updates."""
    model = _toy(bias=engine != "fused_lora_linear")
    deltas = _toy_deltas(model, sources, dense=dense)
    rows = rows_of(deltas)
    c, inputs = _coefficients(rows, sources), torch.randn(16, 12)
    sizes = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with engine_class(engine)(model, deltas, rows.of) as live:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            live.merge(c)
            out = model(inputs)
        known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()} | {c.data_ptr()}
        kept = sum(size for pointer, size in sizes.items() if pointer not in known)
        out.sum().backward()
    return kept


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("engine", ["merge_once", "streaming_parametrize", "fused_linear", "fused_lora_linear"])
def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_sources(engine, dense):
    if engine == "fused_lora_linear" and dense:
        pytest.skip("takes no dense updates")
    assert _kept(engine, 9, dense=dense) == _kept(engine, 2, dense=dense)


def test_merge_once_keeps_no_more_than_the_plain_model_and_the_legacy_way_keeps_every_update():
    model, inputs, kept = _toy(), torch.randn(16, 12), {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
        model(inputs)
    for parameter in model.parameters():
        kept.pop(parameter.data_ptr(), None)
    assert _kept("merge_once", 9, dense=False) <= sum(kept.values())
    assert _kept("functional_clone_legacy", 9, dense=False) > _kept("functional_clone_legacy", 2, dense=False)


@pytest.mark.parametrize("engine", ["merge_once", "streaming_parametrize", "fused_linear"])
@pytest.mark.parametrize("dense", [False, True])
def test_autocast_gives_gradients_of_half_precision(engine, dense):
    def gradient(*, autocast):
        model = _toy()
        torch.manual_seed(1)
        deltas = _toy_deltas(model, 3, dense=dense)
        rows, inputs = rows_of(deltas), torch.randn(16, 12)
        c = _coefficients(rows, 3)
        with (
            engine_class(engine)(model, deltas, rows.of) as live,
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            live.merge(c)
            model(inputs).float().square().mean().backward()
        return c.grad

    assert relative(gradient(autocast=True), gradient(autocast=False)) < 0.03


def test_other_parameters_and_inputs_have_their_gradients():
    model, found = _toy().double(), {}
    deltas = {n: d for n, d in _toy_deltas(model, 2, dense=False).items() if n.endswith("weight")}
    rows = rows_of(deltas)
    c = _coefficients(rows, 2, torch.float64)
    wanted = (c, model[0].bias, torch.randn(2, 3, 12, dtype=torch.float64, requires_grad=True))
    for engine in ENGINES:
        with engine_class(engine)(model, deltas, rows.of) as live:
            live.merge(c)
            found[engine] = torch.autograd.grad(model(wanted[2]).square().sum(), wanted)
    for gradients in found.values():
        torch.testing.assert_close(gradients, found["functional_clone_legacy"])


def test_merging_anew_before_the_backward_pass_is_noticed():
    model = _toy()
    deltas = _toy_deltas(model, 2, dense=False)
    rows = rows_of(deltas)
    c = _coefficients(rows, 2)
    with engine_class("merge_once")(model, deltas, rows.of) as live:
        live.merge(c)
        loss = model(torch.randn(3, 12)).sum()
        live.merge(c * 2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_layers_that_torch_fuses_are_not_bypassed():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval().requires_grad_(False)
    deltas = {n: d for n, d in _toy_deltas(model, 2, dense=False).items() if n in ("linear1.weight", "linear2.weight")}
    rows, inputs = rows_of(deltas), torch.randn(2, 3, 8)
    found = {}
    for engine in ENGINES:
        if engine != "fused_lora_linear":
            c = _coefficients(rows, 2)
            with engine_class(engine)(model, deltas, rows.of) as live:
                live.merge(c)
                model(inputs).square().mean().backward()
            found[engine] = c.grad
    for gradient in found.values():
        torch.testing.assert_close(gradient, found["functional_clone_legacy"])


def test_weights_can_be_summed_wider():
    model = _toy().bfloat16()
    deltas = _toy_deltas(model, 2, dense=False)
    rows = rows_of(deltas)
    c = _coefficients(rows, 2)
    expected = {n: p.detach().double() for n, p in model.named_parameters()}
    for name, one in deltas.items():
        for source in range(2):
            expected[name] += float(c[0, source]) * one.whole(source, torch.device("cpu"), torch.float64)
    with engine_class("merge_once")(model, deltas, rows.of, torch.float64) as live:
        live.merge(c)
        for entry in live.entries:
            assert torch.equal(entry.live.parameter, expected[entry.name].bfloat16())


def test_adapters_of_linear_layers_alone_are_asked_for(bert):
    deltas = read_deltas(bert.plan)
    with pytest.raises(MergeError, match=r"factors of linear layers alone, not '.*' \(.*\).* and \d+ more; `exclude`"):
        engine_class("fused_lora_linear")(bert.model, deltas, rows_of(deltas).of)
    assert not any(parametrize.is_parametrized(module) for module in bert.model.modules())


def test_an_engine_without_coefficients_says_so():
    model = _toy()
    deltas = _toy_deltas(model, 2, dense=False)
    for engine in ("merge_once", "streaming_parametrize", "functional_clone_legacy", "fused_linear"):
        live = engine_class(engine)(model, deltas, rows_of(deltas).of)
        with pytest.raises(MergeError, match="no coefficients yet; call `merge`"):
            model(torch.randn(1, 12))
        live.release()
        live.release()


def test_models_that_do_not_fit_are_refused():
    model, deltas = _toy(), _toy_deltas(_toy(), 2, dense=False)
    rows = rows_of(deltas).of
    with pytest.raises(MergeError, match="lacks 2 of the merged parameters, first '2.weight'"):
        engine_class("merge_once")(model[:1], deltas, rows)
    other = nn.Sequential(nn.Linear(12, 21), nn.Tanh(), nn.Linear(21, 12))
    with pytest.raises(MergeError, match=r"Shape mismatch at '0.weight': the merge \(20, 12\), model \(21, 12\)"):
        engine_class("merge_once")(other, deltas, rows)
    square = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    deltas = _toy_deltas(square, 2, dense=False)
    square[1].weight = square[0].weight
    with pytest.raises(MergeError, match="'0.weight' and '1.weight' are one tensor"):
        engine_class("merge_once")(square, deltas, rows_of(deltas).of)
    recurrent = nn.LSTM(4, 4)
    deltas = _toy_deltas(recurrent, 2, dense=False)
    with pytest.raises(MergeError, match="'weight_ih_l0' stands in a recurrent layer"):
        engine_class("merge_once")(recurrent, deltas, rows_of(deltas).of)
    with pytest.raises(ConfigError, match="Did you mean 'merge_once'"):
        engine_class("merge_one")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("residency", ["cpu_stream", "gpu_cache"])
@pytest.mark.parametrize(("engine", "name"), PAIRS)
def test_gradients_on_a_gpu_are_those_of_the_cpu(engine, name, residency, request):
    case = request.getfixturevalue(name)
    expected = _learned(case, engine, dtype=torch.float64)[1]
    plan, model = case.plan, copy.deepcopy(case.model).to("cuda", torch.float64)
    rows = rows_of(plan.merged)
    c = _coefficients(rows, len(plan.sources), torch.float64).detach().cuda().requires_grad_()
    with engine_class(engine)(model, read_deltas(plan, residency), rows.of) as live:
        live.merge(c)
        model(**{key: tensor.cuda() for key, tensor in case.inputs.items()}).loss.backward()
    assert relative(c.grad.cpu(), expected) <= 1e-6
