"""The comparison benchmark itself, at its smallest size and without the peer."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.compare import is_right
from benchmarks.comparing import naive
from benchmarks.comparing.exact import worst_error
from benchmarks.comparing.processes import in_turn
from benchmarks.comparing.variants import make_variants
from benchmarks.history import entries
from lit_wsl.state.reader import open_state

ROOT = Path(__file__).parents[2]

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    work = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "benchmarks.compare", "--size", "tiny", "--no-peer", "--runs", "1"]
    options = ["--work", work, "--json", work / "figures.json"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((work / "figures.json").read_text()), done.stdout, work


@linux
def test_every_part_has_figures(called):
    results, printed, _ = called
    rows = results["figures"]
    assert [one["subject"] for one in entries(results)] == [
        "compare tiny models: figures of every tensor",
        "extract rank 16 from tiny: merged LoRA",
        "extract rank 16 from tiny: dense",
    ]
    assert set(rows) == {"floor", "figures", "comparison", "naive"}
    assert rows["figures"]["worst_error"] < 1e-5
    assert all(math.isfinite(one["seconds"]) and one["seconds"] > 0 for one in rows.values())
    assert all(peak > 0 for row in results["memory"].values() for peak in row.values())
    assert printed.count("\n| --- |") == 4


@linux
def test_factors_are_as_good_as_those_of_a_full_decomposition(called):
    results, _, _ = called
    merged, dense = results["extraction"].values()
    assert all(row["worst"] == pytest.approx(1.0, abs=1e-4) for rows in (merged, dense) for row in rows.values())
    assert all(one["error"] < 0.1 < other["error"] for one, other in zip(merged.values(), dense.values(), strict=True))
    assert is_right(results)


@linux
def test_kinds_of_fine_tunes_are_told_apart(called):
    results, _, _ = called
    extracted = {kind: row["found"]["extracted"] for kind, row in results["kinds"].items()}
    assert extracted == {"identical": 0, "merged LoRA": 14, "dense": 0}


@linux
def test_outputs_are_only_those_of_the_last_program(called):
    _, _, work = called
    assert {path.name for path in work.iterdir()} == {"models-tiny", "compared", "figures.json", "last.log"}


def test_variants_hold_what_they_say(tmp_path):
    variants = make_variants(tmp_path, "tiny")
    base, same, merged = (open_state(path) for path in (variants.base, variants.identical, variants.merged))
    assert len(same.files()) > 1 == len(base.files())
    assert all(torch.equal(base.read(name), same.read(name)) for name in base.keys())
    changed = {name for name in base.keys() if not torch.equal(base.read(name), merged.read(name))}
    assert changed == {name for name in base.keys() if name.endswith("_proj.weight")}
    assert set(open_state(variants.half_base).keys()) < set(base.keys())


def test_a_missing_or_wrong_figure_is_an_error():
    exact = {"w": [1.0, 2.0]}
    assert worst_error({"w": [1.0, 2.2]}, exact) == pytest.approx(0.1)
    assert worst_error({}, exact) == math.inf


def test_naive_figures_of_known_tensors():
    found = naive.compare({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 4.5])})
    assert found["w"] == pytest.approx([0.25, 0.5, 0.1, 0.5])


def test_medians_of_times_and_peaks_of_memory():
    outcomes = iter([{"wall": 3.0, "peak_rss": 1}, {"wall": 1.0, "peak_rss": 5}, {"wall": 2.0, "peak_rss": 2}])
    assert in_turn({"one": lambda: next(outcomes)}, 3) == {"one": {"wall": 2.0, "peak_rss": 5}}


def test_wrong_figures_and_factors_are_noticed():
    good = {
        "figures": {"figures": {"worst_error": 1e-6}},
        "extraction": {"dense": {"lit-wsl, whole comparison": {"worst": 1.0}}},
    }
    assert is_right(good)
    assert not is_right(good | {"figures": {"figures": {"worst_error": 1e-2}}})
    assert not is_right(good | {"extraction": {"dense": {"lit-wsl, whole comparison": {"worst": 1.02}}}})
