"""The checkpoint benchmark itself, at its smallest size."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.history import entries

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def test_every_work_has_figures(tmp_path):
    command = [sys.executable, "-m", "benchmarks.checkpoint", "--size", "tiny", "--runs", "2", "--work", tmp_path]
    done = subprocess.run(
        [*command, "--json", tmp_path / "figures.json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "figures.json").read_text())
    rows = results["rows"]
    assert [one["peer"] for one in entries(results)] == ["torch.save of the same bytes", *["torch.load"] * 2]
    assert all(math.isfinite(one["wall"]) and one["wall"] > 0 for one in rows.values())
    sizes = [rows[f"universal, side-car {kind}"]["file_bytes"] for kind in ("none", "factors", "exact")]
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    printed = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(printed) == 2 + len(rows)
