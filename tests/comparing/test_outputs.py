"""The JSON files have the keys that were asked for, and a directory gives its comparison back."""

import json
import shutil
from dataclasses import replace

import pytest

from lit_wsl.comparing.journal import NAME, Journal
from lit_wsl.comparing.outputs import OUTPUTS, read_outputs, write_architecture, write_outputs
from lit_wsl.errors import CheckpointError
from tests.comparing.examples import EXAMPLES, example

CONFIGS = {"config": {"hidden_size": {"base": 64, "finetuned": float("nan")}}, "generation_config": {}, "tokenizer": {}}


def _written(comparison, directory):
    """A directory as a comparison leaves it."""
    work = {"base": comparison.base, "finetuned": comparison.finetuned, "settings": comparison.settings.to_json()}
    journal = Journal(directory, work, is_resumed=False)
    for finding in comparison.findings:
        journal.add(finding)
    journal.close()
    write_outputs(comparison, directory, CONFIGS)
    return directory


def _refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def _json(path):
    return json.loads(path.read_text(), parse_constant=_refuse)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return _written(example("lora and head"), tmp_path_factory.mktemp("outputs"))


def test_all_files_are_known_and_none_is_left_over(directory):
    there = {path.name for path in directory.iterdir()} - {NAME}
    assert there == set(OUTPUTS) - {
        "difference.txt",
        "lora_metadata.json",
        "extracted_lora_weights.safetensors",
        "adapter",
    }


def test_pictures_of_the_page_are_files_too(directory):
    there = {path.name: path.read_bytes()[:4] for path in (directory / "plots").iterdir()}
    assert there == dict.fromkeys(("heat_map.png", "spectra.png", "histogram.png"), b"\x89PNG")


def test_weight_differences_have_the_asked_keys(directory):
    content = _json(directory / "weight_differences.json")
    comparison = example("lora and head")
    assert list(content) == ["modified_layers", "all_differences", "performance", "summary", "verdict"]
    assert list(content["performance"]) == ["total_time", "avg_layer_time", "max_layer_time", "layer_times"]
    assert content["all_differences"] == {one.name: one.change.to_json() for one in comparison.findings}
    asked = {"mean_abs_diff", "max_abs_diff", "relative_diff", "changed_ratio", "cosine", "shape"}
    assert all(asked <= one.keys() for one in content["all_differences"].values())
    times = content["performance"]["layer_times"]
    assert all(list(one) == ["total_time", "tensor_time", "numpy_time"] for one in times.values())
    assert content["performance"]["max_layer_time"] == max(one["total_time"] for one in times.values())
    modified = {name.split(".")[-2] for name in content["modified_layers"]}
    assert modified >= {"q_proj", "lm_head"}
    assert "k_proj" not in modified


def test_architecture_has_the_asked_keys(directory):
    assert list(_json(directory / "architecture_comparison.json")) == [
        "common_keys",
        "only_in_base",
        "only_in_finetuned",
        "lora_keys",
        "shape_mismatch",
        "dtype_mismatch",
        "failed",
    ]


def test_lora_analysis_has_the_asked_keys(directory):
    content = _json(directory / "lora_analysis.json")
    asked = {
        "shape",
        "effective_rank",
        "rank_95_energy",
        "rank_99_energy",
        "max_singular_value",
        "min_singular_value",
        "singular_values",
        "energy_captured",
        "is_potential_lora",
    }
    assert list(content) == ["potential_lora_layers", "analysis"]
    assert all(asked <= one.keys() for one in content["analysis"].values())
    analysed = {name.split(".")[-2] for name in content["analysis"]}
    assert analysed == {"q_proj", "lm_head"}
    assert len(content["potential_lora_layers"]) == 3  # 4 < a tenth of 64


def test_a_number_that_is_none_becomes_null(directory, tmp_path):
    assert _json(directory / "config_comparison.json")["config"]["hidden_size"] == {"base": 64, "finetuned": None}
    whole = example("lora")
    first = whole.findings[0]
    odd = replace(first, change=replace(first.change, max_abs_diff=float("inf")))
    write_outputs(replace(whole, findings=[odd, *whole.findings[1:]]), tmp_path, {})
    assert _json(tmp_path / "weight_differences.json")["all_differences"][first.name]["max_abs_diff"] is None


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_directory_gives_its_comparison_back(name, tmp_path):
    comparison = example(name)
    found = read_outputs(_written(comparison, tmp_path))
    failed = replace(comparison.architecture, failed=comparison.failed())
    assert found == replace(comparison, architecture=failed)
    assert all(_json(path) is not None for path in tmp_path.glob("*.json"))


def test_findings_of_a_resumed_journal_come_in_the_order_of_the_base(tmp_path):
    comparison = example("lora")
    _written(replace(comparison, findings=comparison.findings[::-1]), tmp_path)
    assert read_outputs(tmp_path).findings == comparison.findings


def test_a_killed_comparison_is_read_as_far_as_it_went(tmp_path):
    comparison = example("lora")
    begun = replace(comparison, findings=comparison.findings[:10])
    _written(begun, tmp_path)
    for path in tmp_path.iterdir():
        if path.name != NAME:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with (tmp_path / NAME).open("a") as file:
        file.write('{"name": "model.la')  # cut off in the middle
    found = read_outputs(tmp_path)
    assert (found.findings, found.is_complete) == (begun.findings, False)
    write_architecture(comparison, tmp_path)
    assert len(read_outputs(tmp_path).architecture.common_keys) == 30
    assert not read_outputs(tmp_path).is_complete


@pytest.mark.parametrize("content", [None, "", '{"work": {}}\n', "{}\n", '{"work": {"base": 1}}\n', "[\n"])
def test_a_directory_without_a_comparison_is_one_clear_error(content, tmp_path):
    if content is not None:
        (tmp_path / NAME).write_text(content)
    with pytest.raises(CheckpointError, match="repeat the comparison|lit-wsl compare"):
        read_outputs(tmp_path)


def test_a_damaged_architecture_is_one_clear_error(tmp_path):
    _written(example("lora"), tmp_path)
    for content in ("{", "[]", '{"names": []}'):
        (tmp_path / "architecture_comparison.json").write_text(content)
        with pytest.raises(CheckpointError, match="is damaged"):
            read_outputs(tmp_path)


def test_an_earlier_file_stays_whole_where_writing_fails(directory, monkeypatch):
    before = (directory / "report.html").read_bytes()
    monkeypatch.setattr("lit_wsl.comparing.page.page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_outputs(example("lora"), directory, {})
    assert (directory / "report.html").read_bytes() == before
    assert not list(directory.glob("*.partial"))
