"""Transforms of task vectors: against plain Python, in both spaces, in front of every kind of method."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_wsl.cli.main import run
from lit_wsl.errors import ConfigError, LitWslError, MergeError
from lit_wsl.merging import merge, merge_state_dict, spreading
from lit_wsl.merging.plan import make_plan
from lit_wsl.merging.settings import TransformSpec
from lit_wsl.merging.spec import MergeSpec
from lit_wsl.merging.transform import TRANSFORMS, Transform, all_transforms, build_transform, register_transform
from lit_wsl.state.adapter_files import write_adapter
from lit_wsl.tensors.lora import LoraFactors
from tests.merging.build import save_adapter, save_bert, save_state
from tests.merging.laws import close, one_line
from tests.merging.test_coverage import updates_in
from tests.oracles import transforms as oracles

LAYERS = {
    "embed.weight": None,
    "text.layers.0.mlp.weight": "text 0",
    "text.layers.0.mlp.bias": "text 0",
    "text.layers.1.mlp.weight": "text 1",
    "vision.layers.1.mlp.weight": "vision 1",
    "norm.weight": None,
}
SHAPES = dict(zip(LAYERS, [(9, 4), (6, 5), (6,), (6, 5), (5, 4), (4,)], strict=True))
MATRICES = {name: shape for name, shape in SHAPES.items() if len(shape) == 2}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The fields of a merge of two models of two towers."""
    home = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(7)
    base = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    states = [{name: t + 0.3 * torch.randn(t.shape) for name, t in base.items()} for _ in range(2)]
    models = [str(save_state(home / f"t{i}.safetensors", state)) for i, state in enumerate(states)]
    return {"models": models, "base": str(save_state(home / "base.safetensors", base))}


@pytest.fixture(scope="module")
def adapted(tuned, tmp_path_factory):
    """The fields of a merge of two adapters of ranks 2 and 3."""
    home = tmp_path_factory.mktemp("adapted")
    torch.manual_seed(8)
    for number in range(2):
        (home / f"a{number}").mkdir()
        factors = {
            name.removesuffix(".weight"): (LoraFactors(torch.randn(r, s[1]), torch.randn(s[0], r), 0.4, s), False)
            for (name, s), r in zip(MATRICES.items(), [2 + number] * len(MATRICES), strict=True)
        }
        write_adapter(home / f"a{number}", factors, task_type=None)
    return {"adapters": [str(home / "a0"), str(home / "a1")], "base": tuned["base"]}


def flat_updates(fields):
    """Base, and the flat update of each source, float64."""
    base = {name: tensor.double() for name, tensor in load_file(fields["base"]).items()}
    if "models" in fields:
        states = [{n: t.double() - base[n] for n, t in load_file(path).items()} for path in fields["models"]]
    else:
        states = [{n: update for n, (_, update) in updates_in(path).items()} for path in fields["adapters"]]
    return base, [{name: state[name].flatten().tolist() for name in base if name in state} for state in states]


def applied(stages, sources):
    """What plain Python makes of the sources."""
    for stage in stages:
        params = {{"lambda": "lam"}.get(key, key): value for key, value in stage.get("params", {}).items()}
        if stage["name"] == "layer_l2_normalize":
            params["layers"] = LAYERS
        name = {"ties": "trim", "ties_scaffold": "consensus"}.get(stage["name"], stage["name"])
        sources = getattr(oracles, name)(sources, **params)
    return sources


def stage(name, **params):
    return {"name": name, "params": params}


PIPELINES = {
    "identity": [stage("identity")],
    "trim": [stage("trim")],
    "trim_tensor": [stage("trim", k=40, scope="tensor", **{"lambda": 1.7})],
    "trim_nothing": [stage("trim", k=100)],
    "trim_everything": [stage("trim", k=0)],
    "ties": [stage("ties", k=30)],
    "normalize": [stage("layer_l2_normalize")],
    "normalize_layers_alone": [stage("layer_l2_normalize", target_norm=0.5, include_non_layer_keys=False)],
    "normalize_to_zero": [stage("layer_l2_normalize", target_norm=0)],
    "normalize_what_is_long": [stage("layer_l2_normalize", eps=1.6)],
    "consensus": [stage("consensus", k=60)],
    "consensus_tensor": [stage("consensus", k=50, scope="tensor", **{"lambda": 0.5})],
    "scaffold": [stage("ties_scaffold", k=100)],
    "trim_normalize": [stage("trim", k=30), stage("layer_l2_normalize")],
    "normalize_trim": [stage("layer_l2_normalize"), stage("trim", k=30)],
    "normalize_trim_consensus_normalize": [
        stage("layer_l2_normalize", target_norm=2.0),
        stage("trim", k=70, scope="tensor"),
        stage("identity"),
        stage("consensus", k=50),
        stage("layer_l2_normalize", include_non_layer_keys=False),
    ],
    "normalize_twice": [stage("layer_l2_normalize", target_norm=3.0), stage("layer_l2_normalize", target_norm=0.5)],
}


@pytest.fixture
def transformed(tuned, tmp_path):
    """Makes models of float64 whose updates plain Python has transformed."""

    def make(stages):
        base, sources = flat_updates(tuned)
        paths = []
        for number, source in enumerate(applied(stages, sources)):
            entries = {n: torch.tensor(x, dtype=torch.float64).view(SHAPES[n]) for n, x in source.items()}
            state = {name: base[name] + update for name, update in entries.items()}
            paths.append(str(save_state(tmp_path / "transformed" / f"t{number}.safetensors", state)))
        return {"models": paths, "base": tuned["base"]}

    return make


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("output_format", ["delta", "model"])
def test_sums_of_transformed_updates_match_plain_python(tuned, tmp_path, pipeline, output_format):
    """A5.1, A5.3-A5.6, G1: each transform is scanned on what those before it leave."""
    stages = PIPELINES[pipeline]
    fields = {"method": "uniform_scalar_delta", "transforms": stages, "output_format": output_format}
    merge(**tuned, **fields, output=str(tmp_path / "out"))
    base, sources = flat_updates(tuned)
    changed = applied(stages, sources)
    found = load_file(tmp_path / "out" / f"{output_format}.safetensors")
    for name, tensor in found.items():
        expected = sum(torch.tensor(s[name], dtype=torch.float64).view(SHAPES[name]) for s in changed)
        if output_format == "model":
            torch.testing.assert_close(tensor.double(), base[name] + expected, rtol=0.0, atol=3e-6)
        else:
            torch.testing.assert_close(tensor.double(), expected, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(
    "method", ["slerp", "karcher", "ties", "iso_c", "weighted_delta", "linear", "model_stock", "dare"]
)
@pytest.mark.parametrize("pipeline", ["trim_tensor", "normalize", "consensus", "normalize_trim_consensus_normalize"])
def test_every_kind_of_method_sees_the_transformed_updates(tuned, transformed, pipeline, method):
    """A5.2, G1: methods of weights see the base plus those."""
    merged = merge_state_dict(**tuned, method=method, transforms=PIPELINES[pipeline])
    expected = merge_state_dict(**transformed(PIPELINES[pipeline]), method=method)
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=3e-6, msg=name)


def test_consensus_and_a_mean_divide_by_all_sources(tuned):
    """G1, A5.6: twice the update of TIES where one of two sources has an entry left, the same where both do."""
    k = {"k": 60.0}
    fields = {"transforms": [stage("consensus", **k)], "method": "uniform_delta"}
    base, sources = flat_updates(tuned)
    changed = applied(fields["transforms"], sources)
    merged, ties = merge_state_dict(**tuned, **fields), merge_state_dict(**tuned, method="ties", method_params=k)
    for name, tensor in merged.items():
        both = torch.tensor([sum(x != 0 for x in pair) for pair in zip(*(s[name] for s in changed), strict=True)])
        share = (both.clamp(min=1) / 2).view(SHAPES[name])
        torch.testing.assert_close(
            tensor - base[name].float(), (ties[name] - base[name].float()) * share, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("space", ["delta", "factors"])
@pytest.mark.parametrize("method", ["uniform_delta", "ties", "slerp", "iso_c", "knots", "dare"])
def test_identity_changes_no_byte(tuned, adapted, tmp_path, method, space):
    """A5.3."""
    for number, fields in enumerate([adapted, tuned][: 1 + (space == "delta")]):
        for transforms in ([], [{"name": "identity", "space": space}]):
            out = tmp_path / f"{number}{len(transforms)}"
            merge(**fields, method=method, transforms=transforms, output=str(out), output_format="model")
        one, other = ((tmp_path / f"{number}{n}" / "model.safetensors").read_bytes() for n in (0, 1))
        assert one == other


def test_normalised_layers_of_adapters_have_the_norm_and_keep_their_rank(adapted, tmp_path):
    """A5.4: in the space of updates, so that the update has the norm, not the factors."""
    for number, path in enumerate(adapted["adapters"]):
        out = tmp_path / str(number)
        merge(
            adapters=[path],
            base=adapted["base"],
            transforms=[stage("layer_l2_normalize", target_norm=1.5)],
            output=str(out),
        )
        squares, before = {}, updates_in(path)
        for name, (rank, update) in updates_in(out).items():
            assert rank == 2 + number
            assert close(update / update.norm(), before[name][1] / before[name][1].norm(), 1e-6)
            squares[LAYERS[name]] = squares.get(LAYERS[name], 0.0) + float(update.square().sum())
        assert {layer: total**0.5 for layer, total in squares.items()} == pytest.approx(
            dict.fromkeys(squares, 1.5), rel=1e-6
        )


@pytest.mark.parametrize(
    "stages", [["identity"], ["layer_l2_normalize"], ["layer_l2_normalize", "identity", "layer_l2_normalize"]]
)
def test_what_only_multiplies_keeps_low_rank_exactly(adapted, tmp_path, stages):
    """A5.4."""
    pipeline = [stage(name) for name in stages]
    report = merge(**adapted, method="uniform_scalar_delta", transforms=pipeline, output=str(tmp_path / "out"))
    assert report.retained_energy == pytest.approx(dict.fromkeys(MATRICES, 1.0), abs=1e-9)
    changed = applied(pipeline, flat_updates(adapted)[1])
    for name, (rank, update) in updates_in(tmp_path / "out").items():
        assert rank == min(2 + 3, *SHAPES[name])
        expected = sum(torch.tensor(source[name], dtype=torch.float64).view(SHAPES[name]) for source in changed)
        assert close(update, expected, 1e-6), name


def test_union_and_normalisation_keep_low_rank(adapted, tmp_path):
    """A source without an update of a layer has nothing to normalise there."""
    fields = {"adapters": adapted["adapters"], "base": adapted["base"], "method": "uniform_scalar_delta"}
    part = tmp_path / "part"
    merge(adapters=adapted["adapters"][:1], base=adapted["base"], exclude=["vision"], output=str(part))
    fields["adapters"] = [str(part), adapted["adapters"][1]]
    for space, name in (("delta", "layer_l2_normalize"), ("factors", "identity"), ("factors", "trim")):
        out = tmp_path / f"{space}{name}"
        merge(**fields, merge_mode="union", transforms=[{"name": name, "space": space}], output=str(out))
        assert updates_in(out)["vision.layers.1.mlp.weight"][0] == 3


@pytest.mark.parametrize("scope", ["global", "tensor"])
@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_trimmed_factors_match_plain_python(adapted, tmp_path, scope, lam):
    """A5.2, A5.5: A and B of a parameter count together, and each is multiplied."""
    transforms = [{"name": "trim", "params": {"k": 30.0, "scope": scope, "lambda": lam}, "space": "factors"}]
    for path in adapted["adapters"]:
        out = tmp_path / Path(path).name
        merge(adapters=[path], base=adapted["base"], transforms=transforms, output=str(out))
        state, entries = load_file(f"{path}/adapter_model.safetensors"), {}
        for key in sorted(state):  # A before B
            entries.setdefault(key.split(".lora_")[0], []).extend(state[key].double().flatten().tolist())
        [cut] = oracles.trim([entries], 30.0, lam, scope)
        for name, (_, update) in updates_in(out).items():
            module = f"base_model.model.{name.removesuffix('.weight')}"
            A, B = (state[f"{module}.lora_{letter}.weight"] for letter in "AB")
            flat = torch.tensor(cut[module], dtype=torch.float64)
            assert close(update, flat[A.numel() :].view(B.shape) @ flat[: A.numel()].view(A.shape), 1e-6), name


def test_factors_then_updates(adapted):
    """A5.2: in that order, each in its own space."""
    both = [{"name": "trim", "params": {"k": 50}, "space": "factors"}, stage("layer_l2_normalize")]
    merged = merge_state_dict(**adapted, method="ties", transforms=both)
    plain = merge_state_dict(**adapted, method="ties", transforms=both[1:])
    assert any(not torch.equal(merged[name], plain[name]) for name in merged)


@pytest.mark.parametrize("method", ["uniform_delta", "ties", "slerp"])
def test_neither_workers_nor_blocks_change_a_bit(tuned, adapted, tmp_path, monkeypatch, method):
    """A5.1: every stage, in parent and workers."""
    monkeypatch.setattr(spreading, "SMALL", 0)
    pipeline = [
        stage("layer_l2_normalize"),
        stage("trim", k=60),
        stage("trim", k=80, scope="tensor"),
        stage("consensus", k=70),
    ]
    written = {"models": set(), "adapters": set()}
    for number, (threads, entries) in enumerate([(1, 1 << 17), (2, 1 << 17), (3, 1 << 17), (1, 10), (2, 7)]):
        monkeypatch.setattr("lit_wsl.merging.stacks.BLOCK_ENTRIES", entries)
        for kind, fields in (("models", tuned), ("adapters", adapted)):
            out = tmp_path / f"{kind}{number}"
            options = {"threads": threads, "output_format": "delta", "output": str(out)}
            merge(**fields, method=method, transforms=pipeline, **options)
            if kind == "models" or entries > 10:  # products of factors are rounded by block
                written[kind].add((out / "delta.safetensors").read_bytes())
    assert {kind: len(files) for kind, files in written.items()} == {"models": 1, "adapters": 1}


def test_transforms_in_yaml_and_on_the_command_line(tuned, tmp_path):
    """A5.1."""
    pipeline = [stage("trim", k=30), {"name": "layer-l2-normalize"}]
    config = {**tuned, "method": "uniform_delta", "transforms": pipeline, "output": str(tmp_path / "yaml")}
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(config))
    assert run(["merge", "--config", str(tmp_path / "merge.yaml")]) == 0
    specs = [TransformSpec("trim", {"k": 30}), TransformSpec("layer_l2_normalize")]
    merge(**tuned, method="uniform_delta", transforms=specs, output=str(tmp_path / "python"))
    one, other = ((tmp_path / d / "model.safetensors").read_bytes() for d in ("yaml", "python"))
    assert one == other


@pytest.mark.parametrize(
    ("transforms", "words"),
    [
        ("trim", "`transforms` must be a list of mappings, got 'trim'"),
        ({"name": "trim"}, "`transforms` must be a list"),
        (["trim"], "`transforms[0]` must be a mapping, got 'trim'"),
        ([{}], "`transforms[0]` is incomplete"),
        ([{"name": ""}], "Unknown transform ''"),
        ([{"name": 5}], "`name` of a transform must be a text, got 5"),
        ([{"name": "trim", "params": [20]}], "`params` of a transform must be a mapping, got [20]"),
        ([{"name": "trim", "param": {}}], "`transforms[0]` has no key 'param'. Did you mean 'params'?"),
        ([{"name": "trimm"}], "Unknown transform 'trimm'. Did you mean 'trim'?"),
        ([stage("trim", density=0.2)], "Transform 'trim' has no parameter 'density'. Known: k, lambda, scope."),
        ([stage("trim", k=101)], "`0 <= k <= 100` must hold for 'trim', got 101.0"),
        ([stage("trim", k=-1)], "`0 <= k <= 100` must hold"),
        ([stage("trim", k="20")], "`k` of 'trim' must be of type float, got '20'"),
        ([stage("trim", k=True)], "`k` of 'trim' must be of type float, got True"),
        ([stage("trim", scope="layer")], "`scope` of 'trim' must be one of global, tensor, got 'layer'"),
        ([stage("consensus", k=200)], "`0 <= k <= 100` must hold for 'consensus'"),
        ([stage("layer_l2_normalize", target_norm=-1)], "`target_norm >= 0` must hold"),
        ([stage("layer_l2_normalize", eps=0)], "`eps > 0` must hold"),
        ([stage("layer_l2_normalize", include_non_layer_keys=1)], "must be of type bool, got 1"),
        ([stage("layer_l2_normalize", target_norm=float("inf"))], "must be finite"),
        ([stage("identity", k=1)], "Transform 'identity' has no parameter 'k'"),
        ([{"name": "consensus", "space": "factors"}], "'consensus' is defined in `delta`, not in `space: factors`"),
        ([{"name": "layer_l2_normalize", "space": "factors"}], "is defined in `delta`, not in `space: factors`"),
        ([{"name": "trim", "space": "weights"}], "'trim' is defined in `delta` and `factors`, not in `space: weights`"),
        (
            [stage("trim"), {"name": "trim", "space": "factors"}],
            "Transform 'trim' of the factors must stand before those of the updates",
        ),
    ],
)
def test_wrong_transforms_are_refused_before_any_work(tuned, tmp_path, transforms, words):
    """A5.1, A5.2, A5.4, A5.5."""
    with pytest.raises(ConfigError) as caught:
        merge(**tuned, transforms=transforms, output=str(tmp_path / "out"))
    assert words in one_line(caught)
    assert not list(tmp_path.iterdir())


def test_factors_that_a_source_has_not_are_named(tuned, adapted, tmp_path):
    """A5.2: never silently skipped."""
    save_bert(tmp_path / "base")
    for number, dora in enumerate((False, True)):
        save_adapter(tmp_path / "base", tmp_path / f"a{number}", number, use_dora=dora)
    dora = {"adapters": [str(tmp_path / "a0"), str(tmp_path / "a1")], "base": str(tmp_path / "base")}
    factors = [{"name": "trim", "space": "factors"}]
    for fields, name in (
        (dora, "attention.self"),
        (tuned, "weight"),
        ({**adapted, "models": tuned["models"]}, "weight"),
    ):
        with pytest.raises(MergeError) as caught:
            merge(
                **fields,
                transforms=factors,
                method="uniform_delta",
                output_format="model",
                output=str(tmp_path / "out"),
            )
        text = one_line(caught)
        assert re.search(rf"space of factors cannot change '\S*{name}\S*', which some source updates densely", text)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pipeline", ["trim", "normalize", "consensus"])
def test_damaged_sources_are_named_whatever_the_transform(tuned, tmp_path, pipeline):
    state = load_file(tuned["models"][1])
    state["text.layers.1.mlp.weight"][2, 3] = float("nan")
    damaged = str(save_state(tmp_path / "damaged.safetensors", state))
    for method in ("uniform_delta", "ties", "slerp"):
        with pytest.raises(LitWslError, match="damaged.safetensors has NaN or infinite entries in 'text.layers.1.mlp"):
            merge_state_dict(
                models=[tuned["models"][0], damaged], base=tuned["base"], method=method, transforms=PIPELINES[pipeline]
            )


def test_a_taken_name_is_refused():
    """A5.7: also an alias."""
    all_transforms()
    before = dict(TRANSFORMS)

    @dataclass(frozen=True)
    class Other(Transform):
        """Nothing."""

        def apply(self, stack, context):
            """Nothing."""
            return stack

    for names in (("trim",), ("fresh", "ties_scaffold")):
        with pytest.raises(ConfigError, match="is taken by lit_wsl.merging.transforms"):
            register_transform(*names)(Other)
        for name in set(TRANSFORMS) - set(before):
            del TRANSFORMS[name]
    assert before == TRANSFORMS


def test_a_transform_is_applied_where_a_plan_says(tuned):
    plan = make_plan(MergeSpec(**tuned, transforms=[stage("ties"), stage("ties_scaffold")], output="out"))
    assert [one.transform.name for one in plan.stages] == ["trim", "consensus"]
    assert build_transform("Layer-L2-Normalize").name == "layer_l2_normalize"
