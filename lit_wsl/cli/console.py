"""The screen that commands print tables on."""

import sys

from rich.console import Console

PLAIN_WIDTH = 140
"""Columns where there is no terminal to ask."""


def table_console(*, markup: bool = True) -> Console:
    """A console as wide as the terminal, or wide enough for every table in a file."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=markup)
