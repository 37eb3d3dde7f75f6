"""The mutants that may survive, each with its reason: `survivors.json` holds a list per reason."""

import json
from functools import cache
from pathlib import Path

PATH = Path(__file__).with_name("survivors.json")


@cache
def reasons() -> dict[str, list[str]]:
    """Names of mutants by the reason for which no test can, or need, kill them."""
    return json.loads(PATH.read_text())


@cache
def excused() -> dict[str, str]:
    """The reason of each mutant."""
    return {name: reason for reason, names in reasons().items() for name in names}
