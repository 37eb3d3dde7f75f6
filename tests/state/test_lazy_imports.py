"""Importing the package, reading a spec, or asking for help loads no heavy library."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "lightning", "transformers", "peft", "optuna", "matplotlib")


def loaded_after(code):
    show = f"import sys; print(' '.join(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    "code",
    [
        "import lit_wsl",
        "import lit_wsl.merging.spec; lit_wsl.merging.spec.MergeSpec(adapters=['x'])",
        "import lit_wsl.errors, lit_wsl.merging",
        "from lit_wsl.cli.main import run; run(['merge', '--help'])",
        "from lit_wsl.cli.main import run; run(['--help']); run(['--version']); run(['marge'])",
        "from lit_wsl.cli.main import run; run(['merge', '--adpaters', 'x'])",
    ],
)
def test_nothing_heavy_is_loaded(code):
    assert loaded_after(code) == []


def test_a_merge_loads_torch_alone(tmp_path):
    code = f"""
from lit_wsl import merge
import torch
torch.save({{"w": torch.ones(3)}}, {str(tmp_path / "b.pt")!r})
merge(models=[{str(tmp_path / "b.pt")!r}], output={str(tmp_path / "out")!r})
"""
    assert loaded_after(code) == ["torch"]
