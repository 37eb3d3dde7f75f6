import hashlib
import io
import json
import logging
import subprocess
import tarfile
import zipfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from lit_wsl.errors import ConfigError, DataError
from lit_wsl.training.tasks import SPLITS, TASKS, find_task, prepare, prepare_task, prepare_tasks
from lit_wsl.training.tasks.fetch import fetch_source
from lit_wsl.training.tasks.langid import read_mo
from lit_wsl.training.tasks.splits import SIZES, normalised
from lit_wsl.training.tasks.task import Row, Source, TextTask
from lit_wsl.training.tasks.vader import read_snippets


def _source(content, version="1"):
    return Source("toy", version, "toy-1.zip", hashlib.sha256(content).hexdigest())


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A registered task whose archive is in the cache already; ``toy.builds`` counts the extractions."""
    content = b"archive"
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "toy-1.zip").write_bytes(content)
    builds = []

    def extract(path):
        builds.append(path)
        return [Row(f"{label} {split} {i}", label, split) for label in "ab" for split in SPLITS for i in range(3)]

    monkeypatch.setitem(TASKS, "toy", TextTask("toy", {"a": "prompt a", "b": "prompt b"}, _source(content), extract))
    return builds


def test_a_second_call_only_checks(toy, tmp_path):
    first, second = prepare_task("toy", tmp_path), prepare_task("toy", tmp_path)
    assert first == second
    assert len(toy) == 1
    assert (first.labels, first.prompts) == (["a", "b"], ["prompt a", "prompt b"])
    rows = [json.loads(line) for line in first.file("train").read_text().splitlines()]
    assert Counter(row["label"] for row in rows) == {"a": 3, "b": 3}


@pytest.mark.parametrize("file", ["train.jsonl", "test.jsonl", "task.json"])
@pytest.mark.parametrize("damage", [b"", b"\xff[", None], ids=["empty", "garbage", "gone"])
def test_damage_is_detected_and_mended(toy, tmp_path, caplog, file, damage):
    directory = prepare_task("toy", tmp_path).directory
    whole = {path.name: path.read_bytes() for path in directory.iterdir()}
    if damage is None:
        (directory / file).unlink()
    else:
        (directory / file).write_bytes(damage)
    with caplog.at_level(logging.INFO, logger="lit_wsl"):
        prepare_task("toy", tmp_path)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == whole
    assert len(toy) == 2
    assert "Preparing task toy" in caplog.text


def test_another_revision_is_rebuilt(toy, tmp_path, monkeypatch):
    prepare_task("toy", tmp_path)
    monkeypatch.setitem(TASKS, "toy", replace(TASKS["toy"], revision=2))
    prepare_task("toy", tmp_path)
    assert len(toy) == 2


def test_a_class_without_rows_is_an_error(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "toy", replace(TASKS["toy"], prompts={"a": "", "b": "", "c": ""}))
    with pytest.raises(DataError, match="no train row for c"):
        prepare_task("toy", tmp_path)
    assert not (tmp_path / "tasks" / "toy").exists()


def test_an_unknown_name_stops_before_any_work(toy, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'langid'"):
        prepare_tasks(["toy", "langd"], tmp_path)
    assert not toy
    assert find_task("langid").name == "langid"


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_WSL_CACHE", str(tmp_path / "elsewhere"))
    assert prepare.cache_directory() == tmp_path / "elsewhere"


def test_a_damaged_archive_is_fetched_again(tmp_path, monkeypatch):
    source = _source(b"archive")
    (tmp_path / source.filename).write_bytes(b"damaged")
    requirements = []

    def pip(command, **_):
        requirements.append(Path(command[-1]).read_text())
        (Path(command[-3]) / source.filename).write_bytes(b"archive")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    for _ in range(2):
        assert fetch_source(source, tmp_path).read_bytes() == b"archive"
    assert requirements == [f"toy==1 --hash=sha256:{source.sha256}\n"]
    assert [path.name for path in tmp_path.iterdir()] == [source.filename]


def test_a_failed_fetch_is_one_clear_line(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: slow\nERROR: No matching distribution found for toy==1\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DataError, match=r"toy==1: No matching distribution found for toy==1\. Go online") as caught:
        fetch_source(_source(b"archive"), tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_snippets_of_one_document_or_one_text_share_a_split(tmp_path):
    lines = {
        "movieReviewSnippets": ["1\t2.5\tA &amp; B  is good", "2\t-1\tunlike any other"],
        "amazonReviewSnippets": [f"7_{i}\t0.5\tsentence number {i}" for i in range(20)],
        "nytEditorialSnippets": ["9_1\t0\tUnlike any OTHER!"],
        "tweets": ["1\t-3\tugh\ttab"],
    }
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for name, rows in lines.items():
            data = ("\ufeff" + "\r\n".join(rows) + "\r\n").encode()
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    archive = tmp_path / "vader.zip"
    with zipfile.ZipFile(archive, "w") as outer:
        outer.writestr("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())
    snippets = read_snippets(archive)
    assert snippets[0].text == "A & B is good"
    assert len({snippet.split for snippet in snippets if snippet.kind == "product"}) == 1
    same = [snippet for snippet in snippets if normalised(snippet.text) == "unlike any other"]
    assert len(same) == 2
    assert same[0].split == same[1].split


def test_read_mo_matches_gettext(tmp_path):
    import gettext
    import struct

    pairs = sorted(
        {"": "Content-Type: text/plain; charset=UTF-8\n", "ctx\x04dog": "Hund", "cat": "Katze\0Katzen"}.items()
    )
    header, body = 28, b""
    tables = [[], []]
    start = header + 16 * len(pairs)
    for side in (0, 1):
        for pair in pairs:
            data = pair[side].encode()
            tables[side].append((len(data), start + len(body)))
            body += data + b"\0"
    numbers = [0x950412DE, 0, len(pairs), header, header + 8 * len(pairs), 0, 0]
    packed = struct.pack("<7I", *numbers) + b"".join(struct.pack("<2I", *e) for t in tables for e in t) + body
    assert read_mo(packed) == {"dog": "Hund", "cat": "Katze"}
    assert gettext.GNUTranslations(io.BytesIO(packed)).pgettext("ctx", "dog") == "Hund"
    with pytest.raises(ValueError, match="no little-endian"):
        read_mo(b"\0" * 40)


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    prepare_tasks(TASKS, cache)
    return cache


@pytest.mark.real
def test_real_tasks_have_every_class_in_disjoint_splits_of_the_right_size(real_cache):
    for name in ("sentiment", "tweets", "genre", "intent", "langid"):
        task = prepare_task(name, real_cache)
        seen = defaultdict(set)
        for split in SPLITS:
            rows = [json.loads(line) for line in task.file(split).read_text().splitlines()]
            counts = Counter(row["label"] for row in rows)
            assert set(counts) == set(task.labels)
            assert 0.8 * SIZES[split] <= len(rows) <= SIZES[split]
            for row in rows:
                seen[normalised(row["text"])].add(split)
        assert all(len(splits) == 1 for splits in seen.values()), name
    assert len(prepare_task("intent", real_cache).labels) == 30
    assert len(prepare_task("langid", real_cache).labels) == 18


@pytest.mark.real
def test_real_groups_never_cross_splits_or_tasks(real_cache):
    snippets = read_snippets(real_cache / "sources" / TASKS["genre"].source.filename)
    home = {normalised(snippet.text): snippet.split for snippet in snippets}
    for name in ("sentiment", "tweets", "genre"):
        task = prepare_task(name, real_cache)
        for split in SPLITS:
            for line in task.file(split).read_text().splitlines():
                assert home[normalised(json.loads(line)["text"])] == split


@pytest.mark.real
def test_real_files_do_not_depend_on_the_run(real_cache, tmp_path):
    (tmp_path / "sources").symlink_to(real_cache / "sources")
    for name in ("tweets", "intent"):
        first, second = prepare_task(name, real_cache), prepare_task(name, tmp_path)
        assert first.file("train").read_bytes() == second.file("train").read_bytes()
