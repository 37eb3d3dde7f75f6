"""The command line with merge configurations: shipped ones, former ones, and `migrate-config`."""

import json
import logging
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from lit_wsl.cli.main import run
from lit_wsl.merging.config import load_merge_config
from tests.cli.test_main import one_line
from tests.merging.build import random_states, save_adapter

CONFIGS = Path(__file__).parents[2] / "configs/merge"
DIRECT = ["merge_weighted_scalar", "merge_weighted_per_layer", "merge_dare", "merge_ties"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder with small adapters where the demo leaves its own, and their base."""
    folder = tmp_path_factory.mktemp("demo")
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
    )
    BertModel(config).eval().save_pretrained(folder / "base")
    for seed, task in enumerate(("intent", "tweets", "sentiment")):
        save_adapter(folder / "base", folder / "artifacts/demo/adapters" / task, seed)
    return folder


def metadata_of(output):
    return json.loads((Path(output) / "merge_metadata.json").read_text())


@pytest.mark.parametrize("name", DIRECT)
def test_the_shipped_configurations_run_where_the_demo_has_run(demo, monkeypatch, name):
    """A6.32"""
    monkeypatch.chdir(demo)
    config = load_merge_config(CONFIGS / f"{name}.yaml")
    assert run(["merge", "--config", str(CONFIGS / f"{name}.yaml"), "--base", "base"]) == 0
    metadata = metadata_of(config.output)
    assert metadata["merge_method"] == config.method
    assert metadata["spec"]["adapters"] == config.to_merge_spec().adapters
    assert metadata["method_params"].items() >= config.method_params.items()
    assert metadata["num_parameters"] == 8


def test_a_shipped_configuration_by_its_name(demo, monkeypatch):
    monkeypatch.chdir(demo)
    for number, name in enumerate(("merge_ties", "merge_ties.yaml")):
        assert run(["merge", "--config", name, "--base", "base", "--output", f"named{number}"]) == 0
    one, other = (load_file(f"named{number}/model.safetensors") for number in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert metadata_of("named0")["method_params"]["lambda"] == 1.0


def test_a_name_that_does_not_ship_is_told_with_the_nearest(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one_line(capsys, 2, ["merge", "--config", "merge_tise"], "Did you mean 'merge_ties'?")
    one_line(capsys, 2, ["merge", "--config", "merge_tise.yaml"], "merge_tise.yaml")


def test_the_sweep_loads_and_is_a_merge(demo, monkeypatch):
    """A6.32"""
    monkeypatch.chdir(demo)
    spec = load_merge_config(CONFIGS / "merge_weighted_delta_sweep_bayes.yaml").to_merge_spec()
    assert [Path(adapter).name for adapter in spec.adapters] == ["intent", "sentiment"]
    assert run(["merge", "-c", "merge_weighted_delta_sweep_bayes", "--base", "base", "--output", "sweep"]) == 0


def written(path, **content):
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture
def states(tmp_path):
    base, *tuned = random_states(tmp_path, 2)
    return {"base": base, "models": tuned}


def test_a_configuration_beats_the_options_before_it_and_not_those_behind(states, tmp_path):
    """A12.1"""
    config = written(tmp_path / "m.yaml", method="weighted_delta", method_params={"lambda": 0.25}, **states)
    argv = ["--method", "ties", "--method_params.lambda", "0.9"]
    assert run(["merge", *argv, "--config", config, "--output", str(tmp_path / "before")]) == 0
    spec = metadata_of(tmp_path / "before")["spec"]
    assert (spec["method"], spec["method_params"]) == ("weighted_delta", {"lambda": 0.25})
    behind = ["--config", config, "--method_params.lambda", "0.9", "--output", str(tmp_path / "behind")]
    assert run(["merge", *behind]) == 0
    assert metadata_of(tmp_path / "behind")["spec"]["method_params"] == {"lambda": 0.9}


def test_no_lambda_leaks_into_a_method(states, tmp_path):
    """A2.10"""
    config = written(tmp_path / "m.yaml", method="ties", **states)
    assert run(["merge", "--config", config, "--output", str(tmp_path / "out")]) == 0
    metadata = metadata_of(tmp_path / "out")
    assert metadata["spec"]["method_params"] == {}
    assert metadata["method_params"]["lambda"] == 1.0


def test_fields_of_sweeps_are_left_aside_by_a_merge(states, tmp_path):
    fields = {
        "search": {"type": "bayes", "space": {"k": {"min": 1, "max": 50}}},
        "eval_tasks": ["a"],
        "split": "validation",
        "eval_subset": {"max_samples": 5},
        "constraint_nonnegative": False,
        "save_merged": True,
        "output_dir": "somewhere",
        "post_sweep_eval": {"split": "test"},
        "compute_missing_interference_baselines": False,
        "optimizer": "none",
    }
    config = written(tmp_path / "m.yaml", method="ties", **states, **fields)
    assert run(["merge", "--config", config, "--output", str(tmp_path / "out")]) == 0
    assert not metadata_of(tmp_path / "out")["spec"].keys() & fields.keys()


def test_a_learner_of_a_direct_merge_needs_tasks(capsys, states, tmp_path):
    config = written(tmp_path / "m.yaml", method="weighted_delta_n", optimizer={"type": "adamerging"}, **states)
    one_line(
        capsys, 1, ["merge", "--config", config, "--output", str(tmp_path / "out")], "No source is named after a task"
    )


def test_a_former_configuration_merges_and_says_what_is_new(caplog, states, tmp_path):
    """A6.21, A6.22"""
    caplog.set_level(logging.WARNING)
    config = written(tmp_path / "m.yaml", method="weighted_delta", params={"lambda": 0.25}, grid={}, **states)
    assert run(["merge", "--config", config, "--output", str(tmp_path / "out")]) == 0
    assert metadata_of(tmp_path / "out")["spec"]["method_params"] == {"lambda": 0.25}
    assert "`params` is now `method_params`" in caplog.text


@pytest.mark.parametrize(
    ("content", "code", "word"),
    [
        ({"params": {}, "metod": "ties"}, 2, "Did you mean 'method'?"),
        ({"metod": "ties"}, 2, "Did you mean 'method'?"),
        ({"method": "tise"}, 1, "Did you mean 'ties'?"),
        ({"method": "ties", "lambda": [1]}, 1, "`lambda` of 'ties'"),
        ({"method": "ties", "search": {"type": "bays"}}, 1, "Did you mean 'bayes'?"),
        ({"method": "ties", "optimizer": "bays"}, 1, "Did you mean 'bayes'?"),
        ({"method": "ties", "tasks": "gone.yaml"}, 1, "gone.yaml cannot be read"),
    ],
    ids=str,
)
def test_mistakes_in_a_configuration_are_one_line(capsys, states, tmp_path, content, code, word):
    config = written(tmp_path / "m.yaml", **states, **content)
    capsys.readouterr()
    assert run(["merge", "--config", config, "--output", str(tmp_path / "out")]) == code
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].find(word) >= 0, told.err
    assert not (tmp_path / "out").exists()


OLD = {"adapters": ["a", "b"], "method": "weighted_delta", "params": {"lambda": 0.3}, "grid": {"lambda": [0, 1]}}


def test_migration_writes_the_present_form(capsys, caplog, tmp_path):
    """A6.20, A6.21, A6.22, A6.23"""
    caplog.set_level(logging.WARNING)
    old, new = written(tmp_path / "old.yaml", **OLD), tmp_path / "sub/new.yaml"
    assert run(["migrate-config", old, "--output", str(new)]) == 0
    assert capsys.readouterr().out == f"{new}: rewritten, method weighted_delta\n"
    assert "`grid` is now `search.grid`" in caplog.text
    assert yaml.safe_load(new.read_text()) == {
        "adapters": ["a", "b"],
        "method": "weighted_delta",
        "method_params": {"lambda": 0.3},
        "search": {"type": "grid", "grid": {"lambda": [0, 1]}},
        "split": "test",
    }
    with pytest.warns(DeprecationWarning, match=" is now "):
        assert load_merge_config(old) == load_merge_config(new)
    caplog.clear()
    again = tmp_path / "again.yaml"
    assert run(["migrate-config", str(new), "--output", str(again)]) == 0
    assert "nothing to rewrite" in capsys.readouterr().out
    assert not caplog.records
    assert again.read_text() == new.read_text()


def test_migration_replaces_nothing_unasked(capsys, tmp_path):
    old = written(tmp_path / "old.yaml", **OLD)
    one_line(capsys, 1, ["migrate-config", old, "--output", old], "exists", "--overwrite")
    assert run(["migrate-config", old, "--output", old, "--overwrite"]) == 0
    assert "grid" not in yaml.safe_load(Path(old).read_text())


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({**OLD, "metod": "x"}, "Did you mean 'method'?"),
        ({**OLD, "search": {"grid": {"lambda": [1]}}}, "differ; keep one"),
        ({"method": "ties"}, "Nothing to merge"),
        ({}, "must be a mapping"),
    ],
    ids=str,
)
def test_what_cannot_be_migrated_is_one_line_and_no_file(capsys, tmp_path, content, word):
    old, new = written(tmp_path / "old.yaml", **content), tmp_path / "new.yaml"
    capsys.readouterr()
    assert run(["migrate-config", old, "--output", str(new)]) == 1
    told = capsys.readouterr().err
    assert word in told.splitlines()[-1]
    assert "old.yaml" in told.splitlines()[-1]
    assert not new.exists()


def test_migration_of_a_missing_file(capsys, tmp_path):
    """A6.28"""
    gone = str(tmp_path / "merge_ties_scaffold.yaml")
    one_line(capsys, 1, ["migrate-config", gone, "--output", str(tmp_path / "n.yaml")], "merge_ties.yaml")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("include: layers", "`include` must be a list of texts, got 'layers'"),
        ("rules: x", "`rules` must be a list of mappings, got 'x'"),
        ("rules: [x]", "`rules[0]` must be a mapping, got 'x'"),
        ("transforms: identity", "`transforms` must be a list of mappings"),
        ("method_params: 3", "`method_params` must be a mapping"),
        ("verify: maybe", "`verify` must be true or false"),
    ],
)
def test_a_field_of_the_wrong_type_is_one_clear_line(tmp_path, capsys, line, told):
    file = tmp_path / "merge.yaml"
    file.write_text(f"adapters: [a, b]\nmethod: ties\n{line}\n")
    assert run(["merge", "--config", str(file), "--output", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert told in errors
    assert errors.count("\n") == 1
