"""Configurations of `merge` in all their forms, and the `migrate-config` command."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import yaml
from jsonargparse import ArgumentParser, Namespace

from lit_wsl.cli.mergekit_options import mergekit_options
from lit_wsl.cli.resources import shipped_config
from lit_wsl.errors import ConfigError
from lit_wsl.merging.config import MergeConfig, check_types, config_of
from lit_wsl.merging.spec import MergeSpec
from lit_wsl.state.yaml_text import read_yaml

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]
LISTS = {
    "adapters": "LoRA adapter directories in PEFT layout, or names of `tasks`.",
    "models": "Full fine-tuned models on the same base.",
    "deltas": "Saved task vectors.",
    "statistics": "Gathered statistics, one file per source, for methods that use data.",
    "include": "Merge only parameters that one of these patterns matches.",
    "exclude": "Leave parameters that one of these patterns matches as they are.",
    "eval_tasks": "Tasks to evaluate; default those of the sources.",
}
"""Fields of a configuration that take several words on the command line."""
DERIVED = ("eval_tasks", "split")
"""Fields whose default follows from others."""


def add_lists(parser: ArgumentParser) -> None:
    """Add the options that take several words."""
    for name, text in LISTS.items():
        parser.add_argument(f"--{name}", nargs="+", type=str, default=None if name in DERIVED else [], help=text)


def merge_options(config: str) -> str | None:
    """Options of ``lit-wsl merge`` as YAML, where a configuration is not written in just these; None where it is.

    Args:
        config: What ``--config`` was given: the path of a file, the name of a shipped one, or YAML itself.

    Raises:
        ConfigError: If the file asks for something that there is not.
    """
    shipped = shipped_config(config, "merge")
    file = shipped or Path(config).expanduser()
    if "\n" in config or not file.is_file():
        return None
    return mergekit_options(str(file)) or _own_options(file)


def _own_options(file: Path) -> str:
    """The options in a file of ours; text that is none is left to the parser, which says so."""
    from lit_wsl.merging.config_files import read_fields

    text = file.read_text(encoding="utf-8")
    try:
        content = read_yaml(text)
    except yaml.YAMLError:
        return str(file)
    if not isinstance(content, dict):
        return str(file)
    try:
        check_types(content)
    except ConfigError as error:
        raise TypeError(str(error)) from error  # what the parser tells as wrong usage
    if not {"grid", "lambda", "params", "tasks", "optimizer"} & content.keys():
        return str(file)
    with _told_warnings():
        fields = read_fields(file)
    if isinstance(fields.get("optimizer"), str):
        fields["optimizer"] = {"type": fields["optimizer"]}
    return yaml.safe_dump(fields, sort_keys=False)


def direct_merge(config: MergeConfig) -> MergeSpec:
    """The merge that a configuration describes; what it says of sweeps and evaluation is left aside.

    Raises:
        ConfigError: If its parameters have to be found first.
    """
    if config.optimizer is not None and config.optimizer.type != "none":
        raise ConfigError(
            f"`optimizer: {config.optimizer.type}` finds the parameters, which a direct merge does not do; "
            "give `method_params` and leave `optimizer` out."
        )
    return config.to_merge_spec()


@contextmanager
def _told_warnings() -> Iterator[None]:
    """Tell the user of a command what is deprecated, which Python shows to programmers alone."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeprecationWarning)
        yield
    for one in caught:
        logger.warning("%s", one.message)


def configure_migrate(parser: ArgumentParser) -> None:
    """Options of `migrate-config`."""
    parser.add_argument("old", type=str, help="A merge or sweep configuration in a former form.")
    parser.add_argument("--output", type=str, required=True, help="YAML file to write.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier file, or the old one itself.")


def run_migrate(options: Namespace) -> int:
    """Write a configuration in its present form; what it says stays the same."""
    from lit_wsl.merging.config_files import read_mapping
    from lit_wsl.merging.migration import migrate
    from lit_wsl.state.publish import published_file

    target = Path(options.output).expanduser()
    if target.exists() and not options.overwrite:
        raise ConfigError(f"{target} exists; choose another `--output`, or pass `--overwrite`.")
    old = read_mapping(Path(options.old).expanduser())
    try:
        with _told_warnings():
            new = migrate(old)
        config_of(new)
    except ConfigError as error:
        raise ConfigError(f"{options.old}: {error}") from error
    with published_file(target) as partial:
        partial.write_text(yaml.safe_dump(new, sort_keys=False, allow_unicode=True), encoding="utf-8")
    sys.stdout.write(f"{target}: {'rewritten' if new != old else 'nothing to rewrite'}, method {new['method']}\n")
    return 0
