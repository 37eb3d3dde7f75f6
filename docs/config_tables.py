"""Tables of all options of a class or a command, read from the parser that takes them: nothing is written twice."""

import argparse
import inspect
import re
from pathlib import Path
from pydoc import locate
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule

import lit_wsl
from lit_wsl.cli import trainer
from lit_wsl.cli.commands import COMMANDS, TRAINER_COMMANDS
from lit_wsl.cli.parser import CommandParser
from lit_wsl.merging.config import MergeConfig

KINDS = {"Modules": LightningModule, "Data": LightningDataModule, "Callbacks": Callback}
"""What the trainer commands take by class."""
PAGES = {"MergeConfig": "merge_config.md#fields"}
"""Where the fields of a class stand, if not on the page of this name."""
FIELDS_MARK = re.compile(r"<!-- fields ([\w.]+) -->")
"""Where the page has the table of a class."""
LISTED = FIELDS_MARK.findall((Path(__file__).parent / "config_reference.md").read_text(encoding="utf-8"))
"""Classes that have a table under a heading of their name."""
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_OF_EVERY_COMMAND = ("help", "config", "print_config")
Row = tuple[str, str, str, str]
"""Name, type, default and description of an option, in Markdown."""


def class_table(path: str) -> str:
    """The fields of a dataclass, or the arguments of another class.

    Args:
        path: Its module and name, with dots between them.
    """
    return _table("field", class_rows(locate(path)))


def class_rows(cls: Any) -> list[Row]:
    """A row for each argument of a class."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, as_group=False)
    return [(name.removeprefix("--"), *rest) for name, *rest in parser_rows(parser)]


def trainer_classes() -> dict[str, list[type]]:
    """Classes of this package that the configuration of a training names, by what they are."""
    known = [*vars(trainer).values(), *(getattr(lit_wsl, name) for name in lit_wsl.__all__)]
    ours = {one for one in known if inspect.isclass(one) and _is_ours(one.__init__)}
    classes = {kind: [one for one in ours if issubclass(one, base)] for kind, base in KINDS.items()}
    return {kind: sorted(found, key=lambda one: one.__name__) for kind, found in classes.items()}


def _is_ours(made: Any) -> bool:
    return getattr(made, "__module__", "").startswith("lit_wsl.")


def trainer_sections() -> str:
    """A section for each of these classes."""
    parts = []
    for kind, classes in trainer_classes().items():
        parts.append(f"### {kind}")
        for cls in classes:
            law = _text((inspect.getdoc(cls) or "").splitlines()[0])
            parts += [f"#### {cls.__name__}", f"`{cls.__module__}.{cls.__name__}`: {law}"]
            parts.append(_table("argument", class_rows(cls)))
    return "\n\n".join(parts)


def command_sections() -> str:
    """A section for each command, without what it takes from a merge configuration word by word."""
    merging = {(name, text) for name, *_, text in class_rows(MergeConfig)}
    parts = []
    for command in COMMANDS.values():
        rows = command_rows(command.name)
        shared = [row for row in rows if (row[0].removeprefix("--"), row[3]) in merging]
        shared = shared if "--method_params" in [row[0] for row in shared] else []
        own = [row for row in rows if row not in shared]
        parts += [f"### lit-wsl {command.name}", f"To {command.summary}.", _table("option", own)]
        if shared:
            parts.append(f"Every other field of a [merge configuration]({PAGES['MergeConfig']}) is an option, too.")
    return "\n\n".join([*parts, *_trainer_commands()])


def command_rows(name: str) -> list[Row]:
    """A row for each option of a plain command."""
    parser = CommandParser(prog=name)
    COMMANDS[name].configure(parser)
    return parser_rows(parser)


def gather_rows() -> list[Row]:
    """A row for each option that ``gather`` has beside those of a training."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_method_arguments(trainer.Trainer, "gather", as_group=False, skip={"model", "datamodule"})
    return parser_rows(parser)


def _trainer_commands() -> list[str]:
    names = ", ".join(f"`{name}`" for name in TRAINER_COMMANDS)
    text = (
        "`--model` and `--data` take a class and its arguments, from the sections above or your own; `--trainer.NAME` "
        "is any argument of Lightning's `Trainer`; `--threads` are the CPU threads, `--ckpt_path` the checkpoint to "
        "take up. `gather` has these beside them:"
    )
    return [f"### {names}", text, _table("option", gather_rows())]


def parser_rows(parser: ArgumentParser) -> list[Row]:
    """A row for each option of a parser; an option that is a record has one row, and its fields their own table."""
    records = {one.dest: one.basetype for one in parser._actions if hasattr(one, "basetype")}
    rows = []
    for one in parser._actions:
        is_inside = one.dest.partition(".")[0] in records and one.dest not in records
        if one.dest in _OF_EVERY_COMMAND or one.dest.endswith(".help") or is_inside:
            continue
        text = parser.groups[one.dest].title if one.dest in records else one.help
        is_required = one.required and one.nargs != "*"
        default = "see there" if one.dest in records else "required" if is_required else told_default(one.default)
        rows.append((_spelt(one), told_type(records.get(one.dest) or _type_of(one)), default, _text(text)))
    return rows


def _spelt(action: argparse.Action) -> str:
    """A name as it is written: with dashes on the command line, plain where it is a place."""
    return next((option for option in action.option_strings if not option.endswith("+")), action.dest)


def _type_of(action: argparse.Action) -> Any:
    kind = getattr(action, "_typehint", None) or action.type or (bool if action.nargs == 0 else str)
    is_list = action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)
    return list[kind] if is_list else kind


def told_type(kind: Any) -> str:
    """A type as a reader of YAML sees it.

    Args:
        kind: An annotation.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(told_type, parts)))
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in parts)
    if kind is NoneType:
        return "null"
    if origin is None:
        return _told_class(kind)
    if origin is dict or "Mapping" in str(origin):
        return f"mapping of {told_type(parts[1])}" if parts and parts[1] is not Any else "mapping"
    if "Callable" in str(origin):
        return f"class or function that gives {told_type(parts[-1])}"
    return f"list of {told_type(parts[0])}"


def _told_class(kind: Any) -> str:
    plain = {str: "text", Path: "path", dict: "mapping", Any: "any"}
    if kind in plain:
        return plain[kind]
    name = getattr(kind, "__name__", str(kind))
    if name in PAGES or f"{kind.__module__}.{name}" in LISTED:
        return f"[{name}]({PAGES.get(name, f'#{name.lower()}')})"
    return name if kind.__module__ == "builtins" else f"`{name}`"


def told_default(value: Any) -> str:
    """A default as YAML has it; nothing for one that is empty.

    Args:
        value: It, or the class or function that makes it.
    """
    if value is None or value in ("", [], {}, ()) or value == argparse.SUPPRESS:
        return ""
    if inspect.isclass(value) or callable(value):
        return f"`{value.__name__}`"
    value = list(value) if isinstance(value, tuple) else value
    if not isinstance(value, str | int | float | list | dict):
        return f"`{value}`"
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]}`"


def _text(text: str | None) -> str:
    plain = _ROLE.sub(r"`\1`", " ".join((text or "").split()))
    return plain.replace("``", "`").replace("|", "\\|")


def _table(kind: str, rows: list[Row]) -> str:
    lines = [f"| `{name}` | {hint} | {default} | {text} |" for name, hint, default, text in rows]
    return "\n".join([f"| {kind} | type | default | what it is |", "|---|---|---|---|", *lines])
