"""Run one command on bad input, and see that it ends with a code and a line, and leaves the world as it was."""

import contextlib
import io
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_wsl.cli.main import run
from lit_wsl.errors import LitWslError

COMPUTING = 30.0
"""Seconds of the processor, whatever else the machine does: a case takes milliseconds, a short training one second."""
WAITING = 400.0
"""Seconds of the clock, for what waits and does not compute."""
LONGEST = 6000
"""Letters of a message; some names here have 5000."""
ONE_LINE_A_TENSOR = ("compare", "extract-lora")
"""Commands that go on after a tensor that cannot be read, and name each such tensor."""
MEMORY = 4 << 30
"""What one case may take beyond what the process has; no input here is larger than a megabyte."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_TOUCHES = {"os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.chmod": 0}
_RUNS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.getaddrinfo")


class Hung(BaseException):
    """A case took too long; no ``except Exception`` may catch it."""


class _Audit:
    """Notes what the interpreter does while a case runs; Python has no way to take an audit hook off again."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] | None = None
        self.faults: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event in _RUNS:
            self.faults.append(f"{event}{arguments!r:.200}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            self._check(event, arguments[0])
        elif event in _TOUCHES and not (event == "os.mkdir" and Path(arguments[0]).is_dir()):
            folder = arguments[-1] if event in ("os.remove", "os.rmdir") else -1
            self._check(event, arguments[_TOUCHES[event]], folder)

    def _check(self, event: str, path: object, folder: int = -1) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a file that is open already
        start = Path.cwd() if folder < 0 else Path(f"/proc/self/fd/{folder}").resolve()
        whole = os.path.normpath(start / os.fsdecode(path))
        if whole != os.devnull and "__pycache__" not in whole and not whole.startswith(self.allowed or ()):
            self.faults.append(f"{event} {whole!r}")


_audit: list[_Audit] = []


@dataclass
class Watch:
    """One room for all cases of a kind: ``root/work`` is the current directory, ``root/home`` the user's home.

    Only paths under ``work`` that begin with ``out`` may be written.
    """

    root: Path
    """Also holds the inputs; what lies in its folder ``before`` is in the current directory of every command."""
    count: int = 0
    """Cases that were tried."""

    def command(self, argv: Sequence[object]) -> int:
        """Run a command and return its exit code; any other end is a failure of the test."""
        argv = [str(one) for one in argv]
        with self._guarded(f"lit-wsl {' '.join(argv)}") as (out, err):
            code = run(argv)
        told = err.text()
        assert code in (0, 1, 2, 3), (code, argv)
        assert "Traceback" not in told + out.text(), told
        if code:
            own = [line for line in told.split("\n") if line.startswith("lit-wsl")]
            most = len(set(own)) if argv[0] in ONE_LINE_A_TENSOR else 1
            assert 1 <= len(own) <= most, (code, argv, told[-2000:])
            assert all(line.isprintable() and len(line) < LONGEST for line in own), own
        if code == 2 or "--dry_run" in argv:
            assert self.outputs() == listed(self.root / "before"), "wrong usage leaves nothing"
        return code

    def outputs(self) -> list[str]:
        """What there is after a command."""
        return listed(self.root / "work")

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function of the library: it returns, or raises an error that is meant for the user."""
        where = f"{function.__module__}.{function.__qualname__}{arguments!r:.300}"
        with self._guarded(where), contextlib.suppress(LitWslError):
            function(*arguments)

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Iterator[tuple["_Stream", "_Stream"]]:
        self.count += 1
        work = self.root / "work"
        shutil.rmtree(work, ignore_errors=True)
        for folder in (work, self.root / "home"):
            folder.mkdir(exist_ok=True)
        if (self.root / "before").exists():
            shutil.copytree(self.root / "before", work, symlinks=True, dirs_exist_ok=True)
        out, err = _Stream(errors="strict"), _Stream(errors="backslashreplace")
        before = listing(self.root)
        with contextlib.chdir(work), _environment(HOME=str(self.root / "home")):
            streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
            with streams[0], streams[1], _audited(f"{work}/out") as faults, _limited():
                try:
                    yield out, err
                except Hung:
                    raise AssertionError(f"{what} hangs: {_last_frames()}") from None
                except Exception as error:
                    raise AssertionError(f"{what} ends with a traceback: {error!r}: {_last_frames()}") from error
        assert not faults, (what, faults)
        after = listing(self.root)
        assert after == before, (what, set(after.items()) ^ set(before.items()))


def listed(folder: Path) -> list[str]:
    """Outputs, whole or not, that stand in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.glob("out*"))


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Every path under a folder, outputs aside, with its size and time of change."""
    found = {}
    for folder, _, files in os.walk(root):
        if folder.startswith(f"{root}/work/out"):
            continue
        for name in files:
            if not f"{folder}/{name}".startswith(f"{root}/work/out"):
                status = os.lstat(f"{folder}/{name}")
                found[f"{folder}/{name}"] = (status.st_size, status.st_mtime_ns)
        if not folder.startswith(f"{root}/work"):
            found[folder] = (0, 0)
    return found


class _Stream(io.TextIOWrapper):
    """Text that is encoded as a terminal's is."""

    def __init__(self, errors: str) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)

    def text(self) -> str:
        return self.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]


@contextlib.contextmanager
def _audited(allowed: str) -> Iterator[list[str]]:
    if not _audit:
        _audit.append(_Audit())
    audit = _audit[0]
    audit.allowed, audit.faults = (allowed,), []
    try:
        yield audit.faults
    finally:
        audit.allowed = None


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """A limit on the time of the processor, on that of the clock, and on memory."""

    def late(*_: object) -> None:
        raise Hung

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, COMPUTING), (signal.SIGALRM, signal.ITIMER_REAL, WAITING))
    former = [signal.signal(number, late) for number, _, _ in timers]
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for _, timer, _ in timers:
            signal.setitimer(timer, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for (number, _, _), handler in zip(timers, former, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    former = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _last_frames() -> str:
    return "".join(traceback.format_tb(sys.exc_info()[2])[-4:])
