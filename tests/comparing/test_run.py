"""A whole comparison: order, threads, faults, interruptions, memory."""

import gc
import json
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_wsl.comparing import run as module
from lit_wsl.comparing.models import open_base, open_tuned
from lit_wsl.comparing.records import Finding
from lit_wsl.comparing.run import FACTORS, Comparison, examine_all, factor_file, new_comparison
from lit_wsl.comparing.settings import CompareSettings
from tests.comparing.test_models import shards


def states(layers=6):
    """A base, and its fine-tuned sibling: a LoRA, a dense change, a resized vocabulary, experts, a convolution."""
    torch.manual_seed(7)
    base = {"embed.weight": torch.randn(40, 16)}
    for at in range(layers):
        base[f"layers.{at}.attn.weight"] = torch.randn(48, 40)
        base[f"layers.{at}.mlp.weight"] = torch.randn(300, 290)
        base[f"layers.{at}.norm.weight"] = torch.ones(40)
    base |= {"experts.up": torch.randn(3, 32, 24), "conv.weight": torch.randn(8, 4, 3, 3), "scalar": torch.tensor(2.0)}
    tuned = dict(base)
    tuned["embed.weight"] = torch.cat((base["embed.weight"], torch.randn(3, 16)))
    for at in range(layers):
        tuned[f"layers.{at}.attn.weight"] = base[f"layers.{at}.attn.weight"] + 0.1 * torch.randn(48, 2) @ torch.randn(
            2, 40
        )
        tuned[f"layers.{at}.mlp.weight"] = base[f"layers.{at}.mlp.weight"] + 0.001 * torch.randn(300, 290)
    tuned["experts.up"] = base["experts.up"] + 0.1 * torch.randn(3, 32, 1) @ torch.randn(3, 1, 24)
    tuned["conv.weight"] = base["conv.weight"] * 1.5
    return base, tuned


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("states")
    for name, state in zip(("base", "tuned"), states(), strict=True):
        save_file(state, directory / f"{name}.safetensors")
    return directory


def compare(base: Path, tuned: Path, directory: Path, threads=1, settings=None, **options) -> Comparison:
    before = open_base(base)
    after = open_tuned(tuned, before)
    comparison = new_comparison(before, after, settings or CompareSettings())
    directory.mkdir(exist_ok=True)
    examine_all(comparison, before, after, directory, threads=threads, **options)
    return comparison


def timeless(findings):
    """Findings without times."""
    still = {"total_time": 0.0, "tensor_time": 0.0}
    return [one if one.change is None else replace(one, change=replace(one.change, **still)) for one in findings]


def test_findings_are_in_the_order_of_the_base(files, tmp_path):
    told, progress = [], []
    comparison = compare(
        files / "base.safetensors",
        files / "tuned.safetensors",
        tmp_path / "out",
        found=told.append,
        progress=lambda *values: progress.append(values),
    )
    names = list(load_file(files / "base.safetensors"))
    in_file = open_base(files / "base.safetensors").reader.keys()
    assert set(names) == set(in_file)
    assert [finding.name for finding in comparison.findings] == in_file
    assert told == comparison.findings
    assert [name for _, _, name in progress] == in_file
    total = sum(file.stat().st_size for file in files.iterdir())
    assert progress[-1][0] == progress[-1][1] == pytest.approx(total, rel=0.01)
    assert [done for done, _, _ in progress] == sorted(done for done, _, _ in progress)
    assert (comparison.is_complete, comparison.failed()) == (True, {})
    assert comparison.seconds > 0.0


def test_what_is_found(files, tmp_path):
    comparison = compare(files / "base.safetensors", files / "tuned.safetensors", tmp_path / "out")
    by_name = {finding.name: finding for finding in comparison.findings}
    assert by_name["embed.weight"].change.is_equal
    assert by_name["embed.weight"].change.shape == [40, 16]
    assert by_name["scalar"].change.is_equal
    for at in range(6):
        lora, dense = by_name[f"layers.{at}.attn.weight"], by_name[f"layers.{at}.mlp.weight"]
        assert (lora.pattern.effective_rank, lora.pattern.is_low_rank, len(lora.extracted)) == (2, True, 1)
        assert (dense.pattern.effective_rank, dense.pattern.is_low_rank, dense.extracted) == (0, False, [])
    assert (by_name["experts.up"].pattern.effective_rank, len(by_name["experts.up"].extracted)) == (1, 3)
    assert by_name["conv.weight"].pattern.shape == [8, 36]
    written = {path.name for path in (tmp_path / "out" / FACTORS).iterdir()}
    names = comparison.architecture.comparable()
    assert written == {factor_file(names.index(name)) for name, finding in by_name.items() if finding.extracted}


def test_threads_change_nothing(files, tmp_path):
    one, four = (
        compare(files / "base.safetensors", files / "tuned.safetensors", tmp_path / str(threads), threads=threads)
        for threads in (1, 4)
    )
    assert timeless(one.findings) == timeless(four.findings)
    for file in (tmp_path / "1" / FACTORS).iterdir():
        assert file.read_bytes() == (tmp_path / "4" / FACTORS / file.name).read_bytes()
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("base_shards", "tuned_shards"), [(3, 5), (1, 2)])
def test_layouts_change_nothing(files, tmp_path, base_shards, tuned_shards):
    base, tuned = (load_file(files / f"{name}.safetensors") for name in ("base", "tuned"))
    single = compare(files / "base.safetensors", files / "tuned.safetensors", tmp_path / "single")
    shards(tmp_path / "base", base, base_shards)
    shards(tmp_path / "tuned", tuned, tuned_shards)
    sharded = compare(tmp_path / "base", tmp_path / "tuned", tmp_path / "sharded")
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in tuned.items()}}, tmp_path / "tuned.ckpt")
    lightning = compare(files / "base.safetensors", tmp_path / "tuned.ckpt", tmp_path / "lightning")
    wanted = {finding.name: finding for finding in timeless(single.findings)}
    for other in (sharded, lightning):
        assert {finding.name: finding for finding in timeless(other.findings)} == wanted


def test_a_wider_copy_gives_the_same_figures(files, tmp_path):
    """Values that bfloat16 holds, stored as they are or as float32."""
    pairs = [{n: t.bfloat16() for n, t in state.items()} for state in states(2)]
    for name, state in zip(("base", "tuned"), pairs, strict=True):
        save_file(state, tmp_path / f"{name}16.safetensors")
        save_file({n: t.float() for n, t in state.items()}, tmp_path / f"{name}32.safetensors")
    one = compare(tmp_path / "base16.safetensors", tmp_path / "tuned16.safetensors", tmp_path / "one")
    other = compare(tmp_path / "base32.safetensors", tmp_path / "tuned32.safetensors", tmp_path / "other")
    mixed = compare(tmp_path / "base16.safetensors", tmp_path / "tuned32.safetensors", tmp_path / "mixed")
    assert mixed.architecture.dtype_mismatch.keys() == set(pairs[0])
    found = [{finding.name: finding for finding in each.findings} for each in (one, other, mixed)]
    for name, finding in found[0].items():
        for again in (found[1][name], found[2][name]):
            assert again.pattern == finding.pattern
            assert again.change.diff_norm == pytest.approx(finding.change.diff_norm, rel=1e-6)
            assert again.change.rounding_floor in (finding.change.rounding_floor, 2.0**-9)


def test_a_tensor_that_fails_stops_no_other(files, tmp_path):
    tuned = load_file(files / "tuned.safetensors")
    tuned["layers.2.mlp.weight"][3, 4] = float("nan")
    tuned["layers.4.attn.weight"][0, 0] = 1e38
    save_file(tuned, tmp_path / "bad.safetensors")
    for threads in (1, 4):
        comparison = compare(
            files / "base.safetensors", tmp_path / "bad.safetensors", tmp_path / str(threads), threads=threads
        )
        failed = comparison.failed()
        assert failed.keys() == {"layers.2.mlp.weight", "layers.4.attn.weight"}
        assert failed["layers.2.mlp.weight"] == "1 NaN and 0 infinite entries in the fine-tuned model"
        assert comparison.is_complete
        assert len(comparison.findings) == len(tuned)
        assert sum(finding.change is None for finding in comparison.findings) == 2


def test_a_file_that_becomes_shorter_on_the_way_is_a_reason(files, tmp_path):
    """The header was read before, the entries are not there any more."""
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes((files / "tuned.safetensors").read_bytes())
    before = open_base(files / "base.safetensors")
    after = open_tuned(bad, before)
    bad.write_bytes(bad.read_bytes()[:-100_000])
    comparison = new_comparison(before, after, CompareSettings())
    (tmp_path / "out").mkdir()
    examine_all(comparison, before, after, tmp_path / "out", threads=1)
    assert 0 < len(comparison.failed()) < len(comparison.findings)
    assert all("became shorter" in reason for reason in comparison.failed().values())


def test_what_is_finished_is_not_repeated(files, tmp_path, monkeypatch):
    sides = files / "base.safetensors", files / "tuned.safetensors"
    whole = compare(*sides, tmp_path / "whole")
    finished = {finding.name: finding for finding in whole.findings[::2]}
    examined, told = [], []
    original = module.examine

    def counted(subject, settings):
        examined.append(subject.name)
        return original(subject, settings)

    monkeypatch.setattr(module, "examine", counted)
    again = compare(*sides, tmp_path / "again", finished=finished, found=told.append)
    names = [finding.name for finding in whole.findings]
    assert examined == names[1::2]
    assert [finding.name for finding in told] == names
    assert timeless(again.findings) == timeless(whole.findings)
    assert all(finding is finished[finding.name] for finding in again.findings[::2])
    examined.clear()
    compare(*sides, tmp_path / "again", finished={finding.name: finding for finding in whole.findings})
    assert examined == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("threads", [1, 4])
def test_an_interruption_leaves_what_was_found(files, tmp_path, error, threads):
    before = open_base(files / "base.safetensors")
    after = open_tuned(files / "tuned.safetensors", before)
    comparison = new_comparison(before, after, CompareSettings())

    def found(finding: Finding) -> None:
        if len(comparison.findings) == 5:
            raise error

    running = threading.active_count()
    with pytest.raises(error):
        examine_all(comparison, before, after, tmp_path, found=found, threads=threads)
    assert [finding.name for finding in comparison.findings] == comparison.architecture.comparable()[:5]
    assert not comparison.is_complete
    assert comparison.seconds > 0.0
    gc.collect()
    assert threading.active_count() == running


def test_a_bug_is_not_taken_for_damage(files, tmp_path, monkeypatch):
    def broken(subject, settings):
        raise ZeroDivisionError

    monkeypatch.setattr(module, "examine", broken)
    with pytest.raises(ZeroDivisionError):
        compare(files / "base.safetensors", files / "tuned.safetensors", tmp_path / "out")


def test_findings_survive_json(files, tmp_path):
    comparison = compare(files / "base.safetensors", files / "tuned.safetensors", tmp_path / "out")
    for finding in comparison.findings:
        text = json.dumps(finding.to_json(), allow_nan=False)
        assert Finding.from_json(json.loads(text)) == finding


def anonymous():
    """Bytes of memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_layers(tmp_path):
    """Sixty layers of 4 MB on each side; a worker needs some blocks, the differences of one layer and a spectrum."""
    torch.manual_seed(1)
    weight = torch.randn(1000, 1000)
    base = {f"layers.{at}.weight": weight.clone() for at in range(60)}
    save_file(base, tmp_path / "base.safetensors")
    for tensor in base.values():
        tensor.add_(0.01 * torch.randn(1000, 1) @ torch.randn(1, 1000))
    save_file(base, tmp_path / "tuned.safetensors")
    del base
    gc.collect()
    sides = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    highs = []

    def found(finding: Finding) -> None:
        highs.append(anonymous())

    settings = CompareSettings(known_values=16)
    before = anonymous()
    comparison = compare(*sides, tmp_path / "out", threads=2, settings=settings, found=found)
    assert all(finding.pattern.effective_rank == 1 for finding in comparison.findings)
    assert max(highs) - before < 100 << 20
    assert max(highs[30:]) - max(highs[:30]) < 20 << 20
