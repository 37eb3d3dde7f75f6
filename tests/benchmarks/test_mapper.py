"""The mapper's benchmark itself, at its smallest size."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.history import entries
from benchmarks.mapping.accuracy import calibration, random_words
from benchmarks.mapping.naive import naive

ROOT = Path(__file__).parents[2]

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@linux
def test_every_part_has_figures(tmp_path):
    command = [sys.executable, "-m", "benchmarks.mapper", "--pairs", "resnet", "--runs", "1", "--file-runs", "1"]
    options = ["--megabytes", "1", "--work", tmp_path, "--json", tmp_path / "figures.json"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "figures.json").read_text())
    [row] = results["pairs"]["developed on"]
    assert len(entries(results)) == 1 + 4
    assert row["modules"]["exact"] + row["modules"]["wrong"] + row["modules"]["missing"] == row["modules"]["wanted"]
    assert 0 < row["naive"]["right"] < row["naive"]["wanted"]
    assert [one["tensors"] for one in results["scaling"].values()] == [9 * depth + 3 for depth in (12, 24, 48)]
    assert results["buffer_modes"]["exclude"]["source"] == 161
    assert results["buffer_modes"]["strict"]["source"] == 320
    assert set(results["opening"]) == {".safetensors", ".pt"}
    assert [one["way"] for one in results["applying"]] == ["there", "back"] * 2
    assert all(one["is_exact"] and math.isfinite(one["seconds"]) for one in results["applying"])
    assert done.stdout.count("\n| --- |") == 7
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_naive_takes_the_likeliest_pair_of_equal_shape_first():
    source = {"a.weight": (2,), "b.weight": (2,), "c.weight": (3,)}
    target = {"x.a.weight": (2,), "x.c.weight": (2,), "c.weight": (4,)}
    assert naive(source, target) == {"x.a.weight": "a.weight", "x.c.weight": "b.weight"}


def test_random_words_are_the_same_everywhere_and_leave_numbers_and_last_parts():
    names = ["layers.0.attn.q.weight", "layers.10.attn.q.bias", "attn_norm1.gamma"]
    renamed = random_words(names, seed=0)
    one, two, three = (renamed[name].split(".") for name in names)
    assert (one[0], one[2], one[3]) == (two[0], two[2], two[3])
    assert (one[1], one[4], two[1], two[4]) == ("0", "weight", "10", "bias")
    assert three[0].startswith(f"{one[2]}_")
    assert three[0].endswith("1")
    assert three[1] != "gamma"
    assert random_words(names, seed=0) == renamed != random_words(names, seed=1)


def test_calibration_counts_every_score_once():
    bins = calibration([(0.3, False), (0.5, True), (0.9, True), (1.0, True)], (0.25, 0.5, 0.9))
    assert [(one["count"], one["right"]) for one in bins] == [(1, 0), (1, 1), (2, 2)]
