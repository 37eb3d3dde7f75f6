"""The page stands alone, tells the verdict first, and stays small."""

import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from matplotlib import rc_context

from lit_wsl.comparing.page import page
from lit_wsl.comparing.plots import heat_map, histogram, png_of, spectra, svg_of
from lit_wsl.comparing.verdict import verdict_of
from tests.comparing.examples import EXAMPLES, LAYERS, example

EVIL = '<img src="x" onerror=alert(1)>&amp'
_VOID = frozenset({"meta", "input", "wbr", "br", "path", "use", "rect", "circle"})


class _Reader(HTMLParser):
    """Elements that are open at the end, and every reference to something else."""

    def __init__(self):
        super().__init__()
        self.open, self.references, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for key, value in attrs if key in ("src", "href", "xlink:href", "action", "data")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag


def _read(html):
    reader = _Reader()
    reader.feed(html)
    return reader


@pytest.mark.parametrize("name", EXAMPLES)
def test_page_is_well_formed_and_asks_nothing_of_the_network(name):
    html = page(example(name), {})
    reader = _read(html)
    assert reader.open == []
    assert all(reference.startswith("#") for reference in reader.references)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "//" not in html.replace(example(name).base, "").replace(example(name).finetuned, "")
    assert not {"img", "image", "iframe", "link", "object"} & set(reader.tags)


@pytest.mark.parametrize("name", EXAMPLES)
def test_verdict_comes_first(name):
    html = page(example(name), {})
    headline = verdict_of(example(name)).headline.replace("'", "&#x27;")
    assert html.index(f">{headline}.</h1>") < html.index("<h2>")


def test_names_are_escaped():
    comparison = example("lora and head")
    known = replace(
        comparison.architecture, common_keys=[EVIL, *comparison.architecture.common_keys], failed={EVIL: EVIL}
    )
    first = next(one for one in comparison.findings if one.pattern)
    findings = [
        replace(first, name=f"model.layers.0.{EVIL}"),
        replace(first, name=f"{EVIL}.weight"),
        *comparison.findings,
    ]
    odd = replace(comparison, base=EVIL, finetuned=EVIL, architecture=known, findings=findings)
    html = page(odd, {"config": {EVIL: {"base": EVIL, "finetuned": [EVIL]}}})
    assert "<img" not in html
    assert "&lt;img" in html
    assert _read(html).open == []


def test_plots_are_left_out_where_nothing_changed():
    findings = example("identical").findings
    assert (heat_map(findings), spectra(findings), histogram(findings, 1e-6)) == (None, None, None)
    assert example("identical").figures() == {}
    assert "<svg" not in page(example("identical"), {})


def _texts(drawing):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg_of(drawing, "name", "label"))


def test_figures_look_the_same_on_a_page_in_a_file_and_in_a_notebook():
    """Their ticks are made in their own style, not in that of whoever draws them."""
    figures = example("dense").figures()
    assert list(figures) == ["heat_map", "spectra", "histogram"]
    for name, drawing in figures.items():
        inside = svg_of(drawing, name, "label")
        with rc_context({"xtick.labelcolor": "red", "font.size": 20.0}):
            assert svg_of(example("dense").figures()[name], name, "label") == inside
            drawing.draw_without_rendering()
        assert all(label.get_color() == "#2b3440" for label in drawing.axes[0].get_xticklabels())
        assert "var(--ink)" in inside
        assert "#2b3440" not in inside
        assert png_of(drawing).startswith(b"\x89PNG")


def test_heat_map_has_every_layer_and_kind():
    texts = _texts(heat_map(example("lora").findings))
    assert {f"layer {at}" for at in range(LAYERS)} <= set(texts)
    assert {"q_proj", "k_proj", "down_proj", "input_layernorm"} <= set(texts)


def test_spectra_have_a_panel_for_each_kind_that_changed():
    texts = _texts(spectra(example("lora and head").findings))
    assert {"q_proj (3)", "lm_head (1)"} <= set(texts)


def test_spectra_stand_in_order_of_norms_whose_squares_overflow():
    findings = [
        replace(one, change=one.change and replace(one.change, diff_norm=1e200 * one.change.diff_norm))
        for one in example("lora and head").findings
    ]
    assert _texts(spectra(findings)) == _texts(spectra(example("lora and head").findings))


def test_shares_of_the_histogram_are_percent():
    texts = _texts(histogram(example("dense").findings, 1e-6))
    shares = [float(text) for text in texts if re.fullmatch(r"\d+\.\d", text)]
    assert sum(shares) == pytest.approx(100.0, abs=0.5)


def test_the_same_comparison_gives_the_same_page():
    assert page(example("dense"), {}) == page(example("dense"), {})


def _enlarged(comparison, layers):
    """The comparison with the findings of its layers repeated."""
    inside = [one for one in comparison.findings if ".layers." in one.name]
    names = [
        re.sub(r"layers\.(\d+)", lambda m, n=n: f"layers.{int(m[1]) + n}", one.name)
        for n in range(0, layers, LAYERS)
        for one in inside
    ]
    findings = [replace(inside[at % len(inside)], name=name) for at, name in enumerate(names)]
    return replace(comparison, findings=findings, architecture=replace(comparison.architecture, common_keys=names))


def test_page_of_a_thousand_tensors_is_small_and_quick():
    large = _enlarged(example("dense"), 111)
    assert len(large.findings) == 999
    began = time.process_time()
    html = page(large, {})
    assert time.process_time() - began < 6.0  # about 1.5 s on an idle core
    assert len(html.encode()) < 3_000_000
    rows = re.findall(r">layer (\d+)</text>", html)
    assert len(rows) <= 80


def test_plain_commands_need_no_matplotlib():
    code = "import sys, lit_wsl.comparing.outputs; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
