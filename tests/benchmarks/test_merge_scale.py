"""The benchmark of large models itself, at its smallest size."""

import json
import math
import sys

import pytest
import torch

from benchmarks import merge_scale
from benchmarks.history import entries
from benchmarks.large_models import SAMPLE, llama, nbytes, write_model
from lit_wsl.state.reader import open_state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def test_every_merge_of_both_sizes_has_figures(tmp_path, capsys):
    options = ["--size", "tiny", "--weights", "sparse", "--methods", "linear", "task arithmetic"]
    assert merge_scale.main([*options, "--work", str(tmp_path), "--json", str(tmp_path / "figures.json")]) == 0
    results = json.loads((tmp_path / "figures.json").read_text())
    rows = results["rows"]
    assert [one["wall"] for one in entries(results)] == [row["ours"]["wall"] for row in rows]
    assert [row["merge"] for row in rows] == ["linear", "task arithmetic"] * 2
    assert all(math.isfinite(value) and value > 0 for row in rows for value in row["ours"].values())
    assert rows[0]["gigabytes"] < rows[2]["gigabytes"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(rows)
    assert [path.name for path in (tmp_path / "scale").iterdir()] == ["last.log"], "models and outputs are removed"


def test_shapes_are_those_of_llama_2_7b():
    assert nbytes(llama(4096, 11008, 32, 32_000)) == 2 * 6_738_415_616


@pytest.mark.parametrize("sparse", [True, False])
def test_models_hold_random_weights_or_almost_nothing(tmp_path, sparse):
    shapes = {"matrix": (600, 1000), "norm": (500,)}
    path = write_model(tmp_path / "model.safetensors", shapes, 1, sparse=sparse)
    state = open_state(path)
    assert state.read("norm").std().item() == pytest.approx(0.03, rel=0.2)
    matrix = state.read("matrix").view(-1)
    assert matrix[:SAMPLE].std().item() == pytest.approx(0.03, rel=0.2)
    assert torch.any(matrix[SAMPLE:] != 0) == (not sparse)
    assert (path.stat().st_blocks * 512 < 100_000) == sparse


def test_a_wrong_entry_is_noticed(tmp_path):
    shapes = {"w": (10, 10)}
    files = [write_model(tmp_path / f"{seed}.safetensors", shapes, seed, sparse=False) for seed in range(3)]
    merge = merge_scale.MERGES["linear"]
    assert not merge_scale._agrees(merge, files[0], files[0], files[1:])
    assert merge_scale._agrees(merge, files[1], files[0], [files[1], files[1]])
