"""Completion as a shell does it: the printed script runs in bash."""

import shutil
import subprocess

import pytest

from lit_wsl.cli.commands import COMMANDS, TRAINER_COMMANDS
from lit_wsl.cli.main import run

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert run(["completion", "bash"]) == 0
    path = tmp_path_factory.mktemp("completion") / "lit-wsl.bash"
    path.write_text(printed.getvalue())
    return path


def complete(script, *words, folder=None):
    """What bash offers for the last of the words."""
    listed = " ".join(f"'{word}'" for word in ("lit-wsl", *words))
    code = f"source '{script}'; COMP_WORDS=({listed}); COMP_CWORD={len(words)}; _lit_wsl"
    show = "printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", f"{code}; {show}"], capture_output=True, text=True, check=True, cwd=folder)
    return set(done.stdout.split())


def test_the_first_word_is_a_command(script):
    assert complete(script, "") == {name.split()[0] for name in (*COMMANDS, *TRAINER_COMMANDS)}
    assert complete(script, "me") == {"merge", "merge-sweep"}


def test_a_group_offers_its_commands(script):
    assert complete(script, "inspect", "") == {name.split()[1] for name in COMMANDS if name.startswith("inspect ")}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("merge", "--meth"), {"--method", "--method_params"}),
        (("export", "last.ckpt", "--form"), {"--format"}),
        (("inspect", "checkpoint", "x", "--js"), {"--json"}),
        (("fit", "--config", "a.yaml", "--trainer.max_ep"), {"--trainer.max_epochs"}),
        (("fit", "--ckpt"), {"--ckpt_path"}),
        (("--debug", "fit", "--ckpt"), {"--ckpt_path"}),
        (("gather", "--kin"), {"--kind"}),
        (("gather", "--outp"), {"--output"}),
        (("gather", "--datam"), set()),
        (("nonsense", "--x"), set()),
    ],
)
def test_a_command_offers_its_options(script, words, offered):
    assert complete(script, *words) == offered


def test_other_words_are_files(script, tmp_path):
    (tmp_path / "train.yaml").write_text("")
    assert complete(script, "fit", "--config", "tr", folder=tmp_path) == {"train.yaml"}


def test_zsh_gets_the_same_with_its_own_beginning(capsys):
    assert run(["completion", "zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out
    assert run(["completion", "fish"]) == 2
