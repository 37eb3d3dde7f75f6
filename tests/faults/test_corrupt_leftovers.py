"""What an earlier process left: partial folders and journals of a merge, markers of outputs, locks, scratch files."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.faults.cases import try_cases
from tests.faults.moments import run_until
from tests.faults.strategies import altered, as_json, as_text, damaged, documents, texts, values
from tests.merging.build import random_states, save_bert

NAMES = ("layers.0.weight", "layers.0.bias", "layers.1.weight", "scalar")
DONE = ('["layers.1.weight", null]\n', '["layers.0.weight", null]\n')
SHARD = "model-00002-of-00004.safetensors"
"""A file of a tensor that is done."""


@pytest.fixture
def merged(watch):
    """A merge in shards, and the bytes of its weights."""
    base, *tuned = random_states(watch.root / "inputs", 2)
    sources = ["--models", *tuned, "--base", base]
    argv = ["merge", *sources, "--output", "out", "--method", "ties", "--shard_size", "100", "--threads", "1"]
    assert watch.command(argv) == 0
    return argv, weights(watch.root / "work" / "out")


def weights(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def killed(watch, argv):
    """The partial folder of a command that was killed when its journal listed two names, perhaps more."""
    work, before = watch.root / "work", watch.root / "before"
    for moment in range(1, 99):
        shutil.rmtree(work)
        work.mkdir()
        assert run_until(argv, work, moment)[0] == -9
        journal = work / "out.partial" / ".journal"
        records = journal.read_text().splitlines(keepends=True) if journal.exists() else []
        if all(line in records for line in DONE):
            journal.write_text("".join([records[0], *DONE]))  # a thread may be ahead
            work.rename(before)
            return before / "out.partial"
    raise AssertionError("it wrote no journal")


def odd_lines(whole):
    """A journal with lines that are no records, or records of something else."""
    records = altered(["layers.0.weight", None]).map(as_json) | altered(["scalar", 7]).map(as_json)
    lines = st.lists(st.one_of(records, values.map(as_json), texts.map(as_text)), min_size=1, max_size=3)
    behind = lines.map(lambda more: whole + b"\n".join([*more, b""]))
    return st.one_of(behind, behind, damaged(whole), texts.map(as_text), st.binary(max_size=40))


def other_places(names):
    """One of the files lost, replaced by something else, cut off, or of any bytes."""
    return st.tuples(
        st.sampled_from(names), st.sampled_from(["lose", "folder", "link", "loop", "short", "long", "any", "empty"])
    )


def put(path, what):
    """Let something else stand in the place of a file; True if its content is not what it was."""
    data = path.read_bytes()
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what in ("link", "loop"):
        path.symlink_to("nowhere" if what == "link" else path.name)
    elif what != "lose":
        path.write_bytes({"short": data[:-9], "long": data + b"more", "any": b"\xff\xfe\0" * 9, "empty": b""}[what])


def test_partial_folders(watch, merged):
    """Whatever is there, the same command either refuses it or makes the output that it would have made."""
    argv, expected = merged
    partial = killed(watch, argv)
    kept = watch.root / "kept"
    shutil.copytree(partial, kept)
    files = sorted(path.name for path in kept.iterdir())
    assert SHARD in files
    assert ".fingerprint" in files
    lines = kept.joinpath(".journal").read_bytes()
    changed = []

    def write(case):
        shutil.rmtree(partial)
        shutil.copytree(kept, partial)
        name, content = case
        changed[:] = [name if isinstance(content, bytes) else content]
        if isinstance(content, bytes):
            (partial / name).write_bytes(content)
        else:
            put(partial / name, content)

    def again(*more):
        def attempt():
            code = watch.command([*argv, *more])
            out = watch.root / "work" / "out"
            assert code in (0, 1)
            assert out.exists() == (code == 0)
            if not code and changed[0] not in (".journal", "any", "long"):  # what lies about itself is believed
                assert weights(out) == expected, changed

        return attempt

    strategy = st.one_of(
        odd_lines(lines).map(lambda data: (".journal", data)),
        odd_lines(lines).map(lambda data: (".journal.1", data)),
        st.one_of(damaged(b"0" * 64), st.binary(max_size=9)).map(lambda data: (".fingerprint", data)),
        other_places(files),
        st.just((SHARD, "short")),
    )
    try_cases("partial folders", strategy, write, (again(), again(), again("--overwrite"), again("--verify", "true")))


def test_markers(watch):
    """A marker that is damaged protects what stands beside it."""
    inputs, before = watch.root / "inputs", watch.root / "before"
    bert = save_bert(inputs / "bert")
    base, *tuned = random_states(inputs, 1)
    commands = {
        "merge": ["merge", "--models", *tuned, "--base", base, "--output", "out"],
        "export": ["export", *tuned, "--format", "safetensors", "--output", "out"],
        "rename": ["rename", bert, "--add_prefix", "x.", "--output", "out"],
        "map": ["map", bert, bert, "--apply", "out"],
    }
    assert watch.command(commands["merge"]) == 0
    shutil.copytree(watch.root / "work" / "out", before / "out")
    (before / "out" / "mine.txt").write_text("of the user")
    marker = before / "out" / ".lit_wsl.json"
    note = json.loads(marker.read_text())
    whole = {"fingerprint": "0" * 64, "files": note["files"]}

    def write(case):
        place, data = case
        for folder in before.iterdir():
            if folder.name != "out":
                folder.rename(before / "out")
        for path in (before / "out").glob("out*"):
            path.unlink()
        marker.write_bytes(data)
        if place:
            (before / "out").rename(before / place)

    def attempt(name, *more):
        def each():
            code = watch.command([*commands[name], *more])
            is_listed = not (before / "out").exists() or b"mine.txt" in marker.read_bytes()
            assert is_listed or list((watch.root / "work").rglob("mine.txt")), (code, "a file of the user is gone")

        return each

    contents = st.one_of(
        documents(whole),
        st.builds(lambda files: as_json({**whole, "files": files}), values),
        st.builds(lambda more: as_json({**whole, "files": [*note["files"], "mine.txt", *more]}), st.lists(values)),
    )
    places = st.sampled_from(["", "", "out.replaced", "out.partial"])
    strategy = st.tuples(places, contents)
    quick = tuple(attempt(name, *more) for name in commands for more in ((), ("--overwrite",), ("--overwrite",)))
    try_cases("markers", strategy, write, quick)


LEFT = {
    "a lock of a dead process": lambda work: (work / "out.partial.lock").write_text("4194304"),
    "a lock that is a folder": lambda work: (work / "out.partial.lock").mkdir(),
    "a lock that leads nowhere": lambda work: (work / "out.partial.lock").symlink_to("gone/away"),
    "a lock that leads to itself": lambda work: (work / "out.partial.lock").symlink_to("out.partial.lock"),
    "a partial that is a file": lambda work: (work / "out.partial").write_text("x"),
    "a partial that leads nowhere": lambda work: (work / "out.partial").symlink_to("gone"),
    "a partial of a stranger": lambda work: (work / "out.partial" / "a").mkdir(parents=True),
    "what was replaced is a file": lambda work: (work / "out.replaced").write_text("x"),
    "what was replaced is not ours": lambda work: (work / "out.replaced" / "a").mkdir(parents=True),
    "an output that leads nowhere": lambda work: (work / "out").symlink_to("gone"),
    "an output that leads to itself": lambda work: (work / "out").symlink_to("out"),
    "scratch of a dead process": lambda work: (work / "out.host.4194304.partial").write_text("x"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_stands_in_the_way(watch, merged, name):
    """The command works beside it, or names it in one line."""
    argv, expected = merged
    before = watch.root / "before"
    before.mkdir()
    LEFT[name](before)
    for more in ((), ("--overwrite",)):
        code = watch.command([*argv, *more])
        out = Path(watch.root, "work", "out")
        assert code in (0, 1)
        assert code or weights(out) == expected
