"""Where a study lives, whose turn it is to change it, and which of its workers are alive."""

import fcntl
import hashlib
import os
import platform
import re
import signal
import threading
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from lit_wsl.errors import CheckpointError, ConfigError

FILE = "study.db"
_SQLITE = "sqlite:///"
_BUSY_SECONDS = 60
"""How long a process waits for another one's write to the database."""


@dataclass(frozen=True)
class Place:
    """Where a study lives.

    Args:
        url: A database's URL, or a journal's path.
        beside: Path that lock files stand beside: the file of the study, or one in the sweep's directory.
        is_journal: Whether it is a journal, which several machines may write over one file system.
        is_shared: Whether every process sees the lock files.
    """

    url: str
    beside: Path
    is_journal: bool
    is_shared: bool

    def open(self) -> BaseStorage:
        """Open the storage, made if it is not there.

        Raises:
            CheckpointError: If it cannot be read or made.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                if self.is_journal:
                    return JournalStorage(JournalFileBackend(self.url))
                arguments = {"timeout": _BUSY_SECONDS} if self.url.startswith("sqlite:") else {}
                return RDBStorage(self.url, engine_kwargs={"connect_args": arguments})
            except Exception as error:  # noqa: BLE001  # every driver has errors of its own
                raise CheckpointError(
                    f"The study at {self} cannot be opened ({' '.join(str(error).split())[:200]}); "
                    "check `search.storage`, or move a damaged file."
                ) from error

    def __str__(self) -> str:
        return without_password(self.url)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The right to ask for a point or to tell of one, held by one process at a time.

        Nobody needs to clean up after a killed process: the right ends with it.
        """
        with self.beside.with_name(f"{self.beside.name}.turn").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with interrupts_deferred():
                yield

    @contextmanager
    def worker(self) -> Iterator[str]:
        """A name for this process; as long as the block lasts :meth:`is_alive` knows it."""
        folder = self._workers
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{_host()}.{os.getpid()}.{uuid.uuid4().hex[:6]}"
        path = folder / name
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield name
            finally:
                path.unlink(missing_ok=True)

    def is_alive(self, worker: str | None) -> bool:
        """Whether the process of that name still runs; those of other machines count as alive where nobody can know."""
        if worker is None:
            return False
        path = self._workers / worker
        try:
            with path.open("r+") as file:
                return not _free(file)
        except FileNotFoundError:
            return not self.is_shared and not worker.startswith(f"{_host()}.")

    @property
    def _workers(self) -> Path:
        return self.beside.with_name(f"{self.beside.name}.workers")


def without_password(url: str) -> str:
    """The URL of a database for all to see: without its user and password."""
    return re.sub(r"//[^@/]*@", "//", url)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block: half a change would damage what others rely on."""
    if threading.current_thread() is not threading.main_thread():  # Python interrupts the main thread alone
        yield
        return
    earlier, waiting = signal.getsignal(signal.SIGINT), []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)
    if waiting and callable(earlier):
        earlier(*waiting[0])


def _host() -> str:
    return re.sub(r"\W", "-", platform.node()) or "host"


def _free(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def place_of(storage: str | None, directory: Path) -> Place:
    """Where the study of a sweep lives.

    Args:
        storage: None for a file in the sweep's directory, `journal` for a journal there, a path (a journal where it
            ends in `.journal` or `.log`), or a database's URL.
        directory: The sweep's directory; it is made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be made ({error.strerror}); choose another `output_dir`.") from error
    given = storage or FILE
    given = "study.journal" if given == "journal" else given
    if "://" in given and not given.startswith(_SQLITE):
        name = hashlib.sha256(given.encode()).hexdigest()[:8]
        return Place(given, directory / f"study-{name}", is_journal=False, is_shared=False)
    path = Path(given.removeprefix(_SQLITE)).expanduser()
    path = directory / path if storage in (None, "journal") else path
    if path.is_dir():
        raise ConfigError(f"`search.storage` is the directory {path}; name a file, such as {path / FILE}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".journal", ".log"):
        return Place(str(path), path, is_journal=True, is_shared=True)
    return Place(f"{_SQLITE}{path.absolute()}", path, is_journal=False, is_shared=True)
