"""Options and files of options, which every parser reads as YAML by a library in C that has no bound of its own."""

import yaml
from jsonargparse import get_loader, set_loader

from lit_wsl.state.yaml_text import check_yaml_size


def bound_yaml() -> None:
    """Let the parsers refuse what is nested too deeply, which would end the process, and bombs of aliases."""
    load = get_loader("yaml")

    def load_bounded(text: str) -> object:
        check_yaml_size(text)
        return load(text)

    set_loader("yaml", load_bounded, (yaml.YAMLError,))
