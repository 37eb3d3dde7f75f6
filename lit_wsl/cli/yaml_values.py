"""Options and files of options, which every parser reads as YAML by a library in C that has no bound of its own."""

import yaml

from lit_wsl.state.yaml_text import bound_loader


def bound_yaml() -> None:
    """Let the parsers refuse what is nested too deeply, which would end the process, and bombs of aliases.

    A parser reads one text in several ways: as a file, as an option, as a part of either. All of them end in one class.
    """
    bound_loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader))
