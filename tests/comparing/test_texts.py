"""Text files hold the lines that were asked for, and the figures of the findings."""

import re
from dataclasses import replace

import pytest

from lit_wsl.comparing.texts import DifferenceText, most_modified, report_text
from lit_wsl.comparing.verdict import verdict_of
from lit_wsl.errors import CheckpointError
from tests.comparing.examples import base, compared, dense, example


def _text(path, comparison):
    text = DifferenceText(path / "difference.txt", comparison)
    for finding in comparison.findings:
        text.add(finding)
    text.close(comparison)
    return (path / "difference.txt").read_text()


@pytest.fixture(scope="module")
def timed():
    """A comparison that NumPy repeated."""
    return compared(base(), dense(), method="both")


_BLOCK = r"""Layer: model\.layers\.0\.self_attn\.q_proj\.weight
  Shape: \[64, 64\]
  Total time: \d+\.\d{3}s
  Tensor computation: \d+\.\d{3}s
  NumPy computation: \d+\.\d{3}s
  Speedup \(Tensor vs NumPy\): \d+\.\d{2}x
  Mean abs diff: 0\.\d{8}
  Max abs diff: 0\.\d{8}
  Relative diff: 0\.\d{8}
  Changed ratio: \d+\.\d{2}%
-{60}
"""
_SUMMARY = r"""={80}
PERFORMANCE SUMMARY
={80}
Total time: \d+\.\d{2}s
Average time per layer: \d+\.\d{3}s
Slowest layer: \d+\.\d{3}s
Layers processed: 30
Modified layers: 30
Average tensor computation: \d+\.\d{3}s
Average NumPy computation: \d+\.\d{3}s
Tensor speedup over NumPy: \d+\.\d{2}x

TOP 20 MOST MODIFIED LAYERS:
-{80}
 1\. \S+
     Relative diff: 0\.\d{8}
     Changed ratio: \d+\.\d{2}%
     Processing time: \d+\.\d{3}s
     Tensor time: \d+\.\d{3}s
     NumPy time: \d+\.\d{3}s
     Shape: \[\d+(, \d+)*\]
 2\. """


def test_header_blocks_and_summary_have_the_asked_lines(tmp_path, timed):
    text = _text(tmp_path, timed)
    rule = "=" * 80
    title = "LAYER-BY-LAYER WEIGHT DIFFERENCE ANALYSIS"
    head = [rule, title, rule, f"Base Model: {timed.base}", f"Finetuned Model: {timed.finetuned}", "Threshold: 1e-06"]
    assert text.split("\n")[:9] == [*head, "Total Layers: 30", rule, ""]
    assert re.search(_BLOCK, text)
    assert re.search(_SUMMARY, text)
    assert len(re.findall(r"^Layer: ", text, re.MULTILINE)) == 30
    assert text.isascii()


def test_lines_of_numpy_stand_only_where_it_was_asked_for(tmp_path):
    assert "NumPy" not in _text(tmp_path, example("dense"))


def test_top_20_are_in_order_and_without_equal_tensors(tmp_path):
    top = most_modified(example("dense").findings)
    sizes = [change.relative_diff for _, change in top]
    assert len(top) == 20
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == max(one.change.relative_diff for one in example("dense").findings)
    assert {name.split(".")[-2] for name, _ in most_modified(example("lora").findings)} == {"q_proj", "v_proj"}
    assert "(no layer changed)" in _text(tmp_path, example("identical"))


def test_blocks_are_on_disk_before_the_end(tmp_path):
    comparison = example("dense")
    text = DifferenceText(tmp_path / "difference.txt", comparison)
    text.add(comparison.findings[0])
    assert f"Layer: {comparison.findings[0].name}\n" in (tmp_path / "difference.txt").read_text()
    text.close(replace(comparison, findings=comparison.findings[:1]))
    assert "Layers processed: 1\n" in (tmp_path / "difference.txt").read_text()


def test_a_second_run_replaces_the_text(tmp_path):
    assert _text(tmp_path, example("lora")) == _text(tmp_path, example("lora"))


def test_a_failed_tensor_has_its_reason(tmp_path):
    text = _text(tmp_path, example("damaged"))
    assert "Layer: model.layers.1.mlp.up_proj.weight\n  Failed: 1 NaN" in text
    assert "Layers processed: 29\nLayers failed: 1\n" in text


def test_a_text_that_cannot_be_written_is_one_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="could not be written"):
        DifferenceText(tmp_path / "missing" / "difference.txt", example("lora"))


@pytest.mark.parametrize("name", ["identical", "lora", "dense", "damaged", "resized"])
def test_report_begins_with_the_verdict_and_holds_every_finding(name):
    report, verdict = report_text(example(name), {}), verdict_of(example(name))
    assert report.startswith(f"{verdict.headline}.\n\nBase: ")
    assert all(f"- {one}\n" in report for one in verdict.findings)


def test_report_tables_are_aligned_and_hold_what_changed():
    report = report_text(example("lora and head"), {})
    table = report.split("By kind of module, the largest difference first:\n")[1].split("\n\n")[0].split("\n")
    assert [line.split()[0] for line in table[1:]][:2] == ["q_proj", "lm_head"]
    assert len({len(line) for line in table}) == 1
    assert "k_proj" not in report


def test_report_tells_differences_of_the_configuration():
    configs = {"config": {"rope.theta": {"base": 1e4, "finetuned": 1e6}}, "tokenizer": {}}
    assert "Configuration, base -> fine-tuned:\n  config.rope.theta: 10000.0 -> 1000000.0\n" in report_text(
        example("lora"), configs
    )
