"""Directories of comparisons of any content: shown by `analyze`, taken up again by `--resume`."""

import json
import re
import shutil

from hypothesis import strategies as st

from tests.faults.cases import try_cases
from tests.faults.strategies import documents, values
from tests.merging.build import random_states

FACTORS = ".factors/000000.safetensors"


def test_comparisons(watch):
    base, tuned = random_states(watch.root / "inputs", 1)
    made = watch.root / "made"
    command = ["extract-lora", base, tuned, "--output_dir", "out", "--rank", "2", "--threads", "1"]
    assert watch.command(command) == 0
    shutil.copytree(watch.root / "work" / "out", made)
    before = watch.root / "before" / "out"
    identity = json.loads((made / "journal.jsonl").read_text().split("\n")[0])["work"]["files"]
    known = {str(watch.root): "{here}", identity: "{files}"}

    def plain(text):
        """Text without place and time."""
        for one, word in known.items():
            text = text.replace(one, word)
        return re.sub(r'("\w*time": )[\d.e-]+', r"\g<1>0.5", text)

    lines = [json.loads(plain(line)) for line in (made / "journal.jsonl").read_text().splitlines()]
    files = {name: json.loads(plain((made / name).read_text())) for name in OTHERS}

    def write(case):
        shutil.rmtree(before, ignore_errors=True)
        shutil.copytree(made, before)
        for name, data in case.items():
            for one, word in known.items():
                data = data.replace(word.encode(), one.encode())
            (before / name).write_bytes(data)

    def journal(at):
        wholes = [json.dumps(line).encode() for line in lines]
        return documents(lines[at]).map(lambda data: b"\n".join([*wholes[:at], data, *wholes[at + 1 :], b""]))

    strategy = st.one_of(
        st.sampled_from(range(len(lines))).flatmap(journal).map(lambda data: {"journal.jsonl": data}),
        st.sampled_from(range(1, len(lines))).flatmap(field_of_a_finding(lines)).map(lambda d: {"journal.jsonl": d}),
        st.sampled_from(OTHERS).flatmap(lambda name: documents(files[name]).map(lambda data: {name: data})),
        st.binary(max_size=30).map(lambda data: {"extracted_lora_weights.safetensors": data}),
    )
    quick = (
        lambda: watch.command(["analyze", "out"]),
        lambda: watch.command(["analyze", "out", "--json"]),
    )
    slow = (
        lambda: watch.command([*command, "--resume"]),
        lambda: watch.command([*command, "--overwrite"]),
        lambda: watch.command(["compare", base, tuned, "--output_dir", "out", "--resume"]),
    )
    write({})
    assert watch.command([*command, "--resume"]) == watch.command(["analyze", "out"]) == 0
    try_cases("comparisons", strategy, write, quick * 6 + slow)


OTHERS = ("architecture_comparison.json", "lora_metadata.json", "weight_differences.json")


def field_of_a_finding(lines):
    """A journal with one figure of one tensor of any value."""

    def of_line(at):
        places = [(part, key) for part in ("change", "pattern") for key in sorted(lines[at][part] or {})]
        return st.builds(lambda place, value: with_value(lines, at, place, value), st.sampled_from(places), values)

    return of_line


def with_value(lines, at, place, value):
    part, key = place
    changed = {**lines[at], part: {**lines[at][part], key: value}}
    return b"".join(json.dumps(changed if n == at else line).encode() + b"\n" for n, line in enumerate(lines))
