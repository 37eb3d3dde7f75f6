"""`lit-wsl map`: what it shows, writes and refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lit_wsl.cli.main import run
from lit_wsl.mapper.result import MappingResult
from lit_wsl.state.operations import Transpose
from lit_wsl.state.remap import Entry, WeightMap
from tests.cli.test_main import one_line
from tests.mapper.pairs.pair import randomise
from tests.mapper.pairs.registry import PAIRS

BY_NAME = {pair.name: pair for pair in PAIRS}

MODELS = """
import torch
from torch import nn

class Old(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))

class New(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))

def looks_at_values():
    torch.ones(1).item()
    return New()

def needs(width):
    return nn.Linear(width, width)

def text():
    return "model"

def broken():
    raise OSError("no\\nmodel")

ready = New()
number = 3
"""


TWINS = """
from torch import nn

class One(nn.Module):
    def __init__(self, names=("x", "y")):
        super().__init__()
        self.enc = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in names})

class Two(One):
    def __init__(self):
        super().__init__(("p", "q"))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module of models, and weights of two of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    (tmp_path / "own_models.py").write_text(MODELS)
    (tmp_path / "broken_module.py").write_text("1 / 0")
    import own_models

    save_file(own_models.Old().state_dict(), "old.safetensors")
    save_file(own_models.New().state_dict(), "new.safetensors")
    return tmp_path


@pytest.fixture
def saved(request, tmp_path, monkeypatch):
    """Random weights of both models of a pair, as files."""
    monkeypatch.chdir(tmp_path)
    pair = BY_NAME[request.param]
    for name, build in (("source", pair.source), ("target", pair.target)):
        model = build(True)
        randomise(model, seed=len(name))
        save_file({key: tensor.clone() for key, tensor in model.state_dict().items()}, f"{name}.safetensors")
    return pair


@pytest.mark.parametrize("saved", ["vit hf→timm", "llama hf→litgpt"], indirect=True)
def test_there_and_back_through_files_is_exact(capsys, saved):
    argv = ["map", "source.safetensors", "target.safetensors"]
    assert run([*argv, "--save", "map.json", "--apply", "made.safetensors", "--report", "report.json"]) == 0
    out = capsys.readouterr().out
    assert "fuse of 3" in out
    before, target, made = map(load_file, ("source.safetensors", "target.safetensors", "made.safetensors"))
    assert {name: tensor.shape for name, tensor in made.items()} == {name: t.shape for name, t in target.items()}
    assert run(["map", "made.safetensors", "--map", "map.json", "--inverse", "--apply", "back.safetensors"]) == 0
    back = load_file("back.safetensors")
    assert back.keys() == before.keys()
    assert all(torch.equal(back[name], before[name]) for name in before)
    assert run(["map", "source.safetensors", "--map", "map.json", "--apply", "again.safetensors"]) == 0
    assert all(torch.equal(tensor, made[name]) for name, tensor in load_file("again.safetensors").items())
    report, recipes = (json.loads(Path(name).read_text()) for name in ("report.json", "map.json"))
    assert report["recipes"] == recipes


def test_what_the_target_lacks_and_buffers_that_are_left_out(capsys, folder):
    assert run(["map", "old.safetensors", "own_models:New", "--apply", "made.safetensors"]) == 0
    said = capsys.readouterr()
    assert "made.safetensors: 6 tensors, 0.0 MB\n" in said.out
    assert "own_models:New still lacks 3 of its 9 tensors, 3 of them buffers: norm.running_mean" in said.out
    assert "3 buffers of the source were left out; `--buffer_matching_mode lenient` maps what fits" in said.err
    argv = ["map", "old.safetensors", "own_models:New", "--buffer-matching-mode", "lenient"]
    assert run([*argv, "--apply", "made.safetensors", "--overwrite"]) == 0
    said = capsys.readouterr()
    assert "own_models:New: all 9 tensors are made.\n" in said.out
    assert "buffers" not in said.err
    save_file({"first.weight": torch.zeros(6, 4), "first.bias": torch.zeros(6)}, "part.safetensors")
    argv = ["map", "old.safetensors", "part.safetensors", "--apply", "made.safetensors", "--overwrite"]
    assert run(argv) == 0
    said = capsys.readouterr()
    assert "part.safetensors: all 2 tensors are made.\n" in said.out
    assert "buffers" not in said.err


def test_a_saved_map_tells_what_a_target_lacks(capsys, folder):
    assert run(["map", "old.safetensors", "new.safetensors", "--save", "map.json"]) == 0
    capsys.readouterr()
    assert run(["map", "old.safetensors", "own_models:New", "--map", "map.json", "--apply", "a.safetensors"]) == 0
    assert "still lacks 3 of its 9" in capsys.readouterr().out
    assert run(["map", "old.safetensors", "--map", "map.json", "--inverse", "--save", "back.json"]) == 0
    assert WeightMap.load("back.json").targets() == WeightMap.load("map.json").sources()
    argv = ["map", "old.safetensors", "--map", "back.json", "--apply", "b.safetensors"]
    one_line(capsys, 1, argv, "lacks 6 of 6 tensors that the map back.json reads", "--inverse")


def test_dry_run_writes_nothing(capsys, folder):
    before = sorted(folder.iterdir())
    argv = ["map", "old.safetensors", "new.safetensors", "--save", "m.json", "--report", "r.html"]
    assert run([*argv, "--apply", "made.safetensors", "--dry_run"]) == 0
    assert "made.safetensors: 6 tensors, 0.0 MB would be written" in capsys.readouterr().out
    assert sorted(path for path in folder.iterdir() if path.name != "__pycache__") == [
        path for path in before if path.name != "__pycache__"
    ]


def test_unrelated_models(capsys, folder):
    save_file({f"x.{i}": torch.zeros(7, i + 1) for i in range(9)} | {"w": torch.zeros(4, 6)}, "other.safetensors")
    argv = ["map", "other.safetensors", "new.safetensors", "--threshold", "0", "--apply", "made.safetensors"]
    assert run([*argv, "--save", "map.json", "--report", "report.html"]) == 1
    last = capsys.readouterr().err
    assert last.count("\n") == 1
    assert "seem unrelated: 1 of 10 source and 1 of 6 target tensors" in last or "No tensor" in last
    assert (folder / "report.html").exists()
    assert not (folder / "made.safetensors").exists()
    assert not (folder / "map.json").exists()
    save_file({"q": torch.zeros(1, 2, 3)}, "other.safetensors")
    assert run(["map", "other.safetensors", "new.safetensors", "--min_coverage", "0"]) == 1
    assert "No tensor of other.safetensors is mapped to new.safetensors" in capsys.readouterr().err


def test_ambiguous_matches_are_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"enc.a.weight": torch.zeros(4, 4), "enc.b.weight": torch.zeros(4, 4)}, "one.safetensors")
    save_file({"dec.x.weight": torch.zeros(4, 4), "dec.y.weight": torch.zeros(4, 4)}, "two.safetensors")
    assert run(["map", "one.safetensors", "two.safetensors", "--threshold", "0"]) == 0
    said = capsys.readouterr()
    assert "recipes are ambiguous, first enc.a.weight → dec." in said.err
    assert "for which one.safetensors and two.safetensors must be named as a model (a directory with" in said.err
    Path("twins.py").write_text(TWINS)
    monkeypatch.syspath_prepend(tmp_path)
    assert run(["map", "twins:One", "twins:Two", "--threshold", "0"]) == 0
    assert "settle them with `--verify`, or drop them" in capsys.readouterr().err
    assert run(["map", "one.safetensors", "twins:Two", "--threshold", "0"]) == 0
    assert "for which one.safetensors must be named" in capsys.readouterr().err
    assert "Ambiguous" in said.out
    assert "of the same shape" in said.out or "little speaks for it" in said.out


def test_trees(capsys, folder):
    assert run(["map", "--tree", "own_models:Old", "new.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "own_models:Old: 9 tensors, 76 entries" in out
    assert "Linear  weight [6, 4], bias [6]" in out
    assert "running_mean [6] (statistic)" in out
    assert "new.safetensors: 9 tensors" in out


def test_models_by_configuration_alone_and_with_weights(capsys, llama_dir, untied, tmp_path):
    (tmp_path / "config.json").write_text((untied / "config.json").read_text())
    assert run(["map", str(untied), str(tmp_path)]) == 0
    assert "100.0%" in capsys.readouterr().out
    assert run(["map", "--tree", str(tmp_path / "config.json")]) == 0
    assert "LlamaRMSNorm" in capsys.readouterr().out
    assert run(["map", str(llama_dir), str(tmp_path), "--apply", str(tmp_path / "made.safetensors")]) == 0


def test_configurations_that_cannot_be_built(capsys, tmp_path):
    config = tmp_path / "config.json"
    for content, words in (
        ({"architectures": ["Own"], "auto_map": {"AutoModel": "own.Own"}}, "is code beside the model"),
        ({"architectures": ["Own"]}, "transformers has no model class 'Own'"),
        ({"model_type": "bert"}, "names no class under `architectures`"),
        ({"architectures": ["BertModel"], "hidden_size": 7, "num_attention_heads": 2}, "cannot be built"),
        ([], "no JSON object"),
    ):
        config.write_text(json.dumps(content))
        one_line(capsys, 1, ["map", str(tmp_path), str(tmp_path)], words)
    config.write_text("{")
    one_line(capsys, 1, ["map", str(tmp_path), str(tmp_path)], "is no JSON")


def test_modules_that_look_at_values_or_are_ready(folder):
    assert run(["map", "own_models:looks_at_values", "own_models:ready"]) == 0


def test_timm_names(capsys, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    one_line(capsys, 1, ["map", "old.safetensors", "timm:resnet50"], "pip install timm")
    fake = ModuleType("timm")
    fake.create_model = lambda name, pretrained: {"net": nn.Linear(4, 4)}[name]
    monkeypatch.setitem(sys.modules, "timm", fake)
    assert run(["map", "--tree", "timm:net"]) == 0
    one_line(capsys, 1, ["map", "--tree", "timm:nett"], "timm:nett cannot be built")


@pytest.fixture
def proof(monkeypatch):
    """What running both models shows, and the input that they were given."""
    found = SimpleNamespace(error=1e-7, is_proven=True, first_divergence=None, tried=2, given=None)

    def verify(result, dummy):
        found.result, found.given = result, dummy
        return found

    monkeypatch.setattr(MappingResult, "verify", verify)
    return found


def test_verify(capsys, folder, proof):
    argv = ["map", "own_models:Old", "own_models:New", "--verify", "--save", "map.json"]
    assert run(argv) == 0
    assert proof.given.shape == (2, 4)
    assert "Proven: both models return the same, relative error 1.0e-07, 2 readings run." in capsys.readouterr().out
    assert run([*argv, "--overwrite", "--dummy_input", "float32[5, 4]"]) == 0
    assert proof.given.shape == (5, 4)
    capsys.readouterr()
    one_line(capsys, 2, [*argv, "--overwrite", "--dummy_input", "float[5"], "cannot be read; write `int64[2,8]`")
    proof.is_proven, proof.first_divergence = False, "norm"
    assert run([*argv[:-1], "other.json"]) == 1
    assert "Not proven: the models differ by 1.0e-07, first at norm" in capsys.readouterr().err
    assert not (folder / "other.json").exists()


@pytest.mark.parametrize("mode", ["exclude", "lenient", "strict"])
def test_models_that_run_are_proven(capsys, folder, mode):
    argv = ["map", "own_models:Old", "own_models:New", "--verify", "--buffer_matching_mode", mode]
    assert run([*argv, "--save", "map.json"]) == 0
    assert "Proven: " in capsys.readouterr().out
    assert run(["map", "old.safetensors", "--map", "map.json", "--apply", "made.safetensors"]) == 0
    assert len(load_file("made.safetensors")) == (6 if mode == "exclude" else 9)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "Name a SOURCE and a TARGET"),
        (["old.safetensors"], "TARGET is missing"),
        (["old.safetensors", "new.safetensors", "--inverse"], "--inverse needs a saved `--map`"),
        (["old.safetensors", "--map", "m.json"], "--map needs `--apply OUT`"),
        (["old.safetensors", "--map", "new.safetensors", "--apply", "a.safetensors"], "that `--save` wrote"),
        (["old.safetensors", "--map", "m.json", "--save", "a.json", "--verify"], "takes no --verify"),
        (["old.safetensors", "new.safetensors", "--apply", "made.pt"], "ends in .safetensors"),
        (["old.safetensors", "new.safetensors", "--report", "report.txt"], "ends in .json or .html"),
        (["old.safetensors", "new.safetensors", "--verify"], "old.safetensors holds weights only"),
        (["own_models:Old", "new.safetensors", "--apply", "a.safetensors"], "own_models:Old has none"),
        (["old.safetensors", "new.safetensors", "--strategy", "best"], "'conservative'"),
        (["old.safetensors", "new.safetensors", "--min_coverage", "2"], "min_coverage <= 1"),
        (["old.safetensors", "new.safetensors", "--aply", "x"], "Did you mean 'apply'?"),
    ],
    ids=str,
)
def test_wrong_usage(capsys, folder, argv, words):
    one_line(capsys, 2, ["map", *argv], words, "--help")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("none.safetensors", "does not exist; check the path"),
        ("nonsense", "is no path and names no model"),
        ("odl.safetensors", "does not exist. Did you mean 'old.safetensors'?"),
        ("emty", "Did you mean 'empty'?"),
        ("./own_models:New", "Did you mean 'own_models:New'?"),
        ("own_models.py:New", "Did you mean 'own_models:New'?"),
        ("own_models.New", "Did you mean 'own_models:New'?"),
        ("org/own.models.New", "Did you mean 'org.own.models:New'?"),
        ("empty", "has no weight file and no config.json"),
        ("hostile.pt", "would run code"),
        ("cut.safetensors", "cut.safetensors"),
        ("nothing.pt", "holds no state dict"),
        ("own_models:Nw", "has no 'Nw'. Did you mean 'New'?"),
        ("own_models:number", "is a int"),
        ("own_models:text", "gave a str"),
        ("own_models:needs", "name a function without arguments"),
        ("own_models:broken", "raised OSError (no model)"),
        ("no_such_module:New", "there is no module 'no_such_module'"),
        ("broken_module:New", "raised ZeroDivisionError"),
    ],
    ids=str,
)
def test_models_that_cannot_be_found(capsys, folder, source, words):
    (folder / "empty").mkdir()
    (folder / "cut.safetensors").write_bytes(b"\x08")
    torch.save({"w": torch.ones(1), "x": print}, "hostile.pt")
    torch.save({}, "nothing.pt")
    one_line(capsys, 1, ["map", source, "new.safetensors"], words)
    one_line(capsys, 1, ["map", "old.safetensors", source], words)


def test_outputs_that_are_refused(capsys, folder):
    (folder / "made.safetensors").write_text("precious")
    argv = ["map", "old.safetensors", "new.safetensors"]
    one_line(capsys, 1, [*argv, "--apply", "made.safetensors"], "exists", "--overwrite")
    one_line(capsys, 1, [*argv, "--apply", "./old.safetensors", "--overwrite"], "is an input")
    one_line(capsys, 1, [*argv, "--apply", "new.safetensors", "--overwrite"], "is an input")
    one_line(capsys, 1, [*argv, "--save", "a.json", "--report", "./a.json"], "name one file")
    one_line(capsys, 1, [*argv, "--apply", "own_models.py/a.safetensors"], "is a file")
    (folder / "a.json").mkdir()
    one_line(capsys, 1, [*argv, "--save", "a.json"], "is no regular file")
    assert (folder / "made.safetensors").read_text() == "precious"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_nothing_is_left_of_a_failed_write(capsys, folder, monkeypatch, error):
    def fail(*_args):
        raise error

    monkeypatch.setattr(os, "pwrite", fail)
    assert run(["map", "old.safetensors", "new.safetensors", "--apply", "made.safetensors"]) in (1, 130)
    assert ("is full" if isinstance(error, OSError) else "interrupted") in capsys.readouterr().err
    assert not [path.name for path in folder.iterdir() if "made" in path.name]


WATCHED = """
import sys, threading, time
import lit_wsl.cli.applying, lit_wsl.mapper.mapper
from lit_wsl.cli.main import run

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.0005)

done, before, peak = threading.Event(), anonymous(), [0]
thread = threading.Thread(target=watch)
thread.start()
code = run(sys.argv[1:])
done.set()
thread.join()
print(code, peak[0] - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the process table of Linux")
def test_applying_holds_one_entry_in_memory(tmp_path):
    shape, count = (4000, 3000), 6  # from 32 MiB on, the allocator gives freed memory back at once
    save_file({f"a.{i}.weight": torch.rand(shape) for i in range(count)}, tmp_path / "a.safetensors")
    entries = tuple(Entry((f"a.{i}.weight",), (f"b.{i}.kernel",), (Transpose(),)) for i in range(count))
    WeightMap(entries).save(tmp_path / "map.json")
    argv = ["map", str(tmp_path / "a.safetensors"), "--map", str(tmp_path / "map.json")]
    argv = [sys.executable, "-c", WATCHED, *argv, "--apply", str(tmp_path / "b.safetensors")]
    code, peak = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
    assert code == "0"
    assert int(peak) < 1.5 * 4 * 4000 * 3000
    made = load_file(tmp_path / "b.safetensors")
    assert torch.equal(made["b.3.kernel"], load_file(tmp_path / "a.safetensors")["a.3.weight"].T)


def test_help_loads_no_torch():
    code = "import sys; from lit_wsl.cli.main import run; run(['map', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "--buffer_matching_mode" in done.stdout
