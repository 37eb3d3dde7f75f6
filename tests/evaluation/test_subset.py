"""Deterministic subsets (A10.7, A10.8) against plain Python."""

import hashlib
import json
import random
from collections import Counter
from fractions import Fraction

import pytest

from lit_wsl.errors import ConfigError
from lit_wsl.evaluation import EncoderEvaluator, SubsetSpec, Task
from lit_wsl.evaluation.subset import SubsetCache, stratified_rows
from lit_wsl.training.text import TextClassificationData

LABELS = ["a"] * 50 + ["b"] * 31 + ["c"] * 19


def forbidden():
    raise AssertionError("classes were asked for")


def test_defaults_a10_7():
    spec = SubsetSpec.read({"max_samples": 5})
    assert (spec.enabled, spec.shuffle, spec.seed, spec.stratified, spec.label_column) == (True, False, 0, False, None)
    assert SubsetSpec.read({"max_samples": 5}, seed=9).seed == 9
    assert SubsetSpec.read({"max_samples": 5, "seed": 3}, seed=9).seed == 3
    assert SubsetSpec.read(None) is None
    assert SubsetSpec.read({"enabled": False, "max_samples": 5}) is None


def test_tag_is_a_hash_of_all_fields_a10_7():
    content = {
        "enabled": True,
        "label_column": None,
        "max_samples": 5,
        "per_task": {"x": 2},
        "seed": 0,
        "shuffle": True,
        "stratified": False,
    }
    expected = "subset_" + hashlib.md5(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    assert SubsetSpec(max_samples=5, shuffle=True, per_task={"x": 2}).tag == expected
    assert SubsetSpec(max_samples=6, shuffle=True, per_task={"x": 2}).tag != expected


def test_first_rows_without_shuffle_and_drawn_rows_with_it_a10_7():
    assert SubsetSpec(max_samples=4).choose("t", 10, forbidden) == [0, 1, 2, 3]
    drawn = SubsetSpec(max_samples=4, shuffle=True, seed=7).choose("t", 100, forbidden)
    assert drawn == sorted(random.Random(7).sample(range(100), 4))
    assert drawn != SubsetSpec(max_samples=4, shuffle=True, seed=8).choose("t", 100, forbidden)


@pytest.mark.parametrize("count", [1, 2, 7, 10, 33, 99])
def test_stratified_quotas_are_those_of_the_largest_remainder_a10_7(count):
    rows = stratified_rows(LABELS, count, seed=3)
    exact = {label: Fraction(count * n, len(LABELS)) for label, n in Counter(LABELS).items()}
    quotas = {label: int(share) for label, share in exact.items()}
    for label in sorted(exact, key=lambda one: (-(exact[one] - quotas[one]), one))[: count - sum(quotas.values())]:
        quotas[label] += 1
    assert {label: n for label, n in quotas.items() if n} == Counter(LABELS[row] for row in rows)
    assert rows == sorted(set(rows))
    assert rows == stratified_rows(LABELS, count, seed=3)


def test_stratified_draw_depends_on_the_seed_a10_7():
    assert stratified_rows(LABELS, 30, seed=1) != stratified_rows(LABELS, 30, seed=2)


def test_per_task_numbers_and_mappings_a10_7():
    spec = SubsetSpec(max_samples=8, per_task={"asr": 2, "kws": {"max_samples": 3, "shuffle": True}})
    assert len(spec.choose("intent", 20, forbidden)) == 8
    assert spec.choose("asr", 20, forbidden) == [0, 1]
    assert spec.choose("kws", 20, forbidden) == sorted(random.Random(0).sample(range(20), 3))


@pytest.mark.parametrize("count", [20, 21, None])
def test_no_less_than_the_split_is_the_whole_split_still_tagged_a10_7(count):
    spec = SubsetSpec(max_samples=count, stratified=True)
    assert spec.choose("t", 20, forbidden) == list(range(20))
    assert spec.tag.startswith("subset_")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_samples": 0}, "above 0, got 0"),
        ({"max_samples": -3}, "above 0"),
        ({"max_samples": 2.5}, "whole number"),
        ({"per_task": {"asr": 0}}, "above 0"),
        ({"per_task": {"asr": {"max_sample": 3}}}, r"per_task\.asr.*Did you mean 'max_samples'"),
        ({"per_task": {"asr": "many"}}, "number or a mapping"),
        ({"per_task": [1]}, "mapping of task names"),
        ({"max_sample": 3}, "Did you mean 'max_samples'"),
    ],
)
def test_wrong_numbers_and_names_are_refused_a10_7(fields, message):
    with pytest.raises(ValueError, match=message):
        SubsetSpec.read(fields)
    with pytest.raises(ConfigError):
        SubsetSpec.read([3])
    with pytest.raises(ConfigError, match="number or a mapping"):
        SubsetSpec.read(True)


def test_a_number_is_that_many_rows():
    assert SubsetSpec.read(5) == SubsetSpec(max_samples=5)
    assert SubsetSpec.read(5, seed=9).seed == 9


def test_rows_are_remembered_and_used_again_a10_8(tmp_path):
    cache, spec = SubsetCache(tmp_path), SubsetSpec(max_samples=10, stratified=True)
    rows = cache.rows(spec, "t", "test", 100, lambda: LABELS, "data 1")
    path = tmp_path / f"eval_subset_t_test_{spec.tag}.json"
    content = json.loads(path.read_text())
    assert content["indices"] == rows
    assert content["metadata"]["dataset_size"] == 100
    assert cache.rows(spec, "t", "test", 100, forbidden, "data 1") == rows
    assert cache.rows(spec, "t", "test", 100, forbidden, None) == rows
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_other_data_and_damaged_files_are_chosen_anew_a10_8(tmp_path):
    cache, spec = SubsetCache(tmp_path), SubsetSpec(max_samples=3)
    path = cache.path(spec, "t", "test")
    cache.rows(spec, "t", "test", 100, forbidden, "data 1")
    for change in ({"dataset_size": 99}, {"fingerprint": "data 2"}):
        content = json.loads(path.read_text())
        content["indices"], content["metadata"] = [7, 8, 9], {**content["metadata"], **change}
        path.write_text(json.dumps(content))
        assert cache.rows(spec, "t", "test", 100, forbidden, "data 1") == [0, 1, 2]
    path.write_text('{"indices": [1')
    assert cache.rows(spec, "t", "test", 100, forbidden, "data 1") == [0, 1, 2]
    assert json.loads(path.read_text())["indices"] == [0, 1, 2]


def test_an_earlier_file_without_fingerprint_is_used_a10_8(tmp_path):
    cache, spec = SubsetCache(tmp_path), SubsetSpec(max_samples=3)
    cache.path(spec, "t", "test").write_text('{"indices": [4, 5, 6], "metadata": {"dataset_size": 100}}')
    assert cache.rows(spec, "t", "test", 100, forbidden, "data 1") == [4, 5, 6]


def test_an_evaluator_measures_exactly_these_rows_a10_7(bert_dir, opinions, tmp_path):
    data = TextClassificationData(str(bert_dir), task=str(opinions), batch_size=4)
    evaluator = EncoderEvaluator(str(bert_dir), [Task("opinions", data)], cache=tmp_path)
    spec = SubsetSpec(max_samples=6, stratified=True)
    part = evaluator.evaluate(None, "opinions", "test", spec)
    assert part.rows == 6
    assert part.confusion.sum(dim=1).tolist() == [3, 3]
    rows = json.loads(next(tmp_path.iterdir()).read_text())["indices"]
    lines = (opinions / "test.jsonl").read_text().splitlines()
    (tmp_path / "small").mkdir()
    (tmp_path / "small/test.jsonl").write_text("\n".join(lines[row] for row in rows))
    (tmp_path / "small/task.json").write_text((opinions / "task.json").read_text())
    alone = Task("small", TextClassificationData(str(bert_dir), task=str(tmp_path / "small")))
    whole = EncoderEvaluator(str(bert_dir), [alone], cache=tmp_path).evaluate(None, "small", "test")
    assert part.confusion.tolist() == whole.confusion.tolist()
    assert part.metrics["loss"] == pytest.approx(whole.metrics["loss"], abs=1e-6)
    assert evaluator.digest("opinions", "test", spec) != evaluator.digest("opinions", "test")
