"""`lit-wsl compare`, `extract-lora` and `analyze`: what they write and say, interruptions, damage, wrong usage."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_wsl.cli.main import run
from tests.cli.test_main import one_line

FILES = {
    "difference.txt",
    "weight_differences.json",
    "config_comparison.json",
    "architecture_comparison.json",
    "lora_analysis.json",
    "comparison_report.txt",
    "plots",
    "report.html",
    "journal.jsonl",
}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A base and what a LoRA of rank 3 on two of its four matrices made of it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = {f"layers.{at}.{name}.weight": torch.randn(48, 40) for at in range(2) for name in ("q_proj", "up_proj")}
    base |= {"norm.weight": torch.ones(40)}
    tuned = {name: weight.clone() for name, weight in base.items()}
    for at in range(2):
        tuned[f"layers.{at}.q_proj.weight"] += 0.1 * torch.randn(48, 3) @ torch.randn(3, 40)
    save_file(base, "base.safetensors")
    save_file(tuned, "tuned.safetensors")
    return base, tuned


def test_comparison_and_extraction_write_to_directories_of_their_own(models):
    assert run(["compare", "base.safetensors", "tuned.safetensors"]) == 0
    assert run(["extract-lora", "base.safetensors", "tuned.safetensors"]) == 0
    assert (Path("extracted_adapter") / "adapter" / "adapter_model.safetensors").exists()


def written(directory="model_comparison"):
    return {path.name for path in Path(directory).iterdir()}


def test_compare_says_what_changed_and_writes_every_file(capsys, models):
    base, tuned = models
    assert run(["compare", "base.safetensors", "tuned.safetensors"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "LoRA of rank 3 on q_proj in all 2 layers; nothing else changed." in shown.out
    assert "Extracted 2 tensors at rank 3" in shown.out
    assert written() == FILES | {"adapter", "extracted_lora_weights.safetensors", "lora_metadata.json"}
    factors = load_file("model_comparison/extracted_lora_weights.safetensors")
    name = "layers.1.q_proj"
    update = factors[f"{name}.lora_B"] @ factors[f"{name}.lora_A"]
    torch.testing.assert_close(base[f"{name}.weight"] + update, tuned[f"{name}.weight"], rtol=1e-5, atol=1e-5)


def test_identical_models(capsys, models):
    assert run(["compare", "base.safetensors", "base.safetensors", "--output-dir", "out"]) == 0
    assert "identical" in capsys.readouterr().out.lower()
    assert written("out") == FILES - {"plots"}  # nothing to draw


def test_extract_lora_takes_factors_of_everything_that_changed(capsys, models):
    base, _ = models
    save_file({name: weight + 0.01 * torch.randn_like(weight) for name, weight in base.items()}, "dense.safetensors")
    argv = ["extract-lora", "base.safetensors", "dense.safetensors", "--rank", "5", "--skip-1d", "--output-dir", "out"]
    assert run(argv) == 0
    factors = load_file("out/extracted_lora_weights.safetensors")
    assert {tuple(tensor.shape) for tensor in factors.values()} == {(5, 40), (48, 5)}
    assert len(factors) == 8
    capsys.readouterr()
    assert run(["compare", "base.safetensors", "dense.safetensors", "--output-dir", "plain"]) == 0
    assert "No adapter was extracted" in capsys.readouterr().out
    assert written("plain") == FILES


def test_analyze_repeats_the_verdict(capsys, models):
    assert run(["compare", "base.safetensors", "tuned.safetensors"]) == 0
    headline = capsys.readouterr().out.splitlines()[0]
    assert run(["analyze", "model_comparison"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == headline
    assert run(["analyze", "model_comparison", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "lora"
    one_line(capsys, 1, ["analyze", "."], "holds no comparison; make one with `lit-wsl compare`")


def test_both_methods_give_times(models):
    assert run(["compare", "base.safetensors", "tuned.safetensors", "--method", "both"]) == 0
    times = json.loads(Path("model_comparison/weight_differences.json").read_text())["performance"]["layer_times"]
    assert all(one["numpy_time"] > 0 for one in times.values())
    assert "NumPy computation" in Path("model_comparison/difference.txt").read_text()


def test_weight_map(capsys, models):
    _, tuned = models
    save_file({f"net.{name}": weight for name, weight in tuned.items()}, "named.safetensors")
    save_file({f"x{at}": weight for at, weight in enumerate(tuned.values())}, "other.safetensors")
    assert run(["compare", "base.safetensors", "named.safetensors", "--output-dir", "prefix"]) == 0
    one_line(capsys, 1, ["compare", "base.safetensors", "other.safetensors"], "no tensor name in common", "--save map")
    assert not Path("model_comparison").exists()
    from lit_wsl.state.remap import copies

    copies((name, f"x{at}") for at, name in enumerate(tuned)).save("map.json")
    assert run(["compare", "base.safetensors", "other.safetensors", "--weight-map", "map.json"]) == 0
    assert "rank 3" in capsys.readouterr().out


def test_damaged_tensors_are_told_and_the_rest_is_compared(capsys, models):
    _, tuned = models
    tuned["layers.0.up_proj.weight"][3, 4] = float("nan")
    save_file(tuned, "nan.safetensors")
    assert run(["compare", "base.safetensors", "nan.safetensors", "--output-dir", "out"]) == 1
    shown = capsys.readouterr()
    assert "layers.0.up_proj.weight could not be compared: 1 NaN" in shown.err
    failed = json.loads(Path("out/architecture_comparison.json").read_text())["failed"]
    assert list(failed) == ["layers.0.up_proj.weight"]
    assert len(json.loads(Path("out/weight_differences.json").read_text())["all_differences"]) == 4

    content = Path("tuned.safetensors").read_bytes()
    Path("short.safetensors").write_bytes(content[: len(content) - 4000])
    assert run(["compare", "base.safetensors", "short.safetensors", "--output-dir", "short"]) == 1
    assert "truncated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["compare", "base.safetensors", "nowhere"], 1, "does not exist"),
        (["compare", "base.safetensors"], 2, "finetuned"),
        (["compare", "base.safetensors", "tuned.safetensors", "--lora-rank", "0"], 1, "positive number"),
        (["compare", "base.safetensors", "tuned.safetensors", "--lora-rank", "energy:2"], 1, "(0, 1]"),
        (["compare", "base.safetensors", "tuned.safetensors", "--threshold", "-1"], 1, "threshold >= 0"),
        (["compare", "base.safetensors", "tuned.safetensors", "--output-dir", "base.safetensors"], 1, "is a file"),
        (["compare", "base.safetensors", "tuned.safetensors", "--resume", "--overwrite"], 2, "pass one of them"),
        (["compare", "base.safetensors", "tuned.safetensors", "--weight-map", "nope.json"], 1, "cannot be read"),
        (["extract-lora", "base.safetensors", "tuned.safetensors", "--rnak", "3"], 2, "rank"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(capsys, models, argv, code, words):
    one_line(capsys, code, argv, words)
    assert not Path("model_comparison").exists()


def test_earlier_output_and_strangers_are_left_alone(capsys, models):
    argv = ["compare", "base.safetensors", "tuned.safetensors"]
    assert run(argv) == 0
    before = Path("model_comparison/weight_differences.json").read_bytes()
    capsys.readouterr()
    one_line(capsys, 1, argv, "holds a comparison; pass `--resume`")
    assert Path("model_comparison/weight_differences.json").read_bytes() == before
    assert run([*argv, "--overwrite"]) == 0
    Path("model_comparison/mine.txt").write_text("mine")
    capsys.readouterr()
    one_line(capsys, 1, [*argv, "--overwrite"], "mine.txt")
    assert Path("model_comparison/mine.txt").read_text() == "mine"


SLOW = """
import sys, time
from lit_wsl.cli.main import run
from lit_wsl.comparing import run as room
examine = room.examine
def slow(subject, settings):
    time.sleep(0.25)
    return examine(subject, settings)
room.examine = slow
sys.exit(run(sys.argv[1:]))
"""


def _start(*argv):
    return subprocess.Popen([sys.executable, "-c", SLOW, *argv, "--threads", "1"], stderr=subprocess.PIPE, text=True)


def _wait_for_lines(count):
    journal = Path("model_comparison/journal.jsonl")
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_text().count("\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def long(models):
    base, tuned = models
    for name, state in (("base", base), ("tuned", tuned)):
        save_file(state | {f"w{at}": torch.randn(3) for at in range(20)}, f"{name}.safetensors")
    return [*base, *(f"w{at}" for at in range(20))]


def test_an_interrupted_comparison_leaves_valid_files_and_goes_on(capsys, long):
    argv = ("compare", "base.safetensors", "tuned.safetensors")
    process = _start(*argv)
    _wait_for_lines(6)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    done = json.loads(Path("model_comparison/weight_differences.json").read_text())["all_differences"]
    assert 0 < len(done) < len(long)
    assert "not" in Path("model_comparison/comparison_report.txt").read_text().lower()
    assert run(["analyze", "model_comparison"]) == 0
    times = {name: one["total_time"] for name, one in _layer_times().items()}
    assert run([*argv, "--resume"]) == 0
    again = {name: one["total_time"] for name, one in _layer_times().items()}
    assert list(json.loads(Path("model_comparison/weight_differences.json").read_text())["all_differences"])
    assert len(again) == len(long)
    assert {name: again[name] for name in times} == times  # not examined again
    assert (Path("model_comparison/adapter") / "adapter_model.safetensors").exists()


def _layer_times():
    return json.loads(Path("model_comparison/weight_differences.json").read_text())["performance"]["layer_times"]


def test_a_killed_comparison_goes_on(long):
    argv = ("compare", "base.safetensors", "tuned.safetensors")
    process = _start(*argv)
    _wait_for_lines(5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    assert run(["analyze", "model_comparison"]) == 0  # half written
    assert run([*argv, "--resume"]) == 0
    assert len(_layer_times()) == len(long)
    assert load_file("model_comparison/extracted_lora_weights.safetensors")


def test_another_comparison_is_not_resumed(capsys, models):
    assert run(["compare", "base.safetensors", "tuned.safetensors"]) == 0
    capsys.readouterr()
    argv = ["compare", "base.safetensors", "tuned.safetensors", "--resume", "--threshold", "1e-3"]
    one_line(capsys, 1, argv, "other settings")
