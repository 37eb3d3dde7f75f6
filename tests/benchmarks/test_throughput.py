"""The throughput benchmark itself, at its smallest size."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.history import entries

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the machine is read from /proc")


def test_every_model_has_figures(tmp_path):
    command = [sys.executable, "-m", "benchmarks.throughput", "--steps", "6", "--every", "2", "--runs", "1"]
    done = subprocess.run(
        [*command, "--json", tmp_path / "figures.json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "figures.json").read_text())
    rows = results["rows"]
    assert all(one["floor"] < one["wall"] for one in entries(results))
    assert set(rows) == {"small", "medium"}
    assert all(math.isfinite(figure) and figure > 0 for one in rows.values() for figure in one.values())
    printed = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(printed) == 2 + len(rows)
