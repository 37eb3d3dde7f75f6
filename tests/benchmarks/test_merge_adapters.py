"""The benchmark of merging adapters itself, at its smallest size and without the peer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.adapters import oracles
from benchmarks.history import entries

ROOT = Path(__file__).parents[2]
MERGES = ["cat", "svd of 4 layers", "ties", "dare_linear of 4 layers"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    work = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "benchmarks.merge_adapters", "--size", "tiny", "--no-peer", "--runs", "1"]
    options = ["--methods", *MERGES, "--work", work, "--json", work / "figures.json"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((work / "figures.json").read_text()), done.stdout, work


def test_every_merge_has_figures_and_agrees(called):
    results, printed, _ = called
    assert [one["subject"].rpartition(": ")[2] for one in entries(results)] == MERGES
    assert [row["merge"] for row in results["rows"]] == MERGES
    for row in results["rows"]:
        assert all(value > 0 for value in row["ours"].values())
        assert row["agreement"]["ours"]["agrees"], row["merge"]
    exact, *cut = [row["agreement"]["ours"] for row in results["rows"]]
    assert exact["error"] < 1e-6
    assert all(0.1 < one["least"] <= one["error"] * (1 + 1e-6) < 1 for one in cut)
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 4 + len(MERGES)


def test_adapters_stay_and_outputs_go(called):
    _, _, work = called
    kept = {"models-tiny", "adapters-tiny", "adapters-tiny-few", "figures.json", "last.log"}
    assert {path.name for path in work.iterdir()} == kept


def test_a_wrong_result_is_noticed(called, tmp_path):
    _, _, work = called
    adapters = [work / "adapters-tiny-few" / f"task-{number}" for number in (1, 2, 3)]
    (tmp_path / "adapter_config.json").write_text((adapters[0] / "adapter_config.json").read_text())
    stored = load_file(adapters[0] / "adapter_model.safetensors")

    def report(factor):
        save_file({name: tensor * factor for name, tensor in stored.items()}, tmp_path / "adapter_model.safetensors")
        return oracles.compare({"ours": tmp_path}, adapters[:1], oracles.mean)["ours"]

    assert report(1.0)["agrees"]
    assert not report(1.001)["agrees"]
    assert report(0.0)["error"] == pytest.approx(1.0)


def test_oracles_of_known_updates():
    updates = torch.tensor([[[4.0, -3.0, 1.0, 0.0]], [[-1.0, -5.0, 2.0, 6.0]]], dtype=torch.float64)
    torch.testing.assert_close(oracles.ties(updates, "w", 0.5), torch.tensor([[4.0, -4.0, 0.0, 6.0]]).double())
    pruned = torch.tensor([[2.0, -4.0, 0.0, 3.0]]).double()
    torch.testing.assert_close(oracles.magnitude_prune(updates, "w", 0.5), pruned)
    torch.testing.assert_close(oracles.dare_linear(updates, "w", 1.0), updates.mean(0))
    agreeing = torch.tensor([[4.0, -4.0, 1.5, 6.0]]).double()
    torch.testing.assert_close(oracles.dare_ties(updates, "w", 1.0), agreeing)
