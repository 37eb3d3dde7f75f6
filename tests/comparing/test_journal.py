"""A comparison that was killed goes on where it stood, and only that one."""

import json

import pytest

from lit_wsl.comparing.journal import NAME, Journal, identity, read_journal
from lit_wsl.comparing.records import Extracted, Finding, Pattern, TensorChange
from lit_wsl.errors import CheckpointError

WORK = {"base": "a", "finetuned": "b", "settings": {"threshold": 1e-6, "rank": "auto"}, "files": "0123"}


def change(**values):
    numbers = {"numel": 6, "is_equal": False, "is_rounding": False, "modified": True, "mean_abs_diff": 1 / 3}
    known = ("max_abs_diff", "relative_diff", "changed_ratio", "cosine", "mean_diff", "std_diff", "diff_norm")
    others = dict.fromkeys((*known, "base_norm", "rounding_floor"), 0.1)
    return TensorChange(shape=[2, 3], base_dtype="bfloat16", tuned_dtype="float32", **{**others, **numbers, **values})


PATTERN = Pattern(
    shape=[2, 3],
    effective_rank=1,
    noise_edge=0.1,
    rank_confidence=0.9,
    rank_95_energy=None,
    rank_99_energy=2,
    max_singular_value=3.0,
    min_singular_value=1e-300,
    singular_values=[3.0, 0.1 + 0.2],
    energy_captured=0.99,
    energy_at={"1": 0.9},
    is_potential_lora=True,
    is_low_rank=True,
    is_exact=False,
)
FINDINGS = [
    Finding("a", change(histogram=[0.5, 0.5], nonfinite={"nan": 0, "inf": 2}, numpy_time=0.25)),
    Finding("b.\u00e9\n", change(), PATTERN, [Extracted(1, 0.1, 0.2, 5), Extracted(2, 0.0, 0.0, 10)]),
    Finding("c", failed="1 NaN and 0 infinite entries in the base"),
    Finding("d", change(is_equal=True)),
]


def write(directory, findings=FINDINGS, work=WORK, is_resumed=False):
    journal = Journal(directory, work, is_resumed=is_resumed)
    for finding in findings:
        journal.add(finding)
    journal.close()
    return journal


def test_what_is_added_is_read_back(tmp_path):
    write(tmp_path)
    assert read_journal(tmp_path) == (WORK, FINDINGS)


def test_each_finding_is_in_the_file_as_soon_as_it_is_added(tmp_path):
    journal = Journal(tmp_path, WORK, is_resumed=False)
    for count, finding in enumerate(FINDINGS, 1):
        journal.add(finding)
        assert read_journal(tmp_path)[1] == FINDINGS[:count]
    journal.close()


def test_failed_tensors_are_tried_again(tmp_path):
    write(tmp_path)
    journal = Journal(tmp_path, WORK, is_resumed=True)
    assert list(journal.finished) == ["a", "b.\u00e9\n", "d"]
    journal.add(Finding("c", change()))
    journal.close()
    assert [finding.failed for finding in read_journal(tmp_path)[1]] == [""] * 4


@pytest.mark.parametrize("lost", [1, 5, 100])
def test_a_line_that_was_cut_off_is_done_again(tmp_path, lost):
    write(tmp_path)
    content = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(content[:-lost])
    journal = write(tmp_path, FINDINGS[3:], is_resumed=True)
    assert list(journal.finished) == ["a", "b.\u00e9\n", "d"]
    assert len((tmp_path / NAME).read_text().splitlines()) == 4


@pytest.mark.parametrize("kept", [0, 10])
def test_a_journal_that_was_cut_off_in_its_first_line_is_begun_anew(tmp_path, kept):
    write(tmp_path)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:kept])
    assert Journal(tmp_path, WORK, is_resumed=True).finished == {}
    assert read_journal(tmp_path) == (WORK, [])


def test_without_resuming_nothing_is_taken_over(tmp_path):
    write(tmp_path)
    write(tmp_path, [])
    assert read_journal(tmp_path) == (WORK, [])
    write(tmp_path, [], is_resumed=True)


def test_nothing_is_lost_when_resuming_is_interrupted(tmp_path, monkeypatch):
    write(tmp_path)
    before = read_journal(tmp_path)

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Finding, "to_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Journal(tmp_path, WORK, is_resumed=True)
    assert read_journal(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("key", ["settings", "files", "base"])
def test_another_comparison_is_not_resumed(tmp_path, key):
    write(tmp_path)
    content = (tmp_path / NAME).read_bytes()
    with pytest.raises(CheckpointError, match=f"with other {key}; repeat it without `--resume`"):
        Journal(tmp_path, {**WORK, key: "other"}, is_resumed=True)
    assert (tmp_path / NAME).read_bytes() == content


@pytest.mark.parametrize(
    "text",
    ["[]\n", "3\n", '{"work": 3}\n', "{\n", '{"work": {}}\n[1]\n', '{"work": {}}\n{"name": "a"}\n', "\udcff\n"]
    + ['{"work": {}}\n{"name":"a","change":"b","pattern":null,"extracted":[],"failed":""}\n', "[" * 100_000 + "\n"],
)
def test_a_journal_that_is_none(tmp_path, text):
    (tmp_path / NAME).write_bytes(text.encode(errors="surrogateescape"))
    if text == "[]\n":  # as good as empty
        assert read_journal(tmp_path) == ({}, [])
        return
    for read in (lambda: read_journal(tmp_path), lambda: Journal(tmp_path, WORK, is_resumed=True)):
        with pytest.raises(CheckpointError, match="journal.jsonl is damaged"):
            read()


def test_no_journal(tmp_path):
    with pytest.raises(CheckpointError, match="holds no comparison; make one with `lit-wsl compare`"):
        read_journal(tmp_path)


def test_values_of_a_newer_version_are_left_out(tmp_path):
    write(tmp_path, FINDINGS[:1])
    header, line = (tmp_path / NAME).read_text().splitlines()
    content = json.loads(line)
    content["change"]["new_figure"] = 3
    (tmp_path / NAME).write_text(f"{header}\n{json.dumps(content)}\n")
    assert read_journal(tmp_path)[1] == FINDINGS[:1]


def test_the_identity_changes_with_the_files(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("abc")
    other.write_text("abc")
    before = identity([one, other])
    assert identity([other, one, one]) == before
    assert identity([one]) != before
    one.write_text("abcd")
    assert identity([one, other]) != before


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["name"], None),
        (["failed"], 3),
        (["change"], []),
        (["change"], "x"),
        (["change", "diff_norm"], None),
        (["change", "base_norm"], 10**400),
        (["change", "shape"], ["2", 3]),
        (["change", "numel"], True),
        (["change", "nonfinite"], {"nan": "2"}),
        (["pattern", "energy_at"], [0.9]),
        (["pattern", "rank_95_energy"], 0.5),
        (["extracted", 0, "rank"], "1"),
        (["extracted"], {"a": 1}),
    ],
)
def test_a_value_of_another_type_is_one_clear_error(place, value, tmp_path):
    write(tmp_path)
    path = tmp_path / NAME
    lines = path.read_text().splitlines()
    content = holder = json.loads(lines[2])
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    path.write_text("\n".join([*lines[:2], json.dumps(content), *lines[3:], ""]))
    with pytest.raises(CheckpointError, match="is damaged"):
        read_journal(tmp_path)
