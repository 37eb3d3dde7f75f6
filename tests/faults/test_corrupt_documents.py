"""Every other file that a command reads: weight maps, configurations of models, run records, tables of tasks, rows."""

import json

import pytest
import yaml
from hypothesis import strategies as st

from lit_wsl.cli.main import run
from lit_wsl.merging.task_names import read_registry
from lit_wsl.runs import RunLayout
from lit_wsl.state.remap import WeightMap
from tests.faults.cases import try_cases
from tests.faults.strategies import NAMES, altered, as_json, as_text, documents, one_field
from tests.faults.test_corrupt_settings import odd_yaml
from tests.merging.build import random_states, save_adapter, save_bert, save_gpt2
from tests.runs.build import record


def test_weight_maps(watch):
    base, tuned = random_states(watch.root / "inputs", 1)
    path = watch.root / "inputs" / "map.json"
    assert run(["map", base, tuned, "--save", str(path)]) == 0
    whole = json.loads(path.read_text())
    quick = (
        lambda: watch.call(WeightMap.load, path),
        lambda: watch.command(["map", base, tuned, "--map", path, "--apply", "out.safetensors"]),
        lambda: watch.command(["map", base, "--map", path, "--save", "out.json", "--inverse"]),
        lambda: watch.command(["rename", base, "--map_file", path, "--output", "out.safetensors"]),
        lambda: watch.command(["rename", base, "--map_file", path, "--list"]),
    )
    slow = (
        lambda: watch.command(["compare", base, tuned, "--weight_map", path, "--output_dir", "out"]),
        lambda: watch.command(["extract-lora", base, tuned, "--weight_map", path, "--output_dir", "out"]),
    )
    renames = st.dictionaries(st.sampled_from([*whole, "scalar", *NAMES]), st.sampled_from(["scalar", *NAMES]))
    try_cases("weight maps", documents(whole) | renames.map(as_json), path.write_bytes, quick * 5 + slow)


@pytest.mark.parametrize("make", [save_bert, save_gpt2])
def test_model_settings(watch, make):
    inputs = watch.root / "inputs"
    model = make(inputs / "model")
    save_adapter(model, inputs / "adapter", target_modules=["query"] if make is save_bert else ["c_attn"])
    path = model / "config.json"
    whole = json.loads(path.read_text())
    auto = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    evil = inputs / "model" / "evil.py"
    evil.write_text("import os\nos.system('touch canary')\n")
    quick = (
        lambda: watch.command(["inspect", "model", model]),
        lambda: watch.command(["inspect", "model", model, "--json"]),
        lambda: watch.command(["inspect", "model", path]),
        lambda: watch.command(["inspect", "weights", "--target", model, "--backbone", model]),
        lambda: watch.command(["map", model, model]),
        lambda: watch.command(["merge", "--adapters", inputs / "adapter", "--base", model, "--output", "out"]),
        lambda: watch.command(["merge", "--models", model, "--base", model, "--output", "out", "--dtype", "bfloat16"]),
        lambda: watch.command(["map", model, model, "--apply", "out"]),
        lambda: watch.command(["export", model, "--output", "out", "--format", "safetensors"]),
    )
    slow = (
        lambda: watch.command(["compare", model, model, "--output_dir", "out"]),
        lambda: watch.command(["inspect", "model", model, "--instantiate"]),
    )
    strategy = st.one_of(
        documents(whole, ("auto_map", "quantization_config")),
        one_field(whole, as_json),
        altered({**whole, "auto_map": auto}).map(as_json),
        st.just(as_json({**whole, "auto_map": auto, "model_type": "evil", "architectures": ["Model"]})),
    )
    try_cases("model settings", strategy, path.write_bytes, quick * 3 + slow)


def test_runs(watch):
    home = watch.root / "inputs" / "artifacts"
    folder = record(RunLayout(home))
    record(RunLayout(home), (0.4, 0.1), minutes=3)
    files = sorted(
        path
        for path in home.rglob("*.json")
        if not path.is_symlink() and "best" not in path.parts and "latest" not in path.parts
    )
    assert len(files) > 5
    here = str(watch.root)
    wholes = [(number, path.read_text().replace(here, "{here}")) for number, path in enumerate(files)]
    common = ["--artifacts_dir", home]
    quick = (
        lambda: watch.command(["runs", "list", *common]),
        lambda: watch.command(["runs", "list", *common, "--json"]),
        lambda: watch.command(["runs", "show", "latest", *common]),
        lambda: watch.command(["runs", "show", folder]),
        lambda: watch.command(["runs", "show", folder, "--json"]),
        lambda: watch.command(["runs", "best", *common]),
        lambda: watch.command(["runs", "compare", folder, "latest", *common]),
        lambda: watch.command(["report", *common, "--output", "out.html"]),
        lambda: watch.command(["report", folder, "latest", *common, "--output", "out.html"]),
        lambda: watch.command(["evaluate-merged", "--run_id", "latest", *common, "--output_dir", "out"]),
    )

    def write(case):
        changed, data = case
        for number, text in wholes:
            files[number].write_text(text.replace("{here}", here))
        files[changed].write_bytes(data.replace(b"{here}", here.encode()))

    strategy = st.sampled_from(wholes).flatmap(
        lambda whole: documents(json.loads(whole[1])).map(lambda content: (whole[0], content))
    )
    try_cases("runs", strategy, write, quick)


def test_tables_of_tasks(watch):
    base = save_bert(watch.root / "inputs" / "base")
    save_adapter(base, watch.root / "inputs" / "a1", 1)
    path = watch.root / "inputs" / "tasks.yaml"
    task = {
        "data": {
            "class_path": "lit_wsl.training.text.TextClassificationData",
            "init_args": {"tokenizer": "../inputs/base"},
        },
        "metric": "accuracy",
        "adapter": "a1",
    }
    whole = {"tasks": {"praise": {**task, "data": {"init_args": {"task": "nowhere"}}}, "noun": task}}
    into = ["--artifacts_dir", "out", "--output_dir", "out"]
    merge = ["--base", base, "--tasks", "praise", "noun", "--registry", path, "--method", "uniform"]
    quick = (
        lambda: watch.call(read_registry, path),
        lambda: watch.command(["evaluate-merged", *merge, *into]),
        lambda: watch.command(["merge", "--adapters", "praise", "--tasks", path, "--base", base, "--output", "out"]),
        lambda: watch.command(["merge", "--adapters", "praise", "noun", "--tasks", path, "--evaluate", *into]),
    )
    strategy = st.one_of(altered(whole).map(yaml.safe_dump).map(as_text), odd_yaml(whole))
    try_cases("tables of tasks", strategy, path.write_bytes, quick)


ROW = {
    "id": "1",
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Black."}],
}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "list.yaml"])
def test_rows(watch, name):
    path = watch.root / "inputs" / name
    (watch.root / "inputs" / "a.png").write_bytes(b"none")
    whole = {"datasets": [{"json_path": "../inputs/good.json", "sampling_strategy": "first:10%"}]}
    path.with_name("good.json").write_text(json.dumps([ROW, ROW]))
    strategy = {
        "rows.json": documents([ROW, {**ROW, "id": "2"}]),
        "rows.jsonl": st.lists(documents(ROW), min_size=1, max_size=3).map(b"\n".join),
        "list.yaml": altered(whole).map(yaml.safe_dump).map(as_text),
    }[name]
    strategy = strategy.filter(lambda content: b"[[[[" not in content and b'{"a":{"a"' not in content)
    quick = (
        lambda: watch.command(["inspect", "data", path]),
        lambda: watch.command(["inspect", "data", path, "--json", "--limit", "2"]),
    )
    try_cases("rows", strategy, path.write_bytes, quick)
