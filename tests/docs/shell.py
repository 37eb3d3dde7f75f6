"""Shell blocks: bash reads them, the commands of this project run in the process of the test.

bash finds stand-ins for ``lit-wsl`` and ``python`` first on its path. They send their words through a socket to the
test, which runs the command and sends back what it printed and its exit code. So loops, pipes and ``&&`` are bash's,
and nothing is imported twice.
"""

import io
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from lit_wsl.cli.main import run

_CLIENT = """#!{python} -IS
import json, os, socket, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "python" and words[:1] != ["-m"]:
    os.execv({python!r}, [{python!r}, *words])
with socket.socket(socket.AF_UNIX) as line:
    line.connect({address!r})
    line.sendall(json.dumps([name, os.getcwd(), words]).encode() + b"\\n")
    out, err, code = json.loads(line.makefile().readline())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""
_QUICK = {"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1}
_TRAINER_COMMANDS = ("fit", "test", "validate", "gather")


def quick(words: list[str]) -> list[str]:
    """A trainer command as it stands, with few batches."""
    if not words or words[0] not in _TRAINER_COMMANDS:
        return words
    limits = [f"--trainer.{name}={value}" for name, value in _QUICK.items()]
    return [*words, *limits, "--trainer.enable_progress_bar=false"]


class Shell:
    """Runs shell blocks in a folder; use it as a context manager."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._folder = folder
        self._scratch = scratch
        self._server = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> "Shell":
        self._short = tempfile.TemporaryDirectory(prefix="page")  # a socket's name has about a hundred letters at most
        address = Path(self._short.name) / "socket"
        self._server.bind(str(address))
        self._server.listen()
        self._server.settimeout(0.05)
        for name in ("lit-wsl", "python"):
            client = self._scratch / name
            client.write_text(_CLIENT.format(python=sys.executable, address=str(address)))
            client.chmod(0o755)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._short.cleanup()

    def run(self, text: str) -> tuple[int, str]:
        """Exit code and output of a block, which ends at its first failure."""
        path = os.pathsep.join([str(self._scratch), str(Path(sys.executable).parent), os.environ["PATH"]])
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self._folder,
            env=os.environ | {"PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        printed: list[str] = []
        reader = threading.Thread(target=lambda: printed.append(process.stdout.read()))
        reader.start()
        while process.poll() is None:
            try:
                line, _ = self._server.accept()
            except TimeoutError:
                continue
            with line:
                _serve(line)
        reader.join()
        return process.returncode, printed[0]


def _serve(line: socket.socket) -> None:
    line.settimeout(None)
    name, folder, words = json.loads(line.makefile().readline())
    code, out, err = captured(lambda: _lit_wsl(words) if name == "lit-wsl" else _module(words), Path(folder))
    line.sendall(json.dumps([out, err, code]).encode() + b"\n")


def captured(work: Callable[[], int], folder: Path) -> tuple[int, str, str]:
    """Exit code, output and messages of work in a folder."""
    out, err = io.StringIO(), io.StringIO()
    with chdir(folder), redirect_stdout(out), redirect_stderr(err):
        code = work()
    return code, out.getvalue(), err.getvalue()


def _lit_wsl(words: list[str]) -> int:
    try:
        return run(quick(words))
    except SystemExit as leaving:
        return int(leaving.code or 0)


def _module(words: list[str]) -> int:
    try:
        with mock.patch.object(sys, "argv", words[1:]):
            runpy.run_module(words[1], run_name="__main__")
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0
