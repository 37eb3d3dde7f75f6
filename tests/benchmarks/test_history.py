"""The history of the benchmarks: what is kept, what the table says of it, and that the page shows it."""

import json

import pytest

from benchmarks.everything import main as everything
from benchmarks.headlines import READERS, Headline
from benchmarks.history import README, change, entries, keep, main, read, table, with_table
from benchmarks.provenance import provenance

MACHINE = {"cores": 2, "load": 0.512}


def merged(ours, theirs, date="2026-01-01"):
    """Results of one merge, whose CPU times are given."""
    figures = {"wall": 3.0, "peak_rss": 9e8, "peak_anonymous": 2e8}
    row = {"merge": "linear", "ours": figures | {"cpu": ours}, "peer": figures | {"cpu": theirs, "wall": 15.0}}
    row["floor"] = figures | {"wall": 1.5, "cpu": 1.0}
    where = provenance("merge_models", ["--methods", "linear", "--json", "FILE"]) | {"date": date}
    return where | {"machine": MACHINE, "size": "0.5B", "runs": 3, "rows": [row]}


def test_an_entry_repeats_the_command_without_private_paths():
    (one,) = entries(merged(2.0, 10.0))
    assert one["command"] == "python -m benchmarks.merge_models --methods linear"
    assert one["load"] == 0.5
    assert one["subject"] == "merge 0.5B models: linear"
    assert (one["floor"], one["peer"], one["memory"]) == (1.5, "mergekit", 2e8)


def test_what_was_kept_stays_and_the_table_has_the_last(tmp_path):
    path = tmp_path / "history.jsonl"
    assert read(path) == []
    keep(entries(merged(2.0, 10.0)), path)
    first = path.read_text()
    keep(entries(merged(2.0, 12.0, "2026-01-02")), path)
    assert path.read_text().startswith(first)
    (line,) = table(read(path)).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:7] == ["merge 0.5B models: linear", "3", "mergekit", "15", "5", "6", "2"]
    assert cells[9:11] == ["1.20", "2026-01-02, 0.5"]


@pytest.mark.parametrize(("theirs", "expected"), [(10.0, "1.00"), (9.5, "0.95"), (8.0, "0.80 ▼"), (20.0, "2.00")])
def test_what_got_worse_is_marked(theirs, expected):
    (before,), (now,) = entries(merged(2.0, 10.0)), entries(merged(2.0, theirs))
    assert change(now, before) == expected
    assert change(now, None) == "–"


def test_without_a_peer_the_floor_counts():
    before, now = ({"wall": wall, "floor": 1.0} for wall in (2.0, 4.0))
    assert change(now, before) == "0.50 ▼"
    assert change({"wall": 1.0}, before) == "–"


def test_exit_code_tells_of_a_regression(monkeypatch, capsys):
    kept = [*entries(merged(2.0, 10.0)), *entries(merged(4.0, 10.0))]
    for last, code in ((1, 0), (2, 1)):
        monkeypatch.setattr("benchmarks.history.read", lambda last=last: kept[:last])
        assert main([]) == code
    assert "0.50 ▼" in capsys.readouterr().out


def test_a_peer_has_a_name_and_a_time():
    with pytest.raises(ValueError, match="name and a time"):
        Headline("merge", 1.0, peer="mergekit")


def test_the_page_shows_the_history():
    page = README.read_text(encoding="utf-8")
    assert with_table(page, read()) == page
    assert {one["benchmark"] for one in read()} <= set(READERS)
    assert all(json.dumps(one) for one in read())


def test_a_failed_benchmark_is_not_kept(monkeypatch, capsys):
    class Failed:
        returncode = 1

    monkeypatch.setattr("benchmarks.everything.subprocess.run", lambda *_, **__: Failed)
    monkeypatch.setattr("benchmarks.everything.keep", lambda _: pytest.fail("kept"))
    assert everything(["--only", "startup", "mapper"]) == 1
    assert "startup, mapper" in capsys.readouterr().err


def test_results_that_are_not_there_are_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--keep", "nowhere.json"])
    assert ended.value.code == 2
    assert "nowhere.json is no file" in capsys.readouterr().err
