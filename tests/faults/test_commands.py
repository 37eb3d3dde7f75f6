"""No command is forgotten: each is interrupted somewhere, or writes nothing."""

from lit_wsl.cli.commands import COMMANDS, TRAINER_COMMANDS
from tests.faults.test_interrupted import COMMANDS as INTERRUPTED
from tests.faults.test_interrupted_training import COMMANDS as TRAINING

ALONE = {"compare", "extract-lora"}
"""Commands with tests of their own in `test_interrupted.py`."""
ELSEWHERE = {"demo": "all of the others, one after another"}
WRITE_NOTHING = {
    "validate",
    "test",
    "predict",
    "inspect checkpoint",
    "inspect model",
    "inspect weights",
    "inspect data",
    "analyze",
    "runs list",
    "runs show",
    "runs best",
    "runs compare",
    "completion",
}


def test_every_command_is_interrupted_or_writes_nothing():
    here = {argv.split(" ")[0] for argv in INTERRUPTED.values()} | TRAINING.keys() | ALONE
    groups = (here, ELSEWHERE.keys(), WRITE_NOTHING)
    known = [name for group in groups for name in group]
    assert sorted(known) == sorted({*COMMANDS, *TRAINER_COMMANDS})
