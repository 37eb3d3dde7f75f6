"""Two processes: DDP, and FSDP2 with full and with sharded checkpoints."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lit_wsl
from tests.models.universal.build import adapted
from tests.training.build import Universal, train

ROOT = Path(__file__).parents[2]
KINDS = ("ddp", "full", "sharded")
RATE = 1e-2 * (1 + math.cos(math.pi * 4 / 20)) / 2
"""Learning rate of the cosine schedule after four steps."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of everything that two processes did, with the results of each."""
    folder = tmp_path_factory.mktemp("parallel")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.training.distributed", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [json.loads((folder / f"results{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["r16", "r32", "standard"])
def test_every_process_goes_on_from_the_same_function(runs, kind, name):
    for results in runs[1]:
        one = results[f"{kind} {name}"]
        assert one["error"] <= 2e-5
        assert one["steps"] == 4
        assert one["lr"] == pytest.approx(RATE)
        assert one["moments"] == (16 if name == "r16" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_configuration_is_exact_on_every_process(runs, kind):
    assert all(results[f"{kind} exact"] for results in runs[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_loads_into_the_plain_model(runs, kind):
    assert all(results[f"{kind} plain"] <= 2e-5 for results in runs[1])


@pytest.mark.parametrize("kind", KINDS)
def test_optimizer_state_is_restored_in_part(runs, kind):
    assert all(results[f"{kind} partial"] == 4 for results in runs[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_checkpoints_of_one_strategy_resume_in_another(runs, source, kind):
    for results in runs[1]:
        one = results[f"{source} to {kind}"]
        assert one["moments"] == 4
        assert one["losses"] == pytest.approx(results["ddp to ddp"]["losses"], rel=1e-4)


def test_nothing_but_the_checkpoints_is_left(runs):
    names = {path.name for path in runs[0].iterdir()}
    assert not [name for name in names if name.endswith((".partial", ".replaced"))]


def test_one_process_reads_a_sharded_checkpoint(runs, tmp_path):
    """The moments and weights of the same configuration go on in one process as they did in two."""
    module = Universal("r16")
    runner = train(tmp_path, module, epochs=2, ckpt_path=runs[0] / "sharded.ckpt")
    assert runner.global_step == 4 + 5
    assert len(module.optimizers().optimizer.state) == 16
    report = lit_wsl.load_universal(adapted("standard"), runs[0] / "sharded.ckpt")
    assert not report.missing
