"""Configuration files that ship with the package."""

import re
from pathlib import Path

from lit_wsl.errors import ConfigError, WrongUsage, did_you_mean

_CONFIGS = "configs/"


def config_file(name: str) -> Path:
    """Path of a shipped configuration, such as ``train/lora_text.yaml``.

    Raises:
        ConfigError: If none of that name ships.
    """
    for root in _roots():
        if (root / name).is_file():
            return root / name
    raise ConfigError(f"No configuration {name!r} ships with lit_wsl; name a file.")


def _roots() -> tuple[Path, Path]:
    """Where configurations are: a wheel has the first, a checkout the second."""
    package = Path(__file__).resolve().parents[1]
    return package / "configs", package.parent / "configs"


def shipped_config(name: str, *folders: str) -> Path | None:
    """A shipped configuration by its name alone, such as ``merge_ties`` in ``merge``; None for a path.

    A file of that name in the working directory comes first: then, too, it is None.

    Raises:
        WrongUsage: If it is a mere word, and none of that name ships.
    """
    if not re.fullmatch(r"[\w-]+(\.yaml)?", name) or Path(name).is_file():
        return None
    known = {file.stem: file for root in reversed(_roots()) for one in folders for file in (root / one).glob("*.yaml")}
    file = known.get(name.removesuffix(".yaml"))
    if file is None and not name.endswith(".yaml"):
        raise WrongUsage(f"{name!r} is no file and does not ship. {did_you_mean(name, known)}")
    return file


def shipped_path(text: str) -> str:
    """A path as a shipped configuration writes it, ``configs/...``, where the working directory has no such file."""
    if not text.startswith(_CONFIGS) or Path(text).exists():
        return text
    files = [root / text.removeprefix(_CONFIGS) for root in _roots()]
    return next((str(file) for file in files if file.is_file()), text)
