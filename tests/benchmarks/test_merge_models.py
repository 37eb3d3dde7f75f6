"""The merge benchmark itself, at its smallest size and without the peer."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.history import entries

ROOT = Path(__file__).parents[2]
FORMULAS = ["linear", "linear of 4", "task arithmetic", "ties", "dare linear", "slerp", "model stock"]
MERGES = [*FORMULAS, "dare ties", "breadcrumbs", "sce", "della"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    work = tmp_path_factory.mktemp("bench")
    figures = work / "figures.json"
    command = [sys.executable, "-m", "benchmarks.merge_models", "--size", "tiny", "--no-peer", "--runs", "1"]
    done = subprocess.run(
        [*command, "--work", work, "--json", figures], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(figures.read_text()), done.stdout, work


def test_every_merge_has_figures(called):
    results, _, _ = called
    assert [one["subject"].rpartition(": ")[2] for one in entries(results)] == MERGES
    assert [row["merge"] for row in results["rows"]] == MERGES
    for one in [results["imports"]["ours"], *(row["ours"] for row in results["rows"])]:
        assert set(one) == {"wall", "cpu", "peak_rss", "peak_anonymous"}
        assert all(math.isfinite(value) and value > 0 for value in one.values())
        assert one["peak_anonymous"] < one["peak_rss"]
    assert all(row["floor"]["wall"] > 0 and "peer" not in row for row in results["rows"])


def test_every_merge_agrees_with_the_oracle(called):
    results, _, _ = called
    for row in results["rows"]:
        agreement = row["agreement"]["ours"]
        assert agreement["agrees"], row["merge"]
        assert 0 < agreement["rms"] <= agreement["max"]


def test_table_has_a_line_for_each_merge(called):
    _, printed, _ = called
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 3 + len(MERGES)


def test_models_stay_and_outputs_go(called):
    _, _, work = called
    assert {path.name for path in (work / "models-tiny").iterdir()} == {"base", *(f"tuned-{i}" for i in range(1, 5))}
    assert not list(work.glob("merged-*"))


def test_a_wrong_result_is_noticed(called):
    import torch

    from benchmarks import oracles
    from lit_wsl.state.reader import open_state
    from lit_wsl.state.writer import ShardedWriter

    _, _, work = called
    home = work / "models-tiny"
    base, tuned = home / "base", [home / f"tuned-{i}" for i in (1, 2, 3)]
    reader = open_state(base)
    wrong = work / "wrong"
    wrong.mkdir()
    with ShardedWriter(wrong, {name: reader.info(name) for name in reader.keys()}) as writer:
        for name in reader.keys():
            parts = [open_state(path).read(name).float() for path in tuned]
            writer.write(name, torch.stack(parts).mean(0).mul(1.01).bfloat16())
            writer.finish(name)
    assert not oracles.compare({"ours": wrong}, base, tuned, oracles.mean)["ours"]["agrees"]
