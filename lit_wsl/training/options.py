"""Numbers that a data module is given."""

from lit_wsl.errors import ConfigError


def check_least(least: int, **options: int | None) -> None:
    """Refuse the first option below ``least``; one that is None was not given.

    Raises:
        ConfigError: If there is one.
    """
    for name, value in options.items():
        if value is not None and value < least:
            raise ConfigError(f"`{name} >= {least}` must hold, got {value}.")
