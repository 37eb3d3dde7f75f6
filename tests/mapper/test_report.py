"""What a mapping looks like: reports, tables, trees."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from lit_wsl.errors import CheckpointError
from lit_wsl.mapper import WeightMap, WeightMapper, tables
from lit_wsl.mapper.hierarchy import branches_of
from lit_wsl.mapper.inventory import take_inventory
from lit_wsl.mapper.report import report_of
from lit_wsl.mapper.result import Match
from lit_wsl.mapper.rows import compressed, left_over_targets, operation_words, rows_of
from lit_wsl.state.operations import Fuse, PermuteHeads, Reshape, Split, Stack, Transpose, Unstack
from tests.mapper.pairs.registry import PAIRS

BY_NAME = {pair.name: pair for pair in PAIRS}
KEYS = {
    "source_model",
    "target_model",
    "source_params_count",
    "target_params_count",
    "matched_count",
    "coverage",
    "target_coverage",
    "mappings",
    "unmatched_source",
    "unmatched_target",
    "recipes",
    "strategy",
    "threshold",
}
VOID = {"meta", "input", "br", "wbr"}


class Page(HTMLParser):
    """Text and tags of a page; every tag must be closed in its order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def mapper(name):
    pair = BY_NAME[name]
    with torch.device("meta"):
        return WeightMapper(pair.source(True), pair.target(True))


def written(mapped, path):
    mapped.export_mapping_report(path)
    return path.read_text(encoding="utf-8")


def test_keys_and_rows_of_the_json(tmp_path):
    mapped = mapper("vit hf→timm")
    report = json.loads(written(mapped, tmp_path / "r.json"), parse_constant=pytest.fail)
    assert set(report) >= KEYS
    assert report["source_model"] == "ViTForImageClassification"
    assert report["coverage"] == report["target_coverage"] == 1.0
    assert report["matched_count"] == report["source_params_count"] == len(mapped.source.weights)
    assert {"source", "target", "score", "shape", "match_type", "scores", "alternatives", "note"} <= set(
        report["mappings"][0]
    )
    fused = [row["source"] for row in report["mappings"] if row["target"] == "blocks.0.attn.qkv.weight"]
    assert [name.split(".")[-2] for name in fused] == ["q_proj", "k_proj", "v_proj"]
    assert WeightMap.from_json(report["recipes"]).targets() == mapped.suggest_mapping().recipes.targets()


def test_a_split_source_has_a_row_for_every_target():
    rows = report_of(mapper("llama litgpt→hf").suggest_mapping())["mappings"]
    targets = [row["target"] for row in rows if row["source"] == "transformer.h.0.attn.qkv.weight"]
    assert [name.split(".")[-2] for name in targets] == ["q_proj", "k_proj", "v_proj"]
    assert {row["match_type"] for row in rows} == {"copy", "split"}


def test_left_over_tensors_have_reasons(tmp_path):
    mapped = WeightMapper(source_params={"a.weight": (4, 4), "b.weight": (7,)}, target_params={"a.weight": (4, 4)})
    report = json.loads(written(mapped, tmp_path / "r.json"))
    assert report["unmatched_source"] == [{"name": "b.weight", "reason": mapped.get_unmatched()["b.weight"]}]
    assert "no tensor of the target fits its shape (7,)" in report["unmatched_source"][0]["reason"]


def test_json_is_strict_whatever_the_scores():
    result = mapper("vit hf→timm").suggest_mapping()
    first = result.matches[0]
    odd = replace(first, scores=replace(first.scores, name=float("nan")))
    report = report_of(replace(result, matches=(odd, *result.matches[1:])))
    assert report["mappings"][0]["scores"]["name"] is None
    json.dumps(report, allow_nan=False)


def test_reports_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    mapped = mapper("vit hf→timm")
    text = written(mapped, tmp_path / "r.json")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match=r"No space left on device.*earlier file is untouched"):
        mapped.export_mapping_report(tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text() == text
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(CheckpointError, match="is a directory"):
        mapped.export_mapping_report(tmp_path)


def test_the_page_is_whole_and_asks_for_nothing(tmp_path):
    text = written(mapper("resnet timm→hf"), tmp_path / "r.html")
    page = Page(text)
    assert not re.search(r"https?://|//\w|url\(|@import", text)
    assert not [attributes for _, attributes in page.tags if {"src", "href"} & set(attributes)]
    tags = [tag for tag, _ in page.tags]
    assert {"details", "summary", "style", "script", "input"} <= set(tags)
    assert "prefers-color-scheme: dark" in text
    ambiguous, recipes = page.text.find("Ambiguous"), page.text.find("Recipes")
    assert -1 < ambiguous < recipes
    assert tags.count("details") < tags.count("tr") <= 161 + tags.count("table")


def test_the_page_escapes_names(tmp_path):
    names = {"<b>x</b>&.weight": (4, 4), "</script><script>alert(1)//.bias": (3,), '"onload=x': (9, 9)}
    text = written(WeightMapper(source_params=names, target_params={**names, "<i>": (5,)}), tmp_path / "r.html")
    page = Page(text)
    assert {"b", "i"}.isdisjoint(tag for tag, _ in page.tags)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "<b>x</b>&.weight" in page.text
    assert "<i>" in page.text


def test_names_are_compressed():
    assert compressed(f"layers.{i}.attn.q" for i in range(24)) == "layers.{0..23}.attn.q"
    assert compressed(["a.3.w", "a.2.w", "a.1.w", "a.7.w"]) == "a.{3..1,7}.w"
    assert compressed(["a.layer_0.w", "a.layer_1.w"]) == "a.layer_{0,1}.w"
    assert compressed(["a.q.w", "a.k.w"]) == "a.{q,k}.w"
    assert compressed(f"a.{i * i}" for i in range(2, 12)) == "a.{4,9,16,…,121}"
    assert compressed(["a.5.w"]) == "a.5.w"


def test_operations_in_words():
    steps = (Transpose(), Fuse((2, 2)), Split((1, 1), groups=4), Stack(8), Unstack(8), PermuteHeads(2))
    assert [operation_words((step,)) for step in steps] == [
        "transpose",
        "fuse of 2",
        "split into 2 from 4 groups",
        "stack of 8",
        "unstack into 8",
        "heads to pairs",
    ]
    assert operation_words(()) == "copy"
    assert operation_words((Reshape((4,), (2, 2)), Transpose((0, 2, 1)))) == "reshape, dimensions 0, 2, 1"


def test_repeated_blocks_are_one_row():
    rows = {row.targets: row for row in rows_of(mapper("vit hf→timm").suggest_mapping())}
    row = next(row for name, row in rows.items() if name.endswith("attn.qkv.weight"))
    assert re.fullmatch(r"vit\.layers\.{[\d.,]+}\.attention\.{q_proj,k_proj,v_proj}\.weight", row.sources)
    assert row.operation == "fuse of 3"
    assert row.shape.startswith("3 × [")
    result = mapper("llama hf→litgpt").suggest_mapping()
    assert sum(len(row.matches) for row in rows_of(result)) == len(result.matches)


def test_uneven_names_and_alternatives():
    result = WeightMapper(
        source_params={"deep.er.weight": (4, 4), "b.weight": (4, 4)}, target_params={"x.weight": (8, 4)}
    ).suggest_mapping(threshold=0.0)
    [entry] = WeightMap.from_json(
        {
            "version": 1,
            "entries": [{"sources": ["deep.er.weight", "b.weight"], "operations": [], "targets": ["x.weight"]}],
        }
    )
    scores = WeightMapper(source_params={"w": (2,)}, target_params={"w": (2,)}).get_score_breakdown("w")
    match = Match(entry, ((8, 4),), replace(scores, confidence=0.5), ("x.weight", "much.longer.y"), "of: x")
    [row] = rows_of(replace(result, matches=(match,)))
    assert row.sources == "deep.er.weight, b.weight"
    assert row.alternatives == "x.weight, much.longer.y"
    assert row.is_ambiguous


def test_leftovers_of_the_target_are_compressed():
    mapped = WeightMapper(source_params={"a": (3,)}, target_params={"a": (3,), **{f"h.{i}.w": (5,) for i in range(9)}})
    assert [row.name for row in left_over_targets(mapped.suggest_mapping())] == ["h.{0..8}.w"]


def test_trees_show_alike_blocks_once():
    model = nn.ModuleDict({"blocks": nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)), nn.Linear(2, 5))})
    [top] = branches_of(take_inventory(model))
    assert [branch.name for branch in top.children] == ["{0..2}", "3"]
    assert top.children[0].tensors == "weight [2, 2], bias [2]"
    assert top.children[0].layer == "Linear"


def test_printed_tables_hold_names_as_they_are(capsys):
    names = {"[bold]x[/bold].:smile:.weight": (4, 4), "left.over": (5,)}
    mapped = WeightMapper(source_params=names, target_params={"[bold]x[/bold].:smile:.weight": (4, 4), "new": (6,)})
    mapped.visualize_mapping()
    mapped.print_analysis()
    mapped.visualize_hierarchies()
    out = capsys.readouterr().out
    assert "[bold]x[/bold].:smile:.weight" in out
    assert "no tensor of the target fits its shape (5,)" in out
    assert "1 of 2 source tensors are mapped (50.0%); 1 of 2 target tensors are made (50.0%)." in out
    assert "\x1b" not in out


def test_names_stand_below_each_other_where_there_is_no_room(capsys):
    mapped = mapper("vit hf→timm")
    mapped.visualize_mapping()
    assert "┃ source " in capsys.readouterr().out
    mapped.visualize_mapping(width=80)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("→\N{NO-BREAK SPACE}blocks." in line for line in lines)


@pytest.mark.parametrize("width", [72, 100])
def test_every_line_fits_a_width(capsys, width):
    mapped = mapper("vit hf→timm")
    mapped.suggest_mapping(strategy="shape_only", threshold=0.0)
    mapped.visualize_mapping(width)
    mapped.print_analysis(width)
    lines = capsys.readouterr().out.splitlines()
    assert width - 4 <= max(map(len, lines)) <= width


def test_a_notebook_has_the_width_of_its_page(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert tables._console().width < 130
    assert tables._console(90).width == 90


def test_longest_names_do_not_break_the_tables(capsys):
    name = ".".join(["a" * 50] * 20)
    mapped = WeightMapper(source_params={name: (2, 2)}, target_params={name: (2, 2), "é☃.x": (3,)})
    mapped.visualize_mapping()
    mapped.visualize_hierarchies()
    assert "é☃" in capsys.readouterr().out
