"""The peers' own environments, so that their pins never meet those of this library."""

import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
MERGEKIT = ["mergekit==0.1.4", "pydantic==2.10.6", "transformers==5.12.1"]
MERGEKIT_IMPORTS = "import mergekit.scripts.run_yaml"
MERGEKIT_YAML = """
import torch
import mergekit.architecture.base as architecture
from mergekit.scripts.run_yaml import main
for model in (architecture.ConfiguredModuleArchitecture, architecture.ConfiguredModelArchitecture):
    model.model_rebuild(_types_namespace={**vars(architecture), "torch": torch})
main()
"""
"""What ``mergekit-yaml`` runs, after completing two types that the configurations of transformers 5 leave open."""


def peer_environment(directory: Path, packages: list[str], check: str) -> Path:
    """Python of a virtual environment with these packages; built once, then reused.

    Torch comes first and alone: whatever the other packages ask for, it must stay the version that we run.

    Args:
        directory: Where the environment lives.
        packages: Pinned requirements.
        check: Statement that must run in it.

    Raises:
        RuntimeError: If a package moved torch.
    """
    python = directory / "bin" / "python"
    ready = directory / ".ready"
    wanted = "\n".join([TORCH, *packages])
    if ready.exists() and ready.read_text() == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
    install = [python, "-m", "pip", "install", "-qq"]
    subprocess.run([*install, TORCH], check=True)
    subprocess.run([*install, *packages], check=True)
    version = "import torch; print(torch.__version__.partition('+')[0])"
    found = subprocess.run([python, "-c", f"{check}\n{version}"], check=True, capture_output=True, text=True)
    if f"torch=={found.stdout.split()[-1]}" != TORCH:
        raise RuntimeError(f"The peer runs torch {found.stdout.strip()}, expected {TORCH}; pin its packages lower.")
    ready.write_text(wanted)
    return python
