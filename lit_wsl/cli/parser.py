"""One parser for every plain command: `-` and `_` alike, one-line errors, the nearest name on a typo."""

import re
import sys
from argparse import Action, HelpFormatter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from lit_wsl.cli.yaml_values import bound_yaml
from lit_wsl.errors import one_line

set_parsing_settings(docstring_parse_attribute_docstrings=True)
bound_yaml()

_UNKNOWN = re.compile(r"(?:[Uu]nrecognized arguments: --|Option '|[Kk]ey ')([\w.]+)")


class OneLineErrors(ArgumentParser):
    """A parser that reports wrong usage in one line, with the nearest option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong in one line and leave with code 2; a parser inside of another leaves that to the outer."""
        if not self.exit_on_error:
            super().error(message, ex)
        text = " ".join(line.strip() for line in str(message).splitlines() if line.strip())
        unknown = _UNKNOWN.search(text)
        if unknown:
            near = get_close_matches(unknown[1], self._option_names(), n=1)
            text = f"there is no option {unknown[1]!r}." + (f" Did you mean {near[0]!r}?" if near else "")
        sys.stderr.write(f"{self.prog}: {one_line(text)} See `{self.prog} --help`.\n")
        raise SystemExit(2)

    def _option_names(self) -> set[str]:
        return {a.dest for a in self._actions if a.option_strings}


class ConfigFile(ActionConfigFile):
    """Reads a configuration, which may be that of another program."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        """Take the options of a file into the namespace."""
        _check_yaml(value)
        translate = getattr(parser, "translate", None)
        translated = None if translate is None else translate(value)
        ActionConfigFile.apply_config(parser, cfg, dest, value if translated is None else translated)


def _check_yaml(value: str) -> None:
    """Refuse a configuration file on which the parser would break.

    Raises:
        TypeError: If it is one; the parser tells it as wrong usage.
    """
    file = Path(value).expanduser()
    if "\n" in value or not file.is_file():
        return
    import yaml

    from lit_wsl.state.yaml_text import read_yaml_documents

    try:
        read_yaml_documents(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise TypeError(f"{value} is no YAML ({error})") from error


class PlainHelp(DefaultHelpFormatter):
    """Help without the variables of the environment, whose names follow from those of the options."""

    def _format_action_invocation(self, action: Action) -> str:
        return HelpFormatter._format_action_invocation(self, action)


class CommandParser(OneLineErrors):
    """Parser of one command, with `--config`, `--print_config` and environment variables."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(env_prefix="LIT_WSL", default_env=True, formatter_class=PlainHelp, **kwargs)
        self.translate: Callable[[str], str | None] | None = None
        """Turns a configuration file of another program into YAML with these options; None for what is none."""
        self.add_argument("-c", "--config", action=ConfigFile, help="YAML file with these options")


def normalise(arguments: Sequence[str]) -> list[str]:
    """Spell options with ``_``: ``--method-params.drop-rate=0.5`` becomes ``--method_params.drop_rate=0.5``."""
    return [_normalised(a) if a.startswith("--") else a for a in arguments]


def _normalised(option: str) -> str:
    name, equals, value = option[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
