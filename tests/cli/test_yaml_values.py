"""What the parsers read as YAML."""

import pytest

from lit_wsl.cli.main import run
from tests.state.test_yaml_text import BOMB

DEEP = "[" * 100_000


@pytest.mark.parametrize("text", [DEEP, BOMB, '{"a":' * 100_000], ids=["lists", "aliases", "mappings"])
@pytest.mark.parametrize("command", ["fit", "merge", "merge-sweep"])
def test_files_that_would_end_the_process_are_wrong_usage(tmp_path, capsys, command, text):
    file = tmp_path / "options.yaml"
    file.write_text(text)
    assert run([command, "--config", str(file)]) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_so_are_files_that_an_option_names(tmp_path, capsys):
    file = tmp_path / "model.yaml"
    file.write_text(f"class_path: SequenceClassificationModule\ninit_args: {DEEP}")
    assert run(["fit", "--model", str(file)]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--model.labels", "--model", "--trainer.callbacks", "--seed_everything"])
@pytest.mark.parametrize("text", [DEEP, "- " * 100_000 + "a"], ids=["brackets", "dashes"])
def test_so_are_options(capsys, option, text):
    assert run(["fit", option, text]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert len(told) < 3000


def test_so_are_texts_in_a_file(tmp_path, capsys):
    """A text in quotes is read once more, as an option is."""
    file = tmp_path / "options.yaml"
    file.write_text(f"model:\n  class_path: SequenceClassificationModule\n  init_args: {{labels: '{DEEP}'}}")
    assert run(["fit", "--config", str(file)]) == 2
    assert "Traceback" not in capsys.readouterr().err
