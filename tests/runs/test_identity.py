"""What runs and merges are called: by content, and never twice."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from lit_wsl.errors import CheckpointError
from lit_wsl.runs import build_merge_tag, claim_run, content_hash, hash_inputs, merge_tag, new_run_id, optimizer_label
from lit_wsl.runs.identity import merge_hash
from tests.runs.build import NOON, bundle


def test_ids_of_runs():
    """A9.3"""
    assert new_run_id(NOON) == "run_20250131_120000"
    assert re.fullmatch(r"run_20250131_120000_[0-9a-f]{8}", new_run_id(NOON, {"k": 20}))
    assert re.fullmatch(r"run_\d{8}_\d{6}", new_run_id())
    plusplus = {"type": "AdaMerging", "params": {"variant": "layer_wise", "plus_plus": True}}
    assert new_run_id(NOON, label=optimizer_label(plusplus)) == "run_adamerging_layer_wise_plusplus_20250131_120000"
    assert optimizer_label({"type": "none"}) == optimizer_label(None) == optimizer_label({}) == ""


def test_runs_of_one_second_have_directories_of_their_own(tmp_path):
    """A9.4"""
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: claim_run(tmp_path / "runs", NOON, "same content"), range(64)))
    assert len(set(made)) == len(list((tmp_path / "runs").iterdir())) == 64
    assert (tmp_path / "runs/run_20250131_120000").is_dir()
    assert all(re.fullmatch(r"run_20250131_120000(_[0-9a-f]{8}(_\d+)?)?", path.name) for path in made)


def test_a_file_in_the_way_of_runs(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(CheckpointError, match="choose another output"):
        claim_run(tmp_path / "runs")


def test_tags_differ_with_anything_that_makes_a_merge(tmp_path):
    """A9.5"""
    from lit_wsl.runs import RunLayout

    layout = RunLayout(tmp_path)
    same = bundle(params={"scale": 0.1}).merge_tag(layout)
    assert same == bundle(params={"scale": 0.1}, minutes=5, key="validation", seed=3).merge_tag(layout)
    others = [
        bundle(params={"scale": 0.2}),
        bundle(params={"scale": 0.1}, method="dare"),
        bundle(params={"scale": 0.1}, tasks=("tweets", "intent")),
        bundle(params={"scale": 0.1}, metadata={"merge_mode": "strict"}),
        bundle(params={"scale": 0.1}, metadata={"transforms": [{"name": "layer_l2_normalize"}]}),
        bundle(params={"scale": 0.1}, inputs={"intent": "1", "tweets": "2"}),
        bundle(params={"scale": 0.1}, inputs={"intent": "1", "tweets": "3"}),
        bundle((0.1, 0.1, 0.1), params={"scale": 0.1}, tasks=("intent", "intent", "tweets")),
    ]
    assert len({same, *(other.merge_tag(layout) for other in others)}) == len(others) + 1


def test_tags_name_method_tasks_and_lambda():
    """A9.5, A9.15"""
    content = content_hash("x")
    assert (
        merge_tag("ties", {"lambda": 0.30, "k": 20}, ["b", "a"], content) == f"merged_ties_b_a_lambda0.3_{content[:8]}"
    )
    assert merge_tag("dare", {}, ["/x/artifacts/b/best", "a"], content) == f"merged_dare_b_a_{content[:8]}"
    assert build_merge_tag({"merge_tag": "known"}) == "known"
    metadata = {"merge_method": "ties", "params": {"lambda": 1}, "source_tasks": ["a", "b"]}
    tag = build_merge_tag(metadata)
    assert tag == f"merged_ties_a_b_lambda1_{merge_hash('ties', {'lambda': 1}, ['a', 'b'], {})[:8]}"
    adapters = {
        "merge_method": "ties",
        "method_params": {"lambda": 1},
        "source_adapters": [{"name": "a"}, {"name": "b"}],
    }
    assert build_merge_tag(adapters) == build_merge_tag(metadata, ["a", "b"]) == tag


def test_where_and_how_fast_a_merge_ran_is_not_what_it_is():
    spec = {"method": "ties", "output": "here", "threads": 1, "overwrite": False, "dtype": "auto"}
    other = {**spec, "output": "there", "threads": 8, "overwrite": True}
    hashes = [merge_hash("ties", {}, ["a"], {"spec": one}) for one in (spec, other, {**spec, "dtype": "float32"})]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_base_counts_by_content():
    def of(base, content):
        return merge_hash("ties", {}, [], {"base": base, "spec": {"base": base}}, {base: content})

    assert of("here", "same") == of("there", "same") != of("here", "other")


def test_hashes_of_inputs_follow_content_and_not_the_place(tmp_path):
    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(weights)
        (tmp_path / name / "adapter_config.json").write_text("{}")
        (tmp_path / name / "merge_metadata.json").write_text(json.dumps({"timestamp": name}))
    a, b, c = hash_inputs(str(tmp_path / name) for name in "abc").values()
    assert a == b != c
    (tmp_path / "a/adapter_config.json").write_text('{"r": 8}')
    assert hash_inputs([tmp_path / "a"]) != {str(tmp_path / "a"): a}
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no weights"):
        hash_inputs([tmp_path / "empty"])
    with pytest.raises(CheckpointError, match="does not exist"):
        hash_inputs([tmp_path / "nothing"])
