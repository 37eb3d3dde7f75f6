"""Commands that write, killed or out of disk at any moment: the old output or the new one, and the next try works.

What trains, sweeps and prepares is in `test_interrupted_training.py`.
"""

import shutil
from pathlib import Path

import pytest
import yaml

from lit_wsl.cli.main import run
from lit_wsl.runs import RunLayout
from tests.faults.moments import run_until, some_of
from tests.merging.build import random_states, save_adapter, save_bert
from tests.runs.build import record

MOMENTS = 4
"""Moments of each command, beside the first and the last."""

COMMANDS = {
    "merge": "merge --models {tuned0} {tuned1} --base {base} --output out --overwrite --method ties",
    "merge to a delta": "merge --models {tuned0} --base {base} --output out --overwrite --output_format delta",
    "merge to an adapter": "merge --adapters {a1} {a2} --output out --overwrite --output_format adapter --base {bert}",
    "merge in shards": "merge --models {tuned0} {tuned1} --base {base} --output out --overwrite --shard_size 100",
    "export": "export {tuned0} --output out --overwrite --format safetensors",
    "map": "map {base} {tuned0} --apply out.safetensors --overwrite",
    "map a directory": "map {bert} {bert} --apply out --overwrite",
    "map saved": "map {base} {tuned0} --save out.json --overwrite",
    "rename": "rename {base} --add_prefix x. --output out.safetensors --overwrite",
    "rename a directory": "rename {bert} --add_prefix x. --output out --overwrite",
    "migrate-config": "migrate-config {former} --output out.yaml --overwrite",
    "report": "report --artifacts_dir {artifacts} --output out.html",
}
OLD = {
    **{name: "merge --models {tuned1} --base {base} --output out" for name in COMMANDS if name.startswith("merge")},
    "export": "export {tuned1} --output out --format safetensors",
    "map": "map {base} {tuned1} --apply out.safetensors",
    "map a directory": "map {bert} {bert} --apply out --shard_size 4KB",
    "map saved": "map {bert} {bert} --save out.json",
    "rename": "rename {base} --add_prefix y. --output out.safetensors",
    "rename a directory": "rename {bert} --add_prefix y. --output out",
    "migrate-config": "migrate-config {former2} --output out.yaml",
    "report": "report --artifacts_dir {artifacts} --limit 1 --output out.html",
}
"""What made the output that is there before."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Paths of all sources by the names that the commands use."""
    root = tmp_path_factory.mktemp("inputs")
    base, *tuned = random_states(root, 2)
    bert = save_bert(root / "bert")
    for number in (1, 2):
        save_adapter(bert, root / f"a{number}", number)
    for name, lam in (("former", 0.5), ("former2", 0.7)):
        content = {"models": tuned, "base": base, "method": "ties", "lambda": lam, "params": {"k": 20}}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    for minutes in (0, 3):
        record(RunLayout(root / "artifacts"), minutes=minutes)
    named = {"base": base, "tuned0": tuned[0], "tuned1": tuned[1], "bert": bert, "artifacts": root / "artifacts"}
    named |= {name: root / name for name in ("a1", "a2")} | {n: root / f"{n}.yaml" for n in ("former", "former2")}
    return {name: str(path) for name, path in named.items()}


def words(command, inputs):
    return [word.format(**inputs) for word in command.split()]


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outputs(found):
    """What stands under the names of the output, without scratch files beside it."""
    whole = {name: data for name, data in found.items() if name.split("/")[0].partition(".")[2] in ENDS}
    return {name: data for name, data in whole.items() if not name.endswith(".lock")}


ENDS = ("", "json", "yaml", "html", "safetensors")


def stable(one, other):
    """Names whose bytes two runs share; a metadata file may tell the time."""
    return {name for name in one if one[name] == other.get(name)}


@pytest.mark.parametrize("how", ["kill", "full"])
@pytest.mark.parametrize("name", COMMANDS)
def test_at_any_moment(tmp_path, monkeypatch, inputs, name, how):
    work, kept = tmp_path / "work", tmp_path / "kept"
    argv, old = words(COMMANDS[name], inputs), words(OLD[name], inputs)
    kept.mkdir()
    monkeypatch.chdir(kept)
    assert run(old) == 0
    before = snapshot(kept)

    def start_over():
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(kept, work)

    start_over()
    code, total, told = run_until(argv, work)
    assert code == 0, told
    assert total > 2
    new = snapshot(work)
    start_over()
    assert run_until(argv, work)[0] == 0
    same = stable(new, snapshot(work))
    assert any(name in same for name in new)
    for moment in some_of(total, MOMENTS, name):
        start_over()
        code, _, told = run_until(argv, work, moment, how)
        found = outputs(snapshot(work))
        where = f"{name}, moment {moment} of {total}: {told}"
        if how == "kill":
            assert code == -9, where
        else:
            assert code in (0, 1), where
            assert "Traceback" not in told, where
            assert told.count("lit-wsl:") == code, where
        is_new = found.keys() == new.keys() and all(found[one] == new[one] for one in same)
        gap = how == "kill" and not found and (work / "out.replaced").exists()  # the next run puts it back
        assert is_new or found == before or gap, (where, sorted(found), sorted(before))
        code, _, told = run_until(argv, work)
        assert code == 0, (where, told)
        again = snapshot(work)
        assert again.keys() == new.keys(), (where, again.keys() ^ new.keys())
        assert {one: again[one] for one in same} == {one: new[one] for one in same}, where


def test_a_comparison_goes_on_after_any_moment(tmp_path, inputs):
    """It writes its output as it goes; a file of it is whole, and `--resume` makes it complete."""
    work = tmp_path / "work"
    argv = words("compare {base} {tuned0} --output_dir out", inputs)
    work.mkdir()
    code, total, told = run_until(argv, work)
    assert code == 0, told
    names = snapshot(work).keys()
    for moment in some_of(total, 3, "compare"):
        shutil.rmtree(work)
        work.mkdir()
        assert run_until(argv, work, moment)[0] == -9
        code, _, told = run_until([*argv, "--resume"], work)
        assert code == 0, (moment, told)
        assert snapshot(work).keys() == names, moment


def test_an_extraction_starts_again_after_any_moment(tmp_path, inputs):
    work = tmp_path / "work"
    argv = words("extract-lora {base} {tuned0} --output_dir out --overwrite", inputs)
    work.mkdir()
    code, total, told = run_until(argv, work)
    assert code == 0, told
    weights = Path(work, "out/adapter/adapter_model.safetensors").read_bytes()
    for moment in some_of(total, 1, "extract"):
        for how in ("kill", "full"):
            shutil.rmtree(work)
            work.mkdir()
            code, _, told = run_until(argv, work, moment, how)
            assert code in (-9, 0, 1), (moment, told)
            assert "Traceback" not in told, (moment, told)
            code, _, told = run_until(argv, work)
            assert code == 0, (moment, told)
            assert Path(work, "out/adapter/adapter_model.safetensors").read_bytes() == weights
