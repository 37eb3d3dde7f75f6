"""The command line: spelling, suggestions, exit codes, configuration files."""

import json
import logging
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_wsl.cli.commands import COMMANDS, Command
from lit_wsl.cli.main import TRAINER_COMMANDS, run
from lit_wsl.cli.parser import normalise
from lit_wsl.errors import CheckpointError, ConfigError
from tests.merging.build import random_states


@pytest.fixture
def states(tmp_path):
    return random_states(tmp_path, 2)


def arguments(states, output, *more):
    base, *tuned = states
    return ["merge", "--models", *tuned, "--base", base, "--output", str(output), *more]


def one_line(capsys, code, argv, *words):
    """The command ends with ``code`` and says every word in one line on the error stream."""
    capsys.readouterr()
    assert run(argv) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    for word in words:
        assert word in captured.err


def test_help_names_options_and_no_variables_of_the_environment(capsys):
    assert run(["merge", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--mismatch {error," in told
    assert "LIT_WSL_" not in told
    assert "ARG:" not in told


def test_underscore_and_hyphen_are_alike(states, tmp_path):
    params = ("--method", "ties", "--method_params.k", "30", "--shard_size", "1MB", "--merge_mode=strict")
    assert run(arguments(states, tmp_path / "a", *params)) == 0
    hyphens = [p.replace("_", "-") if p.startswith("--") else p for p in params]
    assert run(arguments(states, tmp_path / "b", *hyphens)) == 0
    one, other = ((tmp_path / d / "model.safetensors").read_bytes() for d in "ab")
    assert one == other
    assert json.loads((tmp_path / "b" / "merge_metadata.json").read_text())["method_params"]["k"] == 30


def test_only_names_of_options_are_respelt():
    given = ["--method-params.drop-rate=a-b", "a-b", "--output", "my-dir", "-c", "x-y", "--a-b", "--", "-1"]
    wanted = ["--method_params.drop_rate=a-b", "a-b", "--output", "my-dir", "-c", "x-y", "--a_b", "--", "-1"]
    assert normalise(given) == wanted


def test_a_method_may_be_spelt_with_hyphens(states, tmp_path):
    assert run(arguments(states, tmp_path / "out", "--method", "uniform-delta")) == 0


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["mrege"], 2, "Did you mean 'merge'?"),
        (["data", "prepair"], 2, "Did you mean 'data prepare'?"),
        (["fti"], 2, "Did you mean 'fit'?"),
        (["xyzzy"], 2, "Known: "),
        (["merge", "--adpaters", "x"], 2, "Did you mean 'adapters'?"),
        (["merge", "--out-put", "x"], 2, "Did you mean 'output'?"),
        (["merge", "--shard-sise=3GB"], 2, "Did you mean 'shard_size'?"),
        (["merge", "--merge_mode", "all"], 2, "merge_mode"),
        (["merge", "--rank", "two"], 2, "rank"),
        (["merge", "--threads", "0.5"], 2, "threads"),
        (["merge", "--method_params", "3"], 2, "method_params"),
        (["merge", "--output"], 2, "--output"),
        (["merge", "stray"], 2, "stray"),
        (["merge", "--models", "x", "--method", "tise"], 1, "Did you mean 'ties'?"),
        (["merge", "--models", "x", "--method", "ties", "--method_params.lamda", "1"], 1, "Did you mean 'lambda'?"),
        (["merge"], 1, "Nothing to merge"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_with_the_nearest_name(capsys, tmp_path, monkeypatch, argv, code, words):
    monkeypatch.chdir(tmp_path)
    more = ["--output", "out"] if code == 1 else []
    one_line(capsys, code, [*argv, *more], words)
    assert not (tmp_path / "out").exists()


def test_help_version_and_nothing(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lit-wsl 0.")
    for argv, code in ((["--help"], 0), (["-h"], 0), (["help"], 0), ([], 2)):
        assert run(argv) == code
        shown = capsys.readouterr().out
        for name in (*COMMANDS, *TRAINER_COMMANDS):
            assert f"  {name} " in shown
    assert run(["merge", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in ("--adapters", "--method_params", "--output_format", "--print_config", "Largest file of a model"):
        assert option in shown


def test_list_methods_shows_all_with_their_parameters(capsys):
    assert run(["merge", "--list-methods"]) == 0
    shown = capsys.readouterr().out
    for word in ("ties", "dare", "drop_rate=0.9", "lambda=1.0", "task_arithmetic", "uniform_delta"):
        assert word in shown


def test_a_configuration_file_equals_flags(states, tmp_path):
    base, *tuned = states
    config = {
        "models": tuned,
        "base": base,
        "method": "dare",
        "method_params": {"drop_rate": 0.5, "seed": 3},
        "output": str(tmp_path / "a"),
    }
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(config))
    assert run(["merge", "--config", str(tmp_path / "merge.yaml")]) == 0
    flags = ("--method", "dare", "--method_params.drop_rate", "0.5", "--method_params.seed", "3")
    assert run(arguments(states, tmp_path / "b", *flags)) == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert (
        run(["merge", "-c", str(tmp_path / "merge.yaml"), "--output", str(tmp_path / "c"), "--method_params.seed", "4"])
        == 0
    )
    metadata = json.loads((tmp_path / "c" / "merge_metadata.json").read_text())
    assert metadata["method_params"] == {"drop_rate": 0.5, "seed": 4, "lambda": 1.0}, "a flag behind the file wins"


def test_print_config_goes_round(capsys, states, tmp_path):
    argv = arguments(states, tmp_path / "out", "--method", "ties", "--method_params.k", "30", "--overwrite")
    assert run([*argv, "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert yaml.safe_load(printed)["method_params"] == {"k": 30}
    (tmp_path / "printed.yaml").write_text(printed)
    assert run(["merge", "--config", str(tmp_path / "printed.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    assert run(["merge", "--config", str(tmp_path / "printed.yaml")]) == 0
    assert run([*arguments(states, tmp_path / "flags"), *argv[len(arguments(states, "")) :]]) == 0
    one, other = (load_file(tmp_path / d / "model.safetensors") for d in ("out", "flags"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_environment_variables_set_options(states, tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_WSL_METHOD", "uniform_scalar_delta")
    assert run(arguments(states, tmp_path / "out")) == 0
    assert json.loads((tmp_path / "out" / "merge_metadata.json").read_text())["merge_method"] == "uniform_scalar_delta"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("k: [", "parsing"),
        ("adapterz: [a]", "Did you mean 'adapters'?"),
        ("- a\n- b", ""),
        ("just text", ""),
        ("rank: two", "rank"),
        ("\tmethod: x", ""),
        ("method: {a: 1}", "method"),
        ("models: 3", ""),
    ],
    ids=str,
)
def test_a_bad_configuration_file_is_one_line(capsys, tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    one_line(capsys, 2, ["merge", "--config", str(path)], words)


def test_a_missing_configuration_file_is_named(capsys, tmp_path):
    one_line(capsys, 2, ["merge", "--config", str(tmp_path / "none.yaml")], "none.yaml")


def test_debug_shows_where_an_error_came_from(states, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'ties'"):
        run([*arguments(states, tmp_path / "out", "--method", "tise"), "--debug"])
    with pytest.raises(CheckpointError):
        run(["--debug", "merge", "--adapters", str(tmp_path / "gone"), "--output", str(tmp_path / "out")])


def stand_in(monkeypatch, action):
    command = COMMANDS["merge"]
    monkeypatch.setitem(COMMANDS, "merge", Command("merge", command.summary, command.configure, action))


def test_an_interruption_ends_with_130(capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    stand_in(monkeypatch, interrupted)
    one_line(capsys, 130, ["merge"], "interrupted")


def test_an_error_of_the_system_names_the_file_and_a_remedy(capsys, monkeypatch):
    def failing(_):
        raise FileNotFoundError(2, "No such file or directory", "/no/such/folder/file")

    stand_in(monkeypatch, failing)
    one_line(capsys, 1, ["merge"], "/no/such/folder/file cannot be used (No such file or directory); check the path")


def test_a_message_of_several_lines_becomes_one(capsys, monkeypatch):
    def failing(_):
        raise ConfigError("first\n  second\n\nthird")

    stand_in(monkeypatch, failing)
    one_line(capsys, 1, ["merge"], "lit-wsl: first second third\n")


def test_a_fault_of_our_own_is_not_hidden(monkeypatch):
    def broken(_):
        raise ZeroDivisionError

    stand_in(monkeypatch, broken)
    with pytest.raises(ZeroDivisionError):
        run(["merge"])


def test_the_summary_says_what_was_done(capsys, caplog, states, tmp_path):
    caplog.set_level(logging.WARNING)
    assert run(arguments(states, tmp_path / "out")) == 0
    shown = capsys.readouterr().out
    assert shown == f"{tmp_path / 'out'}: model by uniform, 4 parameters merged\n"
    assert not caplog.records


def test_a_reader_that_leaves_is_no_traceback():
    code = "from lit_wsl.cli.main import run; import sys; sys.exit(run(['merge', '--list_methods']))"
    command = f'{sys.executable} -u -c "{code}" | head -c 1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_the_installed_script(tmp_path):
    from pathlib import Path

    script = Path(sys.executable).with_name("lit-wsl")
    if not script.exists():
        pytest.skip("the package is not installed")
    done = subprocess.run(
        [script, "merge", "--adapters", tmp_path / "x", "--output", "y"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_brackets_in_a_description_are_shown(capsys, monkeypatch):
    class Mean:
        """Mean of [tasks]."""

        def params(self):
            return {}

    monkeypatch.setattr("lit_wsl.cli.tables.all_methods", lambda: {"mean": Mean})
    assert run(["merge", "--list_methods"]) == 0
    assert "Mean of [tasks]." in capsys.readouterr().out


def test_wrong_usage_of_a_trainer_command_names_it(capsys):
    assert run(["validate"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("lit-wsl validate: ")
    assert "See `lit-wsl validate --help`." in told
