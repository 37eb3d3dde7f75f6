"""Fetches pinned archives from the package registry and keeps them in the cache."""

import hashlib
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

from lit_wsl.errors import DataError
from lit_wsl.training.tasks.task import Source

logger = logging.getLogger(__name__)


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_source(source: Source, directory: Path) -> Path:
    """Path of the source's archive in ``directory``, downloaded unless it is there already and whole.

    Raises:
        DataError: If the archive cannot be fetched or has other bytes than the pinned ones.
    """
    path = directory / source.filename
    if path.is_file():
        if file_sha256(path) == source.sha256:
            return path
        logger.warning("%s is damaged; downloading it again.", path)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-") as scratch:
        _download(source, Path(scratch)).replace(path)
    return path


def _download(source: Source, scratch: Path) -> Path:
    """Archive that pip downloads into ``scratch``; pip itself checks the hash."""
    logger.info("Fetching %s %s.", source.package, source.version)
    requirements = scratch / "requirements.txt"
    requirements.write_text(source.requirement + "\n", encoding="utf-8")
    done = subprocess.run(
        _pip_download(source, requirements, scratch),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    archive = scratch / source.filename
    if done.returncode != 0 or not archive.is_file():
        raise DataError(
            f"Could not fetch {source.package}=={source.version}: {_last_error(done.stderr)} "
            f"Go online, or put {source.filename} (sha256 {source.sha256}) into {scratch.parent}."
        )
    return archive


def _pip_download(source: Source, requirements: Path, target: Path) -> list[str]:
    kind = ["--only-binary", ":all:"] if source.filename.endswith(".whl") else ["--no-binary", source.package]
    return [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--require-hashes", *kind),
        *("--dest", str(target), "--requirement", str(requirements)),
    ]


def _last_error(stderr: str) -> str:
    """The last error line of pip, or its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    last = (errors or lines or ["pip gave no reason."])[-1]
    return last if last.endswith(".") else last + "."
