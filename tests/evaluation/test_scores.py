import json
import math

import pytest

from lit_wsl.evaluation import ScoreTable, interference_delta
from lit_wsl.evaluation.report import score_table, write_report

ROWS = {
    "base": {"a": 0.5, "b": 0.6},
    "individual": {"a": 0.9, "b": 0.8},
    "sum <of> parts": {"a": 0.7, "b": 0.9},
}


def test_interference_is_the_share_of_the_gain_a10_4():
    assert interference_delta(0.5, 0.9, 0.7) == pytest.approx(0.5)
    assert interference_delta(0.5, 0.9, 0.9) == pytest.approx(1.0)
    assert interference_delta(0.5, 0.9, 0.4) == pytest.approx(-0.25)


def test_interference_turns_round_where_lower_is_better_a10_4():
    assert interference_delta(0.5, 0.1, 0.2, higher_is_better=False) == pytest.approx(0.75)
    assert interference_delta(0.5, 0.1, 0.6, higher_is_better=False) == pytest.approx(-0.25)


def test_no_gain_gives_no_share_a10_4():
    assert interference_delta(0.5, 0.5 + 9e-9, 0.7) is None
    assert interference_delta(0.5, 0.5 + 2e-8, 0.7) is not None


def test_means_shares_and_sampling_error():
    table = ScoreTable(["a", "b"], ROWS, {"a": 100, "b": 400})
    assert table.mean("base") == pytest.approx(0.55)
    assert table.interference("sum <of> parts", "b") == pytest.approx(1.5)
    assert table.recovered("sum <of> parts") == pytest.approx(0.25 / 0.3)
    by_hand = math.sqrt(0.5 * 0.5 / 100 + 0.6 * 0.4 / 400) / 2
    assert table.standard_error("base") == pytest.approx(by_hand)


def test_no_sampling_error_without_row_counts():
    assert ScoreTable(["a", "b"], ROWS).standard_error("base") is None


def test_figures_are_strict_json():
    table = ScoreTable(["a", "b"], {**ROWS, "individual": ROWS["base"]})
    figures = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert figures["rows"]["base"]["recovered"] is None
    assert figures["rows"]["sum <of> parts"]["scores"] == ROWS["sum <of> parts"]


def test_page_is_self_contained_and_escaped(tmp_path):
    table = ScoreTable(["a", "b"], ROWS, {"a": 100, "b": 400})
    write_report(
        tmp_path / "report.html",
        "Title & more",
        table,
        {"sum <of> parts": "scale 0.5"},
        {"base": "<x>"},
        best="sum <of> parts",
    )
    page = (tmp_path / "report.html").read_text()
    assert "sum &lt;of&gt; parts" in page
    assert "<of>" not in page
    assert "<x>" not in page
    assert "70.0" in page
    assert "90.0" in page
    assert "http" not in page
    assert page.count("class=best") == 1
    assert page.index("class=best") < page.index("sum &lt;of&gt; parts")


def test_terminal_table_has_a_row_for_each_model():
    table = score_table(ScoreTable(["a", "b"], ROWS, {"a": 100, "b": 400}), {"base": "note"})
    assert table.row_count == 3
    assert [str(cell) for cell in table.columns[1].cells] == ["50.0", "90.0", "70.0"]
