"""`lit-wsl rename`: what it writes, what it shows, what it refuses."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_wsl.cli.main import run
from lit_wsl.mapper.renamer import WeightRenamer
from lit_wsl.state.operations import Transpose
from lit_wsl.state.remap import Entry, WeightMap, copies
from tests.cli.test_main import one_line


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(
        {"model.enc.weight": torch.randn(4, 3), "model.enc.bias": torch.randn(3), "head.weight": torch.ones(2)},
        "a.safetensors",
    )
    return tmp_path / "a.safetensors"


def test_all_renamings_in_their_order(capsys, file, tmp_path):
    argv = ["rename", "a.safetensors", "--output", "b.safetensors", "--map", "head.weight=model.lm.weight"]
    argv += ["--remove-prefix", "model.", "--replace", "enc", "encoder", "--add_prefix", "net."]
    assert run(argv) == 0
    assert capsys.readouterr().out == "b.safetensors: 3 tensors, 3 renamed\n"
    before, after = load_file(file), load_file(tmp_path / "b.safetensors")
    assert set(after) == {"net.lm.weight", "net.encoder.weight", "net.encoder.bias"}
    assert torch.equal(after["net.encoder.weight"], before["model.enc.weight"])


def test_map_files(capsys, file, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"head.weight": "a", "model.enc.bias": "b"}))
    assert run(["rename", "a.safetensors", "--map_file", "map.json", "--output", "b.safetensors"]) == 0
    assert set(load_file("b.safetensors")) == {"a", "b", "model.enc.weight"}
    copies([("head.weight", "c")]).save("map.json")
    assert run(["rename", "a.safetensors", "--map_file", "map.json", "--output", "c.safetensors"]) == 0
    assert "c" in load_file("c.safetensors")
    WeightMap((Entry(("head.weight",), ("c",), (Transpose(),)),)).save("map.json")
    argv = ["rename", "a.safetensors", "--map_file", "map.json", "--dry_run"]
    capsys.readouterr()
    one_line(capsys, 1, argv, "does more than rename, at c")


def test_list_and_dry_run_write_nothing(capsys, file, tmp_path):
    assert run(["rename", "a.safetensors", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split(maxsplit=2) == ["head.weight", "float32", "[2]"]
    assert run(["rename", "a.safetensors", "--remove_prefix", "model.", "--list", "^enc"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"enc.bias", "enc.weight"}
    assert run(["rename", "a.safetensors", "--remove_prefix", "model.", "--dry-run"]) == 0
    assert "model.enc.bias -> enc.bias" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_in_place(capsys, file):
    content = file.read_bytes()
    argv = ["rename", "a.safetensors", "--map", "head.weight=w", "--backup", "--output", "./a.safetensors"]
    one_line(capsys, 1, argv, "is the input", "--overwrite")
    assert run([*argv, "--overwrite"]) == 0
    assert "w" in load_file(file)
    WeightRenamer(file).restore_backup()
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["none.safetensors", "--add_prefix", "x."], "does not exist; check the path"),
        (["empty", "--add_prefix", "x."], "no weight file"),
        (["a.safetensors", "--map_file", "empty.json"], "holds no pair"),
        (["a.safetensors", "--map_file", "list.json"], "no object of old and new names"),
        (["a.safetensors", "--map_file", "cut.json"], "is no JSON"),
        (["a.safetensors", "--map_file", "none.json"], "cannot be read"),
        (["a.safetensors", "--map", "head.weigt=x"], "Did you mean 'head.weight'?"),
        (["a.safetensors", "--map", "head.weight=model.enc.bias"], "would both be named"),
        (["a.safetensors", "--remove_prefix", "modle."], "Did you mean 'model.' or 'model.enc.'?"),
        (["a.safetensors", "--replace", "zzz", "y"], "no name holds 'zzz'"),
        (["a.safetensors", "--add_prefix", "net"], "write 'net.'"),
        (["a.safetensors", "--list", "zzz"], "none of 3 names matches 'zzz'"),
        (["a.safetensors", "--list", "("], "no regular expression"),
        (["hostile.pt", "--add_prefix", "x."], "would run code"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(capsys, file, tmp_path, argv, words):
    (tmp_path / "empty").mkdir()
    for name, content in (("empty", "{}"), ("list", "[1]"), ("cut", '{"a')):
        (tmp_path / f"{name}.json").write_text(content)
    torch.save({"w": torch.ones(1), "x": print}, "hostile.pt")
    one_line(capsys, 1, ["rename", *argv, "--output", "out.safetensors"], words)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "Nothing to rename"),
        (["--map", "head.weight"], "write OLD=NEW"),
        (["--map", "a=b", "a=c"], "given two names"),
    ],
)
def test_wrong_usage_names_the_help_and_is_two(capsys, file, more, words):
    argv = ["rename", "a.safetensors", *more, "--output", "out.safetensors"]
    one_line(capsys, 2, argv, "lit-wsl rename: ", words, "See `lit-wsl rename --help`.")


def test_the_checkpoint_is_named(capsys, file):
    one_line(capsys, 2, ["rename"], "Name the checkpoint.")
    one_line(capsys, 2, ["rename", "--list", "a.safetensors"], "before `--list`, which took 'a.safetensors'")


def test_outputs_that_are_refused(capsys, file, tmp_path):
    (tmp_path / "b.safetensors").write_text("precious")
    argv = ["rename", "a.safetensors", "--add_prefix", "x."]
    one_line(capsys, 2, argv, "Nowhere to write")
    one_line(capsys, 1, [*argv, "--output", "b.safetensors"], "exists", "--overwrite")
    one_line(capsys, 1, [*argv, "--output", "b.pt"], "no safetensors")
    one_line(capsys, 1, [*argv, "--output", "a.safetensors/b.safetensors"], "cannot be used", "is a file")
    one_line(capsys, 2, [*argv, "--ouput", "x"], "Did you mean 'output'?")
    assert (tmp_path / "b.safetensors").read_text() == "precious"


def test_ctrl_c(capsys, file, tmp_path, monkeypatch):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_wsl.state.writer.ShardedWriter.write", interrupted)
    content = file.read_bytes()
    argv = ["rename", "a.safetensors", "--add_prefix", "x.", "--output", "a.safetensors", "--overwrite", "--backup"]
    one_line(capsys, 130, argv, "interrupted")
    assert file.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_help_loads_no_torch():
    code = "import sys; from lit_wsl.cli.main import run; run(['rename', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "--remove_prefix" in done.stdout
