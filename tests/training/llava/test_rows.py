"""Rows of images and conversations: found behind every form of path, faults named by file and line."""

import json
import subprocess
import sys

import pytest

from lit_wsl.errors import ConfigError, DataError
from lit_wsl.training.llava.listing import Sampling, parse_sampling
from lit_wsl.training.llava.rows import faults_of, image_paths, iter_rows


def row(number=0, answer="red", **fields):
    turns = [{"from": "human", "value": "Which colour?"}, {"from": "gpt", "value": answer}]
    return {"id": str(number), "conversations": turns, **fields}


def write(path, rows, **options):
    text = "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows, **options)
    path.write_text(text)
    return path


def ids(path, **options):
    return [int(located.row["id"]) for located in iter_rows(path, **options)]


@pytest.fixture
def two(tmp_path):
    """`part1.json` with rows 0 to 9 and `part2.json` with rows 10 to 14."""
    write(tmp_path / "part1.json", [row(i) for i in range(10)])
    write(tmp_path / "part2.json", [row(i) for i in range(10, 15)])
    return tmp_path


def test_a_list_gives_elements_and_the_lines_they_start_on(tmp_path):
    rows = [row(i) for i in range(5)]
    located = list(iter_rows(write(tmp_path / "a.json", rows, indent=1)))
    assert [one.row for one in located] == rows
    assert [one.number for one in located] == [1, 2, 3, 4, 5]
    lines = (tmp_path / "a.json").read_text().splitlines()
    assert [one.line for one in located] == [n for n, text in enumerate(lines, start=1) if text == " {"]
    assert located[1].where == f"{tmp_path / 'a.json'}, row 2 (line {located[1].line})"


def test_lines_are_numbered_with_the_empty_ones(tmp_path):
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row(0))}\n\n{json.dumps(row(1))}\n")
    located = list(iter_rows(tmp_path / "a.jsonl"))
    assert [one.number for one in located] == [1, 3]
    assert located[1].where == f"{tmp_path / 'a.jsonl'}, line 3"


@pytest.mark.parametrize("text", ["[]", " [ ] ", "\n[\n]\n"])
def test_an_empty_list_has_no_rows(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    assert list(iter_rows(tmp_path / "a.json")) == []


def test_braces_name_several_files_in_their_order(two):
    assert ids(two / "part{2,1}.json") == [*range(10, 15), *range(10)]
    assert ids(str(two / "{part1, part2}.json")) == [*range(15)]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("all", list(range(10))),
        ("first:3", [0, 1, 2]),
        ("end:3", [7, 8, 9]),
        ("first:25%", [0, 1, 2]),
        ("end:10%", [9]),
        ("first:99", list(range(10))),
    ],
)
def test_a_listing_takes_what_its_strategy_says(strategy, expected, two):
    listing = two / "data.yaml"
    listing.write_text(
        f"datasets:\n- json_path: part1.json\n  sampling_strategy: {strategy}\n- json_path: part2.json\n"
    )
    assert ids(listing) == [*expected, *range(10, 15)]


@pytest.mark.parametrize("strategy", ["random:4", "random:40%", "40%"])
def test_random_rows_come_in_order_and_depend_on_the_seed_alone(strategy, two):
    listing = two / "data.yaml"
    listing.write_text(f"datasets:\n- json_path: part1.json\n  sampling_strategy: {strategy}\n")
    picked = ids(listing, seed=1)
    assert len(picked) == len(set(picked)) == 4
    assert picked == sorted(picked) == ids(listing, seed=1)
    assert any(ids(listing, seed=seed) != picked for seed in range(2, 6))


@pytest.mark.parametrize("strategy", ["last:3", "first", "5", "first:0", "first:120%", "first:x", None, "some"])
def test_a_strategy_that_is_none_is_refused(strategy):
    with pytest.raises(ConfigError, match=r"^here: .*sampling_strategy"):
        parse_sampling(strategy, "here")


def test_percent_rounds_up_like_llava_next():
    assert Sampling("first", 10, percent=True).chosen(11, seed=0) == range(2)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "LLaVA rows are in .json, .jsonl"),
        ("a.json", '{"id": 1}', "is no JSON list of rows; one row per line needs the ending .jsonl"),
        ("a.json", '[{"id": 1},\n {"id" 2}]', "line 2: no JSON"),
        ("a.json", '[{"id": 1} {"id": 2}]', "line 1: no JSON (Expecting ',' or ']'"),
        ("a.json", '[{"id": 1}', "line 1: no JSON"),
        ("a.json", "", "is no JSON list"),
        ("a.json", '[{"id": 1},\n{"id": ' + "9" * 5000 + "}]", "behind line 1: no JSON that can be read (Exceeds the"),
        ("a.json", "[" * 100_000, "behind line 1: no JSON that can be read"),
        ("a.yaml", "datasets: []", "`datasets` must be a list"),
        ("a.yaml", "datasets: [{path: a.json}]", "datasets[0]: expected `json_path`"),
        ("a.yaml", "datasets: [{json_path: a.csv}]", "must end in .json or .jsonl"),
        ("a.yaml", "datasets: [{json_path: gone.json}]", "gone.json does not exist"),
        ("a.yaml", "datasets: [", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_data_is_told_in_one_line(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises((ConfigError, DataError)) as raised:
        list(iter_rows(tmp_path / name))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_text_of_another_encoding_are_told(tmp_path):
    for name in ("gone.json", "gone{1,2}.json", "gone.yaml"):
        with pytest.raises(DataError, match="does not exist"):
            list(iter_rows(tmp_path / name))
    (tmp_path / "latin.jsonl").write_bytes('{"id": "Ü"}'.encode("latin-1"))
    with pytest.raises(DataError, match="no UTF-8 text"):
        list(iter_rows(tmp_path / "latin.jsonl"))


@pytest.mark.parametrize("content", ["9" * 5000, "[" * 100_000])
def test_a_line_that_the_parser_breaks_on_is_a_fault_of_its_row(content, tmp_path):
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(row(0))}\n{content}\n{json.dumps(row(1))}\n")
    faults = [faults_of(located) for located in iter_rows(tmp_path / "a.jsonl")]
    assert [len(of_row) for of_row in faults] == [0, 1, 0]
    assert faults[1][0].startswith("no JSON that can be read")


HUMAN = {"from": "human", "value": "Which?"}
GPT = {"from": "gpt", "value": "red"}
SEEING = {"from": "human", "value": "<image>\nWhich?"}


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (row(), []),
        ({"image": "a.png", "conversations": [SEEING, GPT]}, []),
        ({"image": ["a.png", "a.png"], "conversations": [SEEING, GPT, SEEING, GPT]}, []),
        ([1], ["a row must be an object"]),
        ({"conversations": []}, ["`conversations` is empty"]),
        ({"id": 1}, ["`conversations` must be a list, got None"]),
        ({"conversations": ["hello"]}, ["turn 1 must be an object", "no turn is of 'gpt'"]),
        ({"conversations": [{"from": "humn", "value": "a"}, GPT]}, ["unknown role 'humn'. Did you mean 'human'?"]),
        ({"conversations": [{"value": "a"}, GPT]}, ["unknown role None"]),
        ({"conversations": [{"from": "human"}, GPT]}, ["turn 1 has no text"]),
        ({"conversations": [HUMAN]}, ["no turn is of 'gpt'"]),
        ({"conversations": [HUMAN, {"from": "gpt", "value": " "}]}, ["turn 2 is an empty answer"]),
        ({"image": "gone.png", "conversations": [SEEING, GPT]}, ["gone.png does not exist"]),
        ({"image": "a" * 3000, "conversations": [SEEING, GPT]}, ["does not exist"]),
        ({"image": "~nobody.at.all/a.png", "conversations": [SEEING, GPT]}, ["does not exist"]),
        ({"conversations": [HUMAN, {"from": "gpt", "value": "\ud800"}]}, ["turn 2 has half of a surrogate pair"]),
        ({"image": "a.png", "conversations": [HUMAN, GPT]}, ["0 <image> in the text for 1 images"]),
        ({"conversations": [SEEING, GPT]}, ["1 <image> in the text for 0 images"]),
        ({"image": 7, "conversations": [SEEING, GPT]}, ["`image` must be a path"]),
        ({"video": "a.mp4", "conversations": [HUMAN, GPT]}, ["`video` is not read"]),
        (
            {"image": "a.png", "conversations": [HUMAN, {"from": "gpt", "value": "<image>"}]},
            ["turn 2 has <image> outside a human turn"],
        ),
        ({"conversations": [{"from": "human", "value": "<video>"}, GPT]}, ["turn 1 has <video>"]),
    ],
)
def test_each_fault_is_named(content, faults, tmp_path):
    (tmp_path / "a.png").write_bytes(b"never decoded")
    located = next(iter_rows(write(tmp_path / "a.json", [content])))
    found = faults_of(located)
    assert len(found) == len(faults), found
    assert all(part in text for part, text in zip(faults, found, strict=True)), found
    assert faults_of(located, tmp_path) == found


def test_a_line_that_is_no_json_is_a_fault_of_that_line(tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"id": 1\n{json.dumps(row())}\n')
    bad, good = iter_rows(tmp_path / "a.jsonl")
    assert "no JSON" in faults_of(bad)[0]
    assert faults_of(good) == []


def test_images_are_looked_for_in_the_folder_that_is_given(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").touch()
    located = next(iter_rows(write(tmp_path / "a.json", [{"image": "a.png", "conversations": [SEEING, GPT]}])))
    assert faults_of(located, tmp_path / "images") == []
    assert "does not exist" in faults_of(located)[0]
    assert image_paths(located.row, tmp_path / "images") == [tmp_path / "images/a.png"]


def test_reading_rows_imports_no_torch():
    code = (
        "import sys, lit_wsl.training.llava.rows as r; print({'torch', 'lightning', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
