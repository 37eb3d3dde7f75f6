"""Entry point: find the command, import only what it needs, turn errors into one line and an exit code.

Exit codes: 0 done, 1 the work failed with a message, 2 wrong usage, 3 a model of another variant than asked for,
130 interrupted.
"""

import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lit_wsl import __version__
from lit_wsl.cli.commands import COMMANDS, TRAINER_COMMANDS, Command
from lit_wsl.cli.parser import CommandParser, normalise
from lit_wsl.errors import LitWslError, WrongUsage, did_you_mean, one_line


def entry() -> NoReturn:
    """Console script: run one command and end the process.

    A process that never imported Lightning has nothing to tear down, so it leaves without torch's clean-up.
    """
    code = run()
    sys.stdout.flush()
    sys.stderr.flush()
    if "lightning" not in sys.modules:
        os._exit(code)
    sys.exit(code)


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # `class_path: my_module.X` works from the project's folder
    _show_own_messages()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names in a file may hold what no terminal shows
    try:
        return _dispatch(arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has left
        return 1
    except (LitWslError, OSError, UnicodeDecodeError) as error:
        if debug:
            raise
        sys.stderr.write(_line(arguments, error))
        return error.exit_code if isinstance(error, LitWslError) else 1
    except KeyboardInterrupt:
        sys.stderr.write("lit-wsl: interrupted; the same command takes finished parts up again.\n")
        return 130


def _line(arguments: list[str], error: Exception) -> str:
    """The line that a command ends with; after wrong usage it names the command's help."""
    if not isinstance(error, WrongUsage):
        return f"lit-wsl: {one_line(_told(error))}\n"
    command, _ = _find(arguments)
    prog = f"lit-wsl {command.name if command else arguments[0]}"
    return f"{prog}: {one_line(str(error))} See `{prog} --help`.\n"


def _told(error: Exception) -> str:
    """What an error says, with a remedy for those that are not ours."""
    if isinstance(error, UnicodeDecodeError):
        return f"{error}; a file that should be text is not"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename} cannot be used ({error.strerror}); check the path and its permissions."
    return str(error)


class _CurrentStderr(logging.StreamHandler[Any]):
    """Writes to what ``sys.stderr`` is now, not to what it was when the handler was made."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        """The stream follows ``sys.stderr``; nothing to keep."""


def _show_own_messages() -> None:
    """Send lit_wsl's log to stderr as plain lines; other libraries keep their own ways."""
    logger = logging.getLogger("lit_wsl")
    if not logger.handlers:
        handler = _CurrentStderr()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        sys.stdout.write(f"lit-wsl {__version__}\n")
        return 0
    if arguments[0] in TRAINER_COMMANDS:
        from lit_wsl.cli.trainer import run_trainer

        return run_trainer([arguments[0], *normalise(arguments[1:])])
    command, rest = _find(arguments)
    if command is None and _is_group(arguments):
        sys.stdout.write(_overview(f"{arguments[0]} "))
        return 0 if len(arguments) > 1 else 2
    if command is None:
        words = [*TRAINER_COMMANDS, *COMMANDS]
        typed = " ".join(a for a in arguments[:2] if not a.startswith("-"))
        sys.stderr.write(f"lit-wsl: no command {typed!r}. {did_you_mean(typed, words)} See `lit-wsl --help`.\n")
        return 2
    return _run_plain(command, rest)


def _find(arguments: list[str]) -> tuple[Command | None, list[str]]:
    """The command named by the first two words, or by the first."""
    for count in (2, 1):
        command = COMMANDS.get(" ".join(arguments[:count]))
        if command is not None and len(arguments) >= count:
            return command, arguments[count:]
    return None, arguments


def _is_group(arguments: list[str]) -> bool:
    """Whether the first word of some commands stands alone, or before a wish for help."""
    is_asking = set(arguments[1:]) <= {"-h", "--help"}
    return is_asking and any(name.startswith(f"{arguments[0]} ") for name in COMMANDS)


def _run_plain(command: Command, arguments: list[str]) -> int:
    parser = CommandParser(prog=f"lit-wsl {command.name}", description=command.summary)
    command.configure(parser)
    try:
        options = parser.parse_args(normalise(arguments))
    except SystemExit as leaving:  # argparse leaves after --help, --print_config and wrong usage
        return int(leaving.code or 0)
    return command.run(options)


def _overview(group: str = "") -> str:
    """Usage and a line for each command whose name begins so."""
    known = TRAINER_COMMANDS | {name: command.summary for name, command in COMMANDS.items()}
    rows = {name: summary for name, summary in known.items() if name.startswith(group)}
    width = max(map(len, rows))
    lines = [f"  {name:{width}}  {text}" for name, text in rows.items()]
    return (
        f"usage: lit-wsl {group}COMMAND [options]\n\n"
        "Train, checkpoint, compare, map and merge model weights on PyTorch Lightning.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "`lit-wsl COMMAND --help` shows a command's options; `--debug` shows where an error came from.\n"
    )
