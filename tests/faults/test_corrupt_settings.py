"""Configurations of any content: YAML that names code, bombs, other encodings, wrong types, deep nesting."""

import dataclasses

import pytest
import yaml
from hypothesis import strategies as st

from lit_wsl.merging.config import MergeConfig, load_merge_config
from lit_wsl.merging.config_files import read_fields
from tests.faults.cases import try_cases
from tests.faults.strategies import altered, as_text, damaged, one_field, texts
from tests.merging.build import random_states

BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
)
"""Nine to the eleventh entries, once somebody writes them out."""
CODE = (
    "!!python/object/apply:os.system ['touch canary']",
    "!!python/object/new:subprocess.Popen [['touch', 'canary']]",
    '!!python/object/apply:builtins.exec [\'open("canary", "w")\']',
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!!binary 'aGk='",
    "!!set {a, b}",
    "!!timestamp 2001-12-14t21:59:43.10-05:00",
    "!unknown x",
    "!!int 'x'",
    "!!float 'x'",
    "2001-99-99",
    "0x",
    "1_0",
    "1:30:99999999999999999999",
    "<<: {a: 1}",
    "&a [*a]",
    "&a {b: *a}",
    "*nowhere",
    "? [1, 2]\n: 3",
    "{[1]: 2}",
    "9" * 6000,
    "1e999999",
    "${HOME}",
    "${oc.env:HOME}",
)
"""YAML values that a careless reader executes, expands or stumbles over."""
FORMER = {
    "lambda": 0.5,
    "grid": {"lambda": [0.5, 1.0]},
    "params": {"k": 20},
    "tasks": ["a", "b"],
    "optimizer": {"type": "gradient", "params": {"lr": 0.1, "steps": 3}},
    "search": {"type": "bayes", "budget": 5, "space": {"lambda": {"type": "float", "low": 0.0, "high": 1.0}}},
    "transforms": [{"name": "yadas", "params": {"k": 20}}],
    "eval_subset": {"max_samples": 10, "seed": 1},
    "lambda_policy": {"type": "per_layer", "default": 0.5},
    "post_sweep_eval": {"enabled": True, "split": "test"},
    "slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}]}],
    "rules": [{"match": "*.weight", "method": "ties"}],
}


@pytest.fixture
def fields(watch):
    """A merge of two files."""
    random_states(watch.root / "inputs", 2)
    return {
        "models": [f"../inputs/tuned{number}.safetensors" for number in range(2)],
        "base": "../inputs/base.safetensors",
        "method": "ties",
        "method_params": {"k": 20, "lambda": 1.0},
        "output": "out",
        "dtype": "float32",
        "shard_size": "5GB",
        "threads": 1,
        "include": ["*"],
        "exclude": [],
        "statistics": [],
    }


def entries(watch, path):
    """Every reader of a configuration of a merge."""
    return (
        lambda: watch.call(load_merge_config, path),
        lambda: watch.call(read_fields, path),
        lambda: watch.command(["merge", "--config", path, "--dry_run"]),
        lambda: watch.command(["merge", "--config", path]),
        lambda: watch.command(["merge", "--config", path, "--print_config"]),
        lambda: watch.command(["merge", "--config", path, "--evaluate"]),
        lambda: watch.command(["migrate-config", path, "--output", "out.yaml"]),
        lambda: watch.command(["merge-sweep", "--config", path, "--output_dir", "out", "--artifacts_dir", "out"]),
        lambda: watch.command(["evaluate-merged", "--config", path, "--artifacts_dir", "out", "--output_dir", "out"]),
    )


def as_yaml(document):
    """YAML of a document, in which tags may stand for what has none."""
    return as_text(yaml.safe_dump(document, allow_unicode=True))


def odd_yaml(document):
    """A good file with one value that is odd YAML, a bomb, another text, or damaged bytes."""
    text = yaml.safe_dump(document)
    values = st.sampled_from(CODE)
    keys = st.sampled_from(sorted(document))
    return st.one_of(
        st.builds(lambda key, value: as_text(f"{_without(document, key)}{key}: {value}\n"), keys, values),
        st.builds(lambda value: as_text(f"{value}\n{text}"), values),
        st.builds(lambda key: as_text(f"{BOMB}\n{_without(document, key)}{key}: *a11\n"), keys),
        st.sampled_from(["utf-16", "utf-32", "latin-1", "cp037"]).map(lambda code: text.encode(code)),
        texts.map(as_text),
        texts.map(lambda value: as_text(f"{text}rules: {value}\n")),
        damaged(text.encode()),
    )


def _without(document, key):
    return yaml.safe_dump({name: value for name, value in document.items() if name != key})


def test_wrong_types(watch, fields):
    path = watch.root / "inputs" / "case.yaml"
    known = {field.name: None for field in dataclasses.fields(MergeConfig)}
    former = st.sampled_from(sorted(FORMER)).map(lambda key: {**fields, key: FORMER[key]})
    strategy = st.one_of(
        altered(fields, tuple(known)).map(as_yaml),
        one_field({**known, **fields}, lambda found: as_yaml({k: v for k, v in found.items() if v is not None})),
        former.flatmap(altered).map(as_yaml),
        altered({**fields, **FORMER}).map(as_yaml),
        one_field(FORMER, lambda found: as_yaml({**fields, **found})),
    )
    try_cases("merge settings", strategy, path.write_bytes, entries(watch, path))


def test_yaml(watch, fields):
    path = watch.root / "inputs" / "case.yaml"
    try_cases("YAML", odd_yaml(fields), path.write_bytes, entries(watch, path))
