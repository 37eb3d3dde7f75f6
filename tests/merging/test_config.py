"""One configuration for merging, evaluating and sweeping."""

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml

import lit_wsl
from lit_wsl.errors import CheckpointError, ConfigError
from lit_wsl.merging.config import MergeConfig, config_of, load_merge_config, read_merge_config
from lit_wsl.merging.legacy import merge_config_from_legacy_args, merge_spec_to_params
from lit_wsl.merging.settings import LambdaPolicySpec, OptimizerSpec, TransformSpec
from lit_wsl.merging.spec import MergeSpec

CONFIGS = Path(__file__).parents[2] / "configs/merge"


def written(path, content):
    """A YAML file of a mapping, or of the text as it is."""
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def loaded(tmp_path, **fields):
    return load_merge_config(written(tmp_path / "merge.yaml", {"adapters": ["a", "b"], "method": "ties", **fields}))


def refused(tmp_path, words, **fields):
    """Loading ends with one line that has every word."""
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, **fields)
    assert "\n" not in str(error.value)
    for word in [words] if isinstance(words, str) else words:
        assert word in str(error.value)


def test_adapters_are_a_list_that_must_be_there(tmp_path):
    """A6.1"""
    assert loaded(tmp_path, adapters=["intent", "some/dir"]).adapters == ["intent", "some/dir"]
    for wrong in ("intent", 3, [1, 2], {"a": 1}, None):
        refused(tmp_path, "`adapters` must be a list of texts", adapters=wrong)
    with pytest.raises(ConfigError, match="Nothing to merge"):
        load_merge_config(written(tmp_path / "none.yaml", {"method": "ties"}))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"include": None}, "`include` must be a list of texts, got None"),
        ({"rank": "3"}, "`rank` must be a whole number, got '3'"),
        ({"energy": "0.9"}, "`energy` must be a number, got '0.9'"),
        ({"threads": 2.5}, "`threads` must be a whole number, got 2.5"),
        ({"verify": "no"}, "`verify` must be true or false, got 'no'"),
        ({"slices": "all"}, "`slices` must be a list of mappings, got 'all'"),
    ],
)
def test_a_merge_in_python_has_types_too(fields, words):
    with pytest.raises(ConfigError) as error:
        MergeSpec(adapters=["a"], **fields)
    assert words in str(error.value)


def test_the_method_is_named_and_known(tmp_path):
    """A6.2, A3.6"""
    refused(tmp_path, "Unknown merge method 'tise'. Did you mean 'ties'?", method="tise")
    refused(tmp_path, "`method` must be a non-empty text", method=3)
    with pytest.raises(ConfigError, match="no `method` is named"):
        load_merge_config(written(tmp_path / "none.yaml", {"adapters": ["a", "b"]}))


def test_merge_mode(tmp_path):
    """A6.3"""
    assert loaded(tmp_path).merge_mode == "common"
    assert loaded(tmp_path, merge_mode="strict").merge_mode == "strict"
    refused(tmp_path, ["`merge_mode` cannot be 'all'", "strict"], merge_mode="all")


def test_method_parameters_are_a_mapping_of_known_names(tmp_path):
    """A6.4, A3.6"""
    assert loaded(tmp_path).method_params == {}
    refused(tmp_path, "`method_params` must be a mapping", method_params=[1])
    refused(tmp_path, "'ties' has no parameter 'lamda'. Did you mean 'lambda'?", method_params={"lamda": 1})
    refused(tmp_path, "has no parameter 'kk'", rules=[{"match": "*", "params": {"kk": 1}}])
    refused(tmp_path, "has no parameter 'kk'", method_params={"kk": {"gradient": [0, 1]}})
    refused(tmp_path, "`k` of 'ties' must be of type float", method_params={"k": "many"})
    refused(tmp_path, "0 <= k <= 100", method_params={"k": 200})
    refused(tmp_path, "has no parameter 'scale'", search={"grid": {"scale": [1]}})
    refused(tmp_path, "has no parameter 'scale'", search={"type": "bayes", "space": {"scale": {"min": 0, "max": 1}}})
    for elsewhere in ("energy", "transforms[0].params.eps", "lambda_policy.value"):  # a sweep looks there itself
        assert loaded(tmp_path, search={"grid": {elsewhere: [1], "k": [1]}}).search
    layered = {"lambda": {"layers": {0: 0.5}, "default": 1.0}}
    assert loaded(tmp_path, method_params=layered).method_params == layered


def test_a_number_of_sources_that_does_not_fit_shows_at_once(tmp_path):
    refused(tmp_path, "merges exactly 2 sources, got 3", method="weighted", adapters=["a", "b", "c"])


def test_no_lambda_leaks_into_a_method(tmp_path):
    """A2.10: no default lambda of the command or the configuration reaches the method"""
    assert "lambda" not in loaded(tmp_path).to_merge_spec().method_params
    assert "lambda" not in merge_config_from_legacy_args(["a", "b"], "ties").method_params
    assert merge_spec_to_params(loaded(tmp_path)) == {}


def test_parts_are_records(tmp_path):
    """A6.5"""
    config = loaded(
        tmp_path,
        transforms=[{"name": "layer_l2_normalize", "params": {"target_norm": 2.0}}],
        lambda_policy={"type": "per_layer", "default": 0.5, "overrides": {0: 0.8}},
        optimizer={"type": "AdaMerging", "params": {"lr": 0.1}},
    )
    assert config.transforms == [TransformSpec("layer_l2_normalize", {"target_norm": 2.0})]
    assert config.lambda_policy == LambdaPolicySpec("per_layer", default=0.5, overrides={0: 0.8})
    assert config.optimizer == OptimizerSpec("adamerging", {"lr": 0.1})
    assert loaded(tmp_path).optimizer is None
    assert loaded(tmp_path, optimizer={}).optimizer == OptimizerSpec("none")
    assert loaded(tmp_path, optimizer="Bayes").optimizer == OptimizerSpec("bayes")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("transforms", {"name": "identity"}, "`transforms` must be a list"),
        ("transforms", ["identity"], "`transforms[0]` must be a mapping"),
        ("transforms", [{"name": "identitty"}], "Did you mean 'identity'?"),
        ("transforms", [{"params": {}}], "`transforms[0]` is incomplete"),
        ("transforms", [{"name": "layer_l2_normalize", "params": {"norm": 1}}], "has no parameter 'norm'"),
        ("lambda_policy", "scalar", "`lambda_policy` must be a mapping"),
        ("lambda_policy", {"type": "per_tensor"}, "Unsupported lambda_policy.type"),
        ("optimizer", ["bayes"], "`optimizer` must be a mapping"),
        ("optimizer", {"typ": "bayes"}, "Did you mean 'type'?"),
        ("optimizer", {"type": "bays"}, "Did you mean 'bayes'?"),
        ("optimizer", {"type": "bayes", "params": [1]}, "`params` of optimizer must be a mapping"),
    ],
    ids=str,
)
def test_parts_of_another_shape_are_refused(tmp_path, field, value, words):
    """A6.5"""
    refused(tmp_path, words, **{field: value})


def test_search(tmp_path):
    """A6.6"""
    assert loaded(tmp_path).search is None
    assert loaded(tmp_path, search={"grid": {"k": [10, 20]}}).search == {"grid": {"k": [10, 20]}}
    for kind in ("grid", "bayes", "tpe", "cmaes", "random", "nsga2"):
        assert loaded(tmp_path, search={"type": kind}).search == {"type": kind}
    refused(tmp_path, "Unknown `search.type` 'bays'. Did you mean 'bayes'?", search={"type": "bays"})
    refused(tmp_path, "`search.grid` must be a mapping", search={"grid": [1]})
    refused(tmp_path, "`search` must be a mapping", search=[1])


SIMPLE = {
    "constraint_nonnegative": (True, False, ["yes", 1]),
    "eval_tasks": (None, ["intent"], ["intent", [1]]),
    "split": ("test", "train", ["val", 1]),
    "save_merged": (False, True, ["yes"]),
    "eval_subset": (None, {"max_samples": 5}, [[5], 5]),
    "output_dir": (None, "runs/here", [3, ""]),
    "compute_missing_interference_baselines": (True, False, ["no", None]),
    "post_sweep_eval": (None, {"split": "test"}, ["test"]),
    "learned_from": (None, {"optimizer": {"type": "gradient"}, "run": "there"}, ["there"]),
}


@pytest.mark.parametrize("name", SIMPLE)
def test_defaults_values_and_wrong_types(tmp_path, name):
    """A6.7, A6.8, A6.9, A6.10, A6.11, A6.12, A6.13"""
    default, other, wrong = SIMPLE[name]
    assert getattr(loaded(tmp_path), name) == default
    assert getattr(loaded(tmp_path, **{name: other}), name) == other
    for value in wrong:
        refused(tmp_path, f"`{name}`", **{name: value})


def test_what_found_the_coefficients_is_an_optimizer(tmp_path):
    refused(tmp_path, "`learned_from.optimizer` must be a mapping", learned_from={"optimizer": 3})
    refused(tmp_path, "Did you mean 'gradient'?", learned_from={"optimizer": {"type": "gradeint"}})


def test_a_search_chooses_on_validation_rows_unless_told_otherwise(tmp_path):
    """A6.9"""
    search = {"grid": {"k": [10, 20]}}
    assert loaded(tmp_path, search=search).split == "validation"
    assert loaded(tmp_path, search=search, split="test").split == "test"


@pytest.mark.parametrize(("field", "value"), [("rank", "two"), ("threads", 0.5), ("energy", "all"), ("verify", "yes")])
def test_fields_of_a_merge_are_of_their_type(tmp_path, field, value):
    refused(tmp_path, f"`{field}` must be", **{field: value})


def test_an_unknown_key_is_refused_with_the_nearest_and_all(tmp_path):
    """A6.14"""
    refused(tmp_path, ["Unknown key 'eval_task'", "Did you mean 'eval_tasks'?", "Allowed: adapters,"], eval_task=["a"])


@pytest.mark.parametrize(
    "text", ["", "- a\n- b", "just text", "3", "{}", "k: [", "\tx: 1", "a: 1\n---\nb: 2"], ids=repr
)
def test_a_file_that_holds_no_mapping_is_refused(tmp_path, text):
    """A6.15"""
    with pytest.raises(ConfigError) as error:
        load_merge_config(written(tmp_path / "odd.yaml", text))
    assert "odd.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named_with_the_nearest(tmp_path):
    written(tmp_path / "merge_ties.yaml", "a: 1")
    with pytest.raises(ConfigError, match=r"no configuration .*merge_tise.yaml. Did you mean 'merge_ties.yaml'\?"):
        load_merge_config(tmp_path / "merge_tise.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_merge_config(tmp_path)


@pytest.mark.parametrize("cls", [MergeConfig, MergeSpec, TransformSpec, LambdaPolicySpec, OptimizerSpec])
def test_records_are_frozen(cls):
    """A6.16"""
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen


def test_a_configuration_has_every_field_of_a_merge_and_drops_its_own(tmp_path):
    """A6.16"""
    config = loaded(tmp_path, search={"grid": {"k": [1]}}, eval_tasks=["x"], method_params={"k": 30}, threads=2)
    spec = config.to_merge_spec()
    assert type(spec) is MergeSpec
    for one in dataclasses.fields(MergeSpec):
        assert getattr(spec, one.name) == getattr(config, one.name)


def test_a_configuration_goes_round(tmp_path):
    config = loaded(
        tmp_path,
        lambda_policy={"type": "scalar", "value": 0.5},
        transforms=[{"name": "identity"}],
        optimizer={"type": "bayes"},
        search={"grid": {"k": [1]}},
        tasks={"a": {"adapter": "there"}},
    )
    again = load_merge_config(written(tmp_path / "again.yaml", yaml.safe_dump(config.to_dict())))
    assert again == config
    assert config_of(json.loads(json.dumps(config.to_dict()))) == config


def test_a_spec_as_flat_parameters(tmp_path):
    """A6.17"""
    scalar = loaded(tmp_path, method_params={"k": 10}, lambda_policy={"value": 0.5}, optimizer="none")
    assert merge_spec_to_params(scalar) == {
        "k": 10,
        "lambda": 0.5,
        "lambda_policy": {"type": "scalar", "value": 0.5},
        "optimizer": {"type": "none", "params": {}},
    }
    policy = {"type": "per_layer", "default": 0.5, "overrides": {0: 0.8}}
    layered = loaded(tmp_path, method_params={"lambda": 0.9}, lambda_policy=policy, transforms=[{"name": "identity"}])
    assert merge_spec_to_params(layered.to_merge_spec()) == {
        "lambda": 0.9,
        "lambda_policy": policy,
        "transforms": [{"name": "identity", "params": {}, "space": "delta"}],
    }


def test_former_arguments_make_a_configuration():
    """A6.18"""
    config = merge_config_from_legacy_args(["a", Path("b")], "weighted", lambda_weight=0.3, split="train")
    assert (config.adapters, config.method_params, config.split) == (["a", "b"], {"lambda": 0.3}, "train")
    given = merge_config_from_legacy_args(["a", "b"], "weighted", lambda_weight=0.3, params={"lambda": 0.7})
    assert given.method_params == {"lambda": 0.7}
    embedded = {
        "k": 10,
        "lambda_policy": {"type": "scalar", "value": 0.5},
        "transforms": [{"name": "identity"}],
        "optimizer": {"type": "BAYES"},
    }
    config = merge_config_from_legacy_args(["a", "b"], "ties", params=embedded)
    assert config.method_params == {"k": 10}
    assert config.lambda_policy == LambdaPolicySpec("scalar", 0.5)
    assert config.transforms == [TransformSpec("identity")]
    assert config.optimizer == OptimizerSpec("bayes")
    assert merge_config_from_legacy_args(["a", "b"], "ties", params=merge_spec_to_params(config)).transforms
    with pytest.raises(ConfigError, match="Did you mean 'merge_mode'"):
        merge_config_from_legacy_args(["a", "b"], merge_modes="strict")


def test_task_names_become_the_paths_of_their_adapters(tmp_path, monkeypatch):
    """A6.1"""
    monkeypatch.chdir(tmp_path)
    tasks = {"intent": {"adapter": "far/intent"}, "tweets": {"adapter": "far/tweets"}, "bare": {"metric": "wer"}}
    config = loaded(tmp_path, adapters=["intent", "org/hub-id", "far/tweets"], tasks=tasks)
    assert config.to_merge_spec().adapters == ["far/intent", "org/hub-id", "far/tweets"]
    assert config.source_tasks == ["intent", "hub-id", "tweets"]
    assert config.evaluated_tasks == ["intent", "hub-id", "tweets"]
    assert loaded(tmp_path, tasks=tasks, eval_tasks=["bare"]).evaluated_tasks == ["bare"]
    (tmp_path / "intent").mkdir()
    assert config.to_merge_spec().adapters[0] == "intent", "a directory comes first"
    with pytest.raises(ConfigError, match=r"'tweet' is neither a directory nor a task. Did you mean 'tweets'\?"):
        loaded(tmp_path, adapters=["tweet", "intent"], tasks=tasks).to_merge_spec()
    with pytest.raises(ConfigError, match="Task 'bare' has no `adapter`"):
        loaded(tmp_path, adapters=["bare", "intent"], tasks=tasks).to_merge_spec()


def test_tasks_of_a_file_are_written_out(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "folder/tasks.yaml", {"tasks": {"a": {"adapter": "there"}}})
    config = {"adapters": ["a"], "method": "uniform", "tasks": "tasks.yaml"}
    beside = load_merge_config(written(tmp_path / "folder/merge.yaml", config))
    assert beside.tasks == {"a": {"adapter": "there"}}
    here = load_merge_config(written(tmp_path / "merge.yaml", {**config, "tasks": "folder/tasks.yaml"}))
    assert here.tasks == beside.tasks
    assert MergeConfig(adapters=["a"], tasks="folder/tasks.yaml").to_merge_spec().adapters == ["there"]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ("gone.yaml", "gone.yaml cannot be read"),
        (3, "`tasks` must be a mapping or a path"),
        ([1], "`tasks` must be a mapping or a path"),
        ({"a": 3}, "Task 'a' of `tasks` must be a mapping"),
        ({"tasks": [1]}, "must map names of tasks"),
    ],
    ids=str,
)
def test_tasks_that_cannot_be_read_are_refused(tmp_path, tasks, words):
    refused(tmp_path, words, tasks=tasks)


CANONICAL = {
    "merge_weighted_scalar": {"method": "weighted", "method_params": {"lambda": 0.6}},
    "merge_weighted_per_layer": {
        "method": "weighted",
        "lambda_policy": LambdaPolicySpec("per_layer", default=0.5, overrides={0: 0.8, 1: 0.7, 2: 0.6}),
    },
    "merge_dare": {"method": "dare", "method_params": {"drop_rate": 0.9, "seed": 42}},
    "merge_ties": {"method": "ties", "method_params": {"k": 20, "lambda": 1.0}},
    "merge_weighted_delta_sweep_bayes": {"method": "weighted_delta", "method_params": {}},
}


@pytest.mark.parametrize("name", CANONICAL)
def test_the_shipped_configurations_say_what_they_are_known_for(name):
    """A6.32"""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = load_merge_config(CONFIGS / f"{name}.yaml")
    for field, value in CANONICAL[name].items():
        assert getattr(config, field) == value
    assert all(adapter.startswith("artifacts/demo/adapters/") for adapter in config.to_merge_spec().adapters)


def test_the_shipped_sweep():
    """A6.32"""
    config = load_merge_config(CONFIGS / "merge_weighted_delta_sweep_bayes.yaml")
    search = config.search
    assert (search["type"], search["budget"], search["init_points"]) == ("bayes", 10, 3)
    assert search["initial_points"] == [{"lambda": 0.0}, {"lambda": 0.5}, {"lambda": 1.0}]
    assert config.eval_subset["stratified"] is True
    assert config.split == "validation"


def test_a_configuration_of_mergekit_loads_too(tmp_path):
    from tests.merging.build import random_states

    base, *tuned = random_states(tmp_path, 2)
    content = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [{"model": one, "parameters": {"weight": 0.5}} for one in tuned],
    }
    config = load_merge_config(written(tmp_path / "kit.yaml", content))
    assert (config.method, config.models, config.base) == ("weighted_delta_n", tuned, base)


def test_reading_takes_no_torch(tmp_path):
    path = written(tmp_path / "m.yaml", {"adapters": ["a"], "method": "ties", "search": {"type": "grid"}})
    code = f"""
import sys
from lit_wsl.merging.config import read_merge_config
read_merge_config({str(path)!r})
from lit_wsl.cli.main import run
run(["merge", "--help"])
run(["migrate-config", {str(path)!r}, "--output", {str(tmp_path / "n.yaml")!r}])
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
    assert read_merge_config(tmp_path / "n.yaml") == read_merge_config(path)


def test_a_configuration_merges_as_its_spec(tmp_path):
    from tests.merging.build import random_states

    base, first, second = random_states(tmp_path, 2)
    tasks = {"one": {"adapter": first}, "two": {"adapter": second}}
    config = MergeConfig(models=[first, second], base=base, method="ties", tasks=tasks, eval_tasks=["one"])
    merged, expected = (lit_wsl.merging.merge_state_dict(spec) for spec in (config, config.to_merge_spec()))
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    report = lit_wsl.merge(config, output=str(tmp_path / "out"))
    assert report.method == "ties"
    with pytest.raises(CheckpointError, match="far/one"):
        lit_wsl.merge(MergeConfig(adapters=["a-task"], tasks={"a-task": {"adapter": "far/one"}}), output="x")


def test_the_loader_is_public():
    assert lit_wsl.load_merge_config is load_merge_config
    assert lit_wsl.MergeConfig is MergeConfig
