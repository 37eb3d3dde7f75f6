"""`lit-wsl evaluate-merged` (A12.2) and `merge --evaluate` (A12.1)."""

import json
import shutil

import pytest
import yaml

from lit_wsl.cli.main import run
from lit_wsl.evaluation import EncoderEvaluator, evaluate_merge, load_tasks
from lit_wsl.merging import merge
from lit_wsl.merging.config import MergeConfig
from lit_wsl.runs import RunLayout, list_runs
from tests.evaluation.pair import write_pair


@pytest.fixture(scope="module")
def pair(bert_dir, tmp_path_factory):
    return write_pair(bert_dir, tmp_path_factory.mktemp("pair"))


@pytest.fixture
def folder(tmp_path, monkeypatch, pair):
    """A working directory with a registry of the two tasks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_WSL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"tasks": pair.registry}))
    return tmp_path


def write_config(folder, bert_dir, **fields):
    content = {
        "adapters": ["praise", "noun"],
        "tasks": "tasks.yaml",
        "base": str(bert_dir),
        "method": "ties",
        "method_params": {"k": 50, "lambda": 0.8},
        **fields,
    }
    path = folder / "merge.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def results(folder, split="test"):
    [run_of] = list_runs(RunLayout(folder / "artifacts"))
    return json.loads((run_of.path / f"eval_results_{split}.json").read_text())["results"]


def expected(pair, bert_dir, **fields):
    config = MergeConfig(adapters=list(pair.paths), base=str(bert_dir), tasks=pair.registry, **fields)
    evaluator = EncoderEvaluator(str(bert_dir), list(load_tasks(pair.registry).values()))
    return evaluate_merge(config, evaluator, save_results=False).report


def plain(report):
    return json.loads(json.dumps(report))


def test_a_configuration_gives_every_parameter_a12_2(folder, bert_dir, pair, capsys):
    path = write_config(folder, bert_dir, transforms=[{"name": "layer_l2_normalize"}], merge_mode="strict")
    assert run(["evaluate-merged", "--config", str(path)]) == 0
    wanted = {"method": "ties", "method_params": {"k": 50, "lambda": 0.8}, "merge_mode": "strict"}
    assert results(folder) == plain(expected(pair, bert_dir, **wanted, transforms=[{"name": "layer_l2_normalize"}]))
    shown = capsys.readouterr().out
    assert "lowest interference delta" in shown
    assert "praise" in shown


def test_options_win_over_the_configuration_a12_2(folder, bert_dir, pair):
    path = write_config(folder, bert_dir)
    arguments = ["--lambda", "0.3", "--method_params.k", "20", "--eval-tasks", "noun", "--split", "validation"]
    assert run(["evaluate-merged", "--config", str(path), *arguments]) == 0
    wanted = expected(pair, bert_dir, method="ties", method_params={"k": 20, "lambda": 0.3}, split="validation")
    assert results(folder, "validation") == plain({"noun": wanted["noun"]})


def test_method_tasks_and_scale_without_a_configuration_a12_2(folder, bert_dir, pair):
    arguments = ["--method", "uniform_scalar_delta", "--tasks", "praise", "noun", "--scale", "0.7"]
    assert run(["evaluate-merged", *arguments, "--registry", "tasks.yaml", "--batch-size", "3"]) == 0
    wanted = expected(pair, bert_dir, method="uniform_scalar_delta", method_params={"scale": 0.7})
    found = results(folder)
    for name in ("praise", "noun"):
        assert found[name]["metrics"] == pytest.approx(plain(wanted[name]["metrics"]), abs=1e-6)
        assert found[name]["interference_delta"] == pytest.approx(wanted[name]["interference_delta"])


def test_tasks_of_the_command_may_stand_in_a_file_a12_2(folder):
    options = {"tasks": ["praise", "noun"], "method": "uniform_delta"}
    (folder / "options.yaml").write_text(yaml.safe_dump(options))
    assert run(["evaluate-merged", "--config", "options.yaml", "--registry", "tasks.yaml"]) == 0
    assert results(folder).keys() == {"praise", "noun"}


def test_a_saved_adapter_a_run_and_its_id_a12_2(folder, bert_dir, pair, capsys):
    config = MergeConfig(adapters=list(pair.paths), base=str(bert_dir), method="uniform_delta", tasks=pair.registry)
    merge(config.to_merge_spec(), output=str(folder / "out"), output_format="adapter")
    common = ["--registry", "tasks.yaml"]
    assert run(["evaluate-merged", "--adapter-path", "out", *common]) == 0
    wanted = expected(pair, bert_dir, method="uniform_delta")
    found = results(folder)
    assert {n: r["interference_delta"] for n, r in found.items()} == pytest.approx(
        {n: r["interference_delta"] for n, r in wanted.items()}
    )
    [first] = list_runs(RunLayout(folder / "artifacts"))
    for run_id in ("latest", "best", first.run_id):
        assert run(["evaluate-merged", "--run-id", run_id, "--split", "validation", *common]) == 0
    assert len(list_runs(RunLayout(folder / "artifacts"))) == 1
    assert (first.path / "eval_results_validation.json").is_file()
    assert run(["evaluate-merged", "--run-id", "run_1999", *common]) == 1
    assert "There is no run 'run_1999'" in capsys.readouterr().err


def test_saved_weights_lie_in_the_run_a12_2(folder, bert_dir):
    path = write_config(folder, bert_dir, output_format="adapter")
    assert run(["evaluate-merged", "--config", str(path), "--save"]) == 0
    [found] = list_runs(RunLayout(folder / "artifacts"))
    assert {"adapter_model.safetensors", "adapter_config.json", "merge_metadata.json", "summary.json"} <= {
        p.name for p in found.path.iterdir()
    }
    assert json.loads((found.path / "merge_metadata.json").read_text())["source_tasks"] == ["praise", "noun"]
    before = results(folder)
    assert run(["evaluate-merged", "--run-id", "best", "--registry", "tasks.yaml"]) == 0
    after = results(folder)
    assert {n: r["metrics"]["accuracy"] for n, r in after.items()} == {
        n: r["metrics"]["accuracy"] for n, r in before.items()
    }


def test_confusion_matrices_can_be_left_out_a12_2_a10_10(folder, bert_dir):
    path = write_config(folder, bert_dir)
    assert run(["evaluate-merged", "--config", str(path)]) == 0
    pictures = list((folder / "artifacts").rglob("*_confusion_matrix.png"))
    assert len(pictures) == 2
    shutil.rmtree(folder / "artifacts")
    assert run(["evaluate-merged", "--config", str(path), "--no-confusion-matrix"]) == 0
    assert not list((folder / "artifacts").rglob("*.png"))


def test_no_results_and_no_baselines_on_request_a12_2(folder, bert_dir, capsys):
    path = write_config(folder, bert_dir)
    assert run(["evaluate-merged", "--config", str(path), "--no-save-results"]) == 0
    assert not (folder / "artifacts").exists()
    assert run(["evaluate-merged", "--config", str(path), "--no-compute-interference-baselines"]) == 0
    assert all("interference_delta" not in result for result in results(folder).values())
    assert "no score of the base is kept" in capsys.readouterr().err


def test_a_subset_has_files_of_its_own_a10_7(folder, bert_dir):
    path = write_config(folder, bert_dir, eval_subset={"max_samples": 6, "stratified": True})
    assert run(["evaluate-merged", "--config", str(path)]) == 0
    [found] = list_runs(RunLayout(folder / "artifacts"))
    [results_file] = found.path.glob("eval_results_*.json")
    assert "test__subset_" in results_file.name
    assert len(list((folder / "cache/eval_subsets").iterdir())) == 2


def test_a_failing_task_is_one_line_and_exit_code_1_a10_1(folder, bert_dir, pair, capsys):
    broken = {**pair.registry, "praise": {**pair.registry["praise"], "head": "no/head.safetensors"}}
    (folder / "tasks.yaml").write_text(yaml.safe_dump(broken))
    assert run(["evaluate-merged", "--config", str(write_config(folder, bert_dir))]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("lit-wsl: 1 of 2 tasks failed: praise: ")
    found = results(folder)
    assert list(found["praise"]) == ["error"]
    assert found["noun"]["metrics"]["accuracy"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "ties"], "Nothing to merge"),
        (["--tasks", "prase", "--registry", "tasks.yaml"], "Did you mean 'praise'"),
        (["--tasks", "praise", "--registry", "tasks.yaml", "--eval_tasks", "nuon"], "Did you mean 'noun'"),
        (["--tasks", "praise", "--registry", "none.yaml"], "none.yaml"),
        (["--adapter_path", "nowhere"], "does not exist"),
        (["--run_id", "best"], "There are no runs"),
    ],
)
def test_wrong_options_are_one_line(folder, capsys, arguments, message):
    assert run(["evaluate-merged", *arguments]) == 1
    told = capsys.readouterr().err
    assert message in told
    assert len(told.strip().splitlines()) == 1


def test_merge_evaluates_what_it_wrote_a12_1(folder, bert_dir, pair, capsys):
    path = write_config(folder, bert_dir, output="out", output_format="model")
    assert run(["merge", "--config", str(path), "--evaluate", "--eval-split", "validation"]) == 0
    assert (folder / "out/model.safetensors").is_file()
    wanted = expected(pair, bert_dir, method="ties", method_params={"k": 50, "lambda": 0.8}, split="validation")
    found = results(folder, "validation")
    for name in wanted:
        assert found[name]["metrics"] == pytest.approx(plain(wanted[name]["metrics"]), abs=1e-6)
    assert "None" not in capsys.readouterr().out


def test_merge_evaluates_in_memory_without_an_output_a12_1(folder, bert_dir, pair, capsys):
    path = write_config(folder, bert_dir)
    assert run(["merge", "--config", str(path), "--evaluate"]) == 0
    wanted = expected(pair, bert_dir, method="ties", method_params={"k": 50, "lambda": 0.8})
    assert results(folder) == plain(wanted)
    assert "None" not in capsys.readouterr().out
    assert sorted(p.name for p in folder.iterdir()) == ["artifacts", "merge.yaml", "tasks.yaml"]


def test_merge_refuses_unknown_tasks_before_it_merges_a12_1(folder, bert_dir, capsys):
    path = write_config(folder, bert_dir, output="out", eval_tasks=["nuon"])
    assert run(["merge", "--config", str(path), "--evaluate"]) == 1
    assert "Did you mean 'noun'" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_printed_options_are_a_configuration_a12_2(folder, bert_dir, capsys):
    path = write_config(folder, bert_dir)
    assert run(["evaluate-merged", "--config", str(path), "--eval_tasks", "noun", "--print_config"]) == 0
    printed = capsys.readouterr().out
    (folder / "printed.yaml").write_text(printed)
    assert run(["evaluate-merged", "--config", "printed.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    assert run(["evaluate-merged", "--config", "printed.yaml"]) == 0
    assert list(results(folder)) == ["noun"]


def test_a_configuration_in_a_former_form_is_read_a12_2(folder, bert_dir, pair):
    path = write_config(folder, bert_dir, method_params={}, **{"lambda": 0.8}, method="weighted_delta")
    assert run(["evaluate-merged", "--config", str(path)]) == 0
    wanted = expected(pair, bert_dir, method="weighted_delta", method_params={"lambda": 0.8})
    assert results(folder) == plain(wanted)


def test_a_file_that_is_no_configuration_is_one_line(folder, capsys):
    (folder / "bad.yaml").write_text("adapters: [")
    assert run(["evaluate-merged", "--config", "bad.yaml"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
